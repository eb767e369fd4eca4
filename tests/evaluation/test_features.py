"""Features against the model, bad images, averaged views, precision, and the cache."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from PIL import Image
from safetensors import safe_open

from ssl_views import (
    SSLViewsConfig,
    SSLViewsModel,
    ViewRecipe,
    allow_images_below,
    extract_features,
)
from ssl_views.data.decode import decode_pixels
from ssl_views.data.image_limits import LIMITS, ImageLimits, PixelFormatError
from ssl_views.data.sources import load_images
from ssl_views.evaluation import view_batches
from ssl_views.evaluation.feature_cache import FeatureCache
from ssl_views.evaluation.feature_sets import labelled_features
from ssl_views.evaluation.features import (
    Extraction,
    FeatureProtocol,
    raw_pixels,
    view_representations,
)
from ssl_views.pixels import PixelBatch


def new_model(**values):
    defaults = {"image_size": 32, "num_channels": 1, "num_views": 3, "recipe": "digits"}
    torch.manual_seed(0)
    return SSLViewsModel(SSLViewsConfig(backbone="test_resnet", **{**defaults, **values})).eval()


@pytest.fixture(scope="module")
def model():
    return new_model()


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


def recipe_of(model):
    return ViewRecipe.for_config(model.config)


def test_features_are_the_backbones_on_clean_views(model, digits):
    rows, seen = digits.select(range(10)), []
    extraction = Extraction(4, on_batch=seen.append)
    features = extract_features(model.train(), rows, recipe_of(model), extraction=extraction)
    assert features.shape == (10, 96)
    assert seen == [4, 4, 2]
    assert model.training
    one = extract_features(model.eval(), rows.select([7]), recipe_of(model))
    torch.testing.assert_close(one[0], features[7], atol=1e-5, rtol=1e-4)
    assert not model.training


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_and_batches_change_no_feature(model, digits, num_threads):
    rows = digits.select(range(100))
    expected = extract_features(model, rows, recipe_of(model))
    extraction = Extraction(70, num_threads)
    found = extract_features(model, rows, recipe_of(model), extraction=extraction)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("feature_views", [2, 16])
def test_averaged_features_are_the_mean_over_views(model, digits, feature_views):
    rows, recipe = digits.select(range(5)), recipe_of(model)
    protocol = FeatureProtocol(feature_views)
    assert protocol.name == f"mean of {feature_views} views"
    found = extract_features(model, rows, recipe, protocol=protocol, extraction=Extraction(32))
    pixels = PixelBatch.of_arrays([decode_pixels(row["image"], 1) for row in rows])
    augmented = replace(recipe, num_views=max(2, feature_views - 1))
    records = augmented.draw(rows["index"], pixels.heights, pixels.widths, epoch=0, seed=0)
    more = augmented.render(pixels, records)[:, : feature_views - 1]
    views = torch.cat([recipe.clean_view(pixels)[:, None], more], dim=1)
    with torch.no_grad():
        every = torch.stack([model(x).pooler_output for x in views])
    torch.testing.assert_close(found, every.mean(1), atol=1e-5, rtol=1e-4)
    clean = extract_features(model, rows, recipe)
    assert (found - clean).abs().max() > 1e-3


def test_views_of_a_recipe_with_local_views_can_be_averaged_and_compared(photos):
    model = new_model(num_channels=3, num_views=6, recipe="global_local")
    rows = load_images(photos).select(range(3))
    averaged = extract_features(model, rows, recipe_of(model), protocol=FeatureProtocol(4))
    assert averaged.shape == (3, 96)
    views = view_representations(model, rows, recipe_of(model))
    assert views.shape == (4, 3, 96)  # all global


def test_view_representations_are_the_models(model, digits):
    rows, recipe = digits.select(range(6)), recipe_of(model)
    found = view_representations(model, rows, recipe, extraction=Extraction(9))
    assert found.shape == (4, 6, 96)  # always four, though the model trains on three
    recipe = replace(recipe, num_views=4)
    pixels = PixelBatch.of_arrays([decode_pixels(row["image"], 1) for row in rows])
    views = recipe.render(
        pixels, recipe.draw(rows["index"], pixels.heights, pixels.widths, epoch=0, seed=0)
    )
    with torch.no_grad():
        expected = torch.stack([model(views[:, v]).pooler_output for v in range(4)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_features_in_low_precision_are_about_the_same(model, digits, precision):
    rows = digits.select(range(20))
    expected = extract_features(model, rows, recipe_of(model))
    protocol = FeatureProtocol(precision=precision)
    found = extract_features(model, rows, recipe_of(model), protocol=protocol)
    assert found.dtype == getattr(torch, precision)
    error = (found.float() - expected).norm() / expected.norm()
    assert 0 < error < 0.02


def test_wrong_protocols_get_a_sentence():
    with pytest.raises(ValueError, match="feature_views must be at least 1; got 0"):
        FeatureProtocol(0)
    with pytest.raises(ValueError, match=r"precision must be one of .*; got 'half'"):
        FeatureProtocol(precision="half")
    with pytest.raises(ValueError, match=r"must be at least 1; got 0 and 1\. 256 and 1 are"):
        Extraction(batch_size=0)


@pytest.fixture
def said(monkeypatch):
    """The warnings of the module."""
    messages = []
    monkeypatch.setattr(view_batches.logger, "warning_once", messages.append)
    return messages


def with_bad(rows, bad):
    """The same rows with some images that cannot be decoded."""

    def damage(row, place):
        name = f"{place}.png"
        return {"image": {"bytes": b"none", "path": name} if place in bad else row["image"]}

    return rows.map(damage, with_indices=True, load_from_cache_file=False)


def test_bad_images_are_left_out_with_their_labels(model, digits, said):
    rows = digits.select(range(40))
    bad = {0, 4, 5, 6, 7, 39}  # 4 to 7 are a whole batch
    good = [i for i in range(40) if i not in bad]
    damaged, seen = with_bad(rows, bad), []
    extraction = Extraction(4, on_batch=seen.append)
    found = labelled_features(model, damaged, rows.select(good), extraction=extraction)
    assert sum(seen) == 2 * 34
    assert found.train_places.tolist() == good
    assert torch.equal(found.train_labels, found.test_labels)
    assert torch.equal(found.train_labels, torch.tensor(rows["label"])[good])
    torch.testing.assert_close(found.train, found.test, atol=1e-5, rtol=1e-4)
    assert torch.equal(
        raw_pixels(damaged, recipe_of(model)), raw_pixels(rows.select(good), recipe_of(model))
    )
    assert len(extract_features(model, damaged, recipe_of(model))) == 34
    assert set(said) == {
        "6 of 40 images cannot be used and are left out:"
        + "".join(
            f"\n  image {i} ({i}.png): the bytes cannot be decoded: they are no JPEG, PNG, WEBP, "
            "BMP, GIF or TIFF"
            for i in (0, 4, 5)
        )
        + "\n  ..."
    }


def test_limits_leave_images_out(model, digits, said):
    rows = digits.select(range(3))
    small = Extraction(limits=ImageLimits(min_side=9))
    with pytest.raises(
        ValueError, match=r"got none of 3\. First image 0: both sides must be at le"
    ):
        labelled_features(model, rows, rows, extraction=small)
    with pytest.raises(
        ValueError, match=r"an image that can be used; got none of 3\. First image 0"
    ):
        raw_pixels(rows, ViewRecipe.named("digits"), extraction=small)
    assert not said


def test_pixels_of_another_format_are_not_left_out(model):
    rows = [{"image": np.zeros((9, 9), dtype=np.float32)}]
    with pytest.raises(PixelFormatError, match="image 0: pixels must be uint8; got float32"):
        extract_features(model, rows, recipe_of(model))


def test_raw_pixels_are_at_most_32_pixels(digits):
    rows = digits.select(range(3))
    assert raw_pixels(rows, ViewRecipe.named("digits")).shape == (3, 32 * 32)
    assert raw_pixels(rows, ViewRecipe.named("digits", image_size=48)).shape == (3, 32 * 32)
    assert raw_pixels(rows, ViewRecipe.named("digits", image_size=8)).shape == (3, 64)


def test_features_are_extracted_once(model, digits, tmp_path, monkeypatch):
    rows = digits.select(range(30)), digits.select(range(30, 50))
    first = labelled_features(model, *rows, cache=FeatureCache(tmp_path / "features"))
    assert len(list((tmp_path / "features").iterdir())) == 2
    monkeypatch.setattr(SSLViewsModel, "forward", None)  # nothing is computed again
    seen = []
    again = labelled_features(
        model,
        *rows,
        cache=FeatureCache(tmp_path / "features"),
        extraction=Extraction(7, 2, on_batch=seen.append),
    )
    assert seen == [30, 20]
    for name in ("train", "test", "train_labels", "test_labels", "train_places", "test_places"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_whatever_changes_features_changes_their_name(model, digits):
    cache, recipe = FeatureCache("none"), recipe_of(model)
    same = (model, digits, recipe, FeatureProtocol(), LIMITS)
    other = new_model()
    with torch.no_grad():
        next(other.backbone.parameters()).view(-1)[0] += 1e-3
    statistics = new_model()
    next(statistics.backbone.buffers()).view(-1)[0] += 1
    changed = [
        (other, *same[1:]),
        (statistics, *same[1:]),
        (new_model(upscale=2), *same[1:]),
        (model, digits.select(range(9)), *same[2:]),
        (model, digits, replace(recipe, image_size=16), *same[3:]),
        (*same[:3], FeatureProtocol(2), LIMITS),
        (*same[:3], FeatureProtocol(precision="bfloat16"), LIMITS),
        (*same[:4], ImageLimits(min_side=2)),
    ]
    keys = {cache.key(*parts) for parts in [same, *changed]}
    assert len(keys) == 1 + len(changed)
    assert cache.key(new_model(), *same[1:]) == cache.key(*same)
    assert cache.key(model, [{"image": b""}], *same[2:]) is None


def test_weights_changed_in_place_are_noticed(digits, tmp_path):
    model, cache = new_model(), FeatureCache(tmp_path)
    rows = digits.select(range(8)), digits.select(range(8, 12))
    first = labelled_features(model, *rows, cache=cache)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert not torch.equal(labelled_features(model, *rows, cache=cache).train, first.train)


def test_features_are_not_kept_while_images_are_left_out(model, digits, tmp_path, said):
    rows = with_bad(digits.select(range(8)), {3}), digits.select(range(8, 12))
    for _ in range(2):
        found = labelled_features(model, *rows, cache=FeatureCache(tmp_path))
        assert len(found.train) == 7
    assert len(said) == 2  # named every time
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_change_are_noticed(model, tmp_path):
    """Two data sets of one function, and rows that name files, have one fingerprint each."""
    rows = {}
    for color in (0, 200):
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for i in range(12):
            Image.new("L", (16, 16), color + i).save(folder / f"{i}.png")
        paths = [{"bytes": None, "path": str(folder / f"{i}.png")} for i in range(12)]
        named = Dataset.from_dict(
            {"image": paths}, features=Features({"image": datasets.Image(decode=False)})
        )
        named._fingerprint = "same"
        allow_images_below(folder)
        key = FeatureCache("none").key(model, named, recipe_of(model), FeatureProtocol(), LIMITS)
        rows[key] = color
    assert len(rows) == 2


def test_a_folder_that_cannot_be_written_is_only_said(model, digits, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    rows = digits.select(range(4)), digits.select(range(4, 8))
    found = labelled_features(model, *rows, cache=FeatureCache(tmp_path / "file" / "features"))
    assert len(found.test) == 4
    assert "Features are not kept for the next time" in caplog.text


def test_one_class_that_is_left_is_no_class(model, digits, said):
    rows = digits.select([0, 1, 0, 0])
    assert rows["label"][1] != rows["label"][0]
    found = labelled_features(model, with_bad(rows, {1}), digits.select(range(4)))
    assert found.no_labels == f"all 3 training images have one label, '{rows['label'][0]}'"
    assert found.train_labels is None


def test_a_damaged_file_is_made_again(model, digits, tmp_path):
    rows = digits.select(range(12)), digits.select(range(12, 20))
    cache = FeatureCache(tmp_path)
    first = labelled_features(model, *rows, cache=cache)
    for path, content in zip(sorted(tmp_path.iterdir()), (b"", b"x" * 100), strict=True):
        path.write_bytes(content)
    again = labelled_features(model, *rows, cache=cache)
    assert torch.equal(first.train, again.train)
    for path in tmp_path.iterdir():
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == {"features", "places"}
    names = sorted(tmp_path.iterdir())
    names[0].replace(names[1])  # a file under the name of another
    assert torch.equal(labelled_features(model, *rows, cache=cache).test, first.test)
