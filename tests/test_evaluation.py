"""kNN against brute force, the linear probe against scikit-learn, features against the model."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ssl_views import SSLViewsConfig, SSLViewsModel, ViewRecipe, extract_features, knn_accuracy
from ssl_views.data.image_limits import ImageLimits, PixelFormatError
from ssl_views.data.sources import load_images
from ssl_views.evaluation import features as features_module
from ssl_views.evaluation.features import (
    LabelledFeatures,
    labelled_features,
    labels_of,
    raw_pixels,
)
from ssl_views.evaluation.linear_probe import linear_probe_accuracy
from ssl_views.evaluation.report import evaluate_features


def clusters(count, seed, noise=2.0):
    """Five overlapping Gaussian classes in 12 dimensions of unequal scale."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(5, 12)) * 2
    labels = rng.integers(0, 5, count)
    features = (centres[labels] + noise * rng.normal(size=(count, 12))) * np.linspace(0.1, 10, 12)
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def brute_force(train, train_labels, test, test_labels, k, temperature):
    correct = 0
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    for row, label in zip(test, test_labels, strict=True):
        similarity = unit @ (row / np.linalg.norm(row))
        votes = np.zeros(5)
        for i in np.argsort(-similarity)[:k]:
            votes[train_labels[i]] += np.exp(similarity[i] / temperature)
        correct += votes.argmax() == label
    return correct / len(test)


@pytest.mark.parametrize(
    ("k", "temperature"), [(1, 0.1), (20, 0.1), (7, 1.0), (10_000, 0.5), (20, 0.01)]
)
def test_knn_equals_brute_force(k, temperature):
    parts = (*clusters(300, 1), *clusters(120, 2))
    expected = brute_force(
        *(p.double().numpy() if p.is_floating_point() else p.numpy() for p in parts), k, temperature
    )
    assert 0.3 < expected < 1
    assert knn_accuracy(*parts, k=k, temperature=temperature, chunk_size=50) == pytest.approx(
        expected
    )


def test_wrong_knn_settings_get_a_sentence():
    parts = (*clusters(20, 1), *clusters(10, 2))
    with pytest.raises(ValueError, match="k must be >= 1 and temperature > 0; got 0"):
        knn_accuracy(*parts, k=0)


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3])
def test_linear_probe_equals_scikit_learn(weight_decay):
    train, labels, test, test_labels = (*clusters(600, 1), *clusters(2000, 2))
    ours = linear_probe_accuracy(train, labels, test, test_labels, weight_decay=weight_decay)
    mean, std = train.mean(0), train.std(0)
    reference = LogisticRegression(C=1 / (weight_decay * len(train)), max_iter=5000, tol=1e-8)
    reference.fit((train - mean) / std, labels)
    assert ours == pytest.approx(reference.score((test - mean) / std, test_labels), abs=0.003)


def test_weight_decay_is_chosen_where_it_matters():
    """Weak signal in 400 dimensions and 600 noisy images: a weak weight decay overfits."""
    rng = np.random.default_rng(0)
    features = torch.tensor(rng.normal(size=(2600, 400)), dtype=torch.float32)
    score = features @ torch.tensor(rng.normal(size=400), dtype=torch.float32)
    labels = (score + 20 * torch.tensor(rng.normal(size=2600)) > 0).long()
    parts = (features[:600], labels[:600], features[600:], labels[600:])
    chosen = linear_probe_accuracy(*parts)
    weakest = linear_probe_accuracy(*parts, weight_decay=1e-4)
    assert chosen > weakest + 0.02


def test_test_labels_choose_nothing():
    """Another order of the test labels changes the score, not the classifier: scores add up."""
    train, labels = clusters(300, 1)
    test, _ = clusters(50, 2)
    scores = [
        linear_probe_accuracy(train, labels, test, torch.full((50,), label)) for label in range(5)
    ]
    assert sum(scores) == pytest.approx(1)  # each image is predicted as exactly one class


@pytest.fixture(scope="module")
def model():
    config = SSLViewsConfig(
        backbone="test_resnet", image_size=32, num_channels=1, num_views=2, recipe="digits"
    )
    return SSLViewsModel(config)


def test_features_are_the_backbones_on_clean_views(model):
    rows = load_images("digits").select(range(10))
    recipe = ViewRecipe.for_config(model.config)
    seen = []
    features = extract_features(model.train(), rows, recipe, batch_size=4, on_batch=seen.append)
    assert features.shape == (10, 96)
    assert seen == [4, 4, 2]
    assert model.training
    one = extract_features(model.eval(), rows.select([7]), recipe)
    torch.testing.assert_close(one[0], features[7], atol=1e-5, rtol=1e-4)
    assert not model.training


@pytest.fixture
def said(monkeypatch):
    """The warnings of the module."""
    messages = []
    monkeypatch.setattr(features_module.logger, "warning_once", messages.append)
    return messages


def with_bad(rows, bad):
    """The same rows with some images that cannot be decoded."""

    def damage(row, place):
        name = f"{place}.png"
        return {"image": {"bytes": b"none", "path": name} if place in bad else row["image"]}

    return rows.map(damage, with_indices=True, load_from_cache_file=False)


def test_bad_images_are_left_out_with_their_labels(model, said):
    rows = load_images("digits").select(range(40))
    bad = {0, 4, 5, 6, 7, 39}  # 4 to 7 are a whole batch
    good = [i for i in range(40) if i not in bad]
    recipe = ViewRecipe.for_config(model.config)
    damaged, seen = with_bad(rows, bad), []
    found = labelled_features(model, damaged, rows.select(good), batch_size=4, on_batch=seen.append)
    assert sum(seen) == 2 * 34
    assert torch.equal(found.train_labels, found.test_labels)
    assert torch.equal(found.train_labels, torch.tensor(rows["label"])[good])
    torch.testing.assert_close(found.train, found.test, atol=1e-5, rtol=1e-4)
    assert torch.equal(raw_pixels(damaged, recipe), raw_pixels(rows.select(good), recipe))
    assert len(extract_features(model, damaged, recipe)) == 34
    assert set(said) == {
        "6 of 40 images cannot be used and are left out:"
        + "".join(
            f"\n  image {i} ({i}.png): the bytes cannot be decoded: they are no JPEG, PNG, WEBP, "
            "BMP, GIF or TIFF"
            for i in (0, 4, 5)
        )
        + "\n  ..."
    }


def test_limits_leave_images_out(model, said):
    rows = load_images("digits").select(range(3))
    with pytest.raises(
        ValueError, match=r"got none of 3\. First image 0: both sides must be at le"
    ):
        labelled_features(model, rows, rows, limits=ImageLimits(min_side=9))
    with pytest.raises(
        ValueError, match=r"an image that can be used; got none of 3\. First image 0"
    ):
        raw_pixels(rows, ViewRecipe.named("digits"), limits=ImageLimits(min_side=9))
    assert not said


def test_pixels_of_another_format_are_not_left_out(model):
    rows = [{"image": np.zeros((9, 9), dtype=np.float32)}]
    with pytest.raises(PixelFormatError, match="image 0: pixels must be uint8; got float32"):
        extract_features(model, rows, ViewRecipe.for_config(model.config))


def test_raw_pixels_are_at_most_32_pixels():
    rows = load_images("digits").select(range(3))
    assert raw_pixels(rows, ViewRecipe.named("digits")).shape == (3, 32 * 32)
    assert raw_pixels(rows, ViewRecipe.named("digits", image_size=48)).shape == (3, 32 * 32)
    assert raw_pixels(rows, ViewRecipe.named("digits", image_size=8)).shape == (3, 64)


def test_metrics_without_labels():
    train, labels = clusters(50, 1)
    test, test_labels = clusters(20, 2)
    metrics = evaluate_features(LabelledFeatures(train, test))
    assert metrics.knn is None
    assert metrics.linear_probe is None
    assert 1 < metrics.effective_rank <= 12
    labelled = evaluate_features(LabelledFeatures(train, test, labels, test_labels))
    assert labelled.knn == knn_accuracy(train, labels, test, test_labels)
    assert labelled.as_dict()["num_test"] == 20


def test_labels_of_rows():
    rows = load_images("digits")
    assert labels_of(rows).tolist() == rows["label"]
    assert labels_of(rows.select_columns(["image"])) is None
    unlabelled = rows.select(range(3)).remove_columns("label").add_column("label", [0, -1, 2])
    assert labels_of(unlabelled) is None
