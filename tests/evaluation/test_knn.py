"""kNN against brute force and scikit-learn, ties, numbers that are hard, and what is refused."""

import numpy as np
import pytest
import torch
from known_features import assert_test_labels_choose_nothing, clusters
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from ssl_views import knn_accuracy
from ssl_views.evaluation.knn import Neighbours, knn_predictions, nearest_neighbours


def brute_force(train, labels, test, k, temperature):
    """Predictions in float64, one image at a time."""
    predicted = []
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    for row in test:
        similarity = unit @ (row / np.linalg.norm(row))
        votes = np.zeros(5)
        for i in np.argsort(-similarity)[:k]:
            votes[labels[i]] += np.exp(similarity[i] / temperature)
        predicted.append(votes.argmax())
    return np.array(predicted)


@pytest.mark.parametrize(
    ("k", "temperature"), [(1, 0.1), (20, 0.1), (7, 1.0), (10_000, 0.5), (20, 0.01)]
)
def test_knn_equals_brute_force(k, temperature):
    train, labels, test, test_labels = *clusters(300, 1), *clusters(120, 2)
    expected = brute_force(
        train.double().numpy(), labels.numpy(), test.double().numpy(), k, temperature
    )
    neighbours = nearest_neighbours(train, test, k=k, chunk_size=50)
    found = knn_predictions(neighbours, labels, temperature=temperature)
    assert found.tolist() == expected.tolist()
    accuracy = (expected == test_labels.numpy()).mean()
    assert 0.3 < accuracy < 1
    parts = train, labels, test, test_labels
    assert knn_accuracy(*parts, k=k, temperature=temperature) == pytest.approx(accuracy)


def test_knn_equals_scikit_learn():
    train, labels, test, _ = *clusters(400, 1), *clusters(150, 2)
    found = nearest_neighbours(train, test, k=15)
    search = NearestNeighbors(n_neighbors=15, metric="cosine", algorithm="brute")
    distances, indices = search.fit(train.double()).kneighbors(test.double())
    assert found.indices.tolist() == indices.tolist()
    np.testing.assert_allclose(1 - found.similarity.numpy(), distances, atol=1e-6)

    vote = KNeighborsClassifier(
        15, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1)
    )
    expected = vote.fit(train.double(), labels).predict(test.double())
    assert knn_predictions(found, labels).tolist() == expected.tolist()


@pytest.mark.parametrize("chunk_size", [1, 7, 60, 1000])
def test_chunks_change_nothing(chunk_size):
    train, test = clusters(200, 1)[0], clusters(60, 2)[0]
    expected = nearest_neighbours(train, test)
    found = nearest_neighbours(train, test, chunk_size=chunk_size)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.similarity, expected.similarity)
    assert (found.similarity.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32(dtype):
    train, test = clusters(200, 1)[0].to(dtype), clusters(60, 2)[0].to(dtype)
    before = train.clone()
    found = nearest_neighbours(train, test)
    expected = nearest_neighbours(train.float(), test.float())
    assert found.similarity.dtype == torch.float32
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.similarity, expected.similarity)
    assert torch.equal(train, before)


@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1e30])
def test_lengths_do_not_matter(scale):
    train, test = clusters(100, 1)[0], clusters(40, 2)[0]
    expected = nearest_neighbours(train.sign(), test, k=5)
    found = nearest_neighbours(train.sign() * scale, test * torch.rand(40, 1).add(0.1), k=5)
    torch.testing.assert_close(found.similarity, expected.similarity, atol=1e-4, rtol=0)


def test_rows_of_zeros_are_similar_to_none():
    train = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    found = nearest_neighbours(train, torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    assert found.indices[0].tolist() == [0, 1, 2]
    assert found.similarity.tolist() == [[1, 0, -1], [0, 0, 0]]
    labels = torch.tensor([4, 4, 2])
    assert knn_predictions(found, labels, temperature=1.0).tolist() == [4, 4]


def test_equal_votes_give_the_lowest_class():
    neighbours = Neighbours(torch.tensor([[0, 1, 2]]), torch.tensor([[0.5, 0.5, 0.5]]))
    assert knn_predictions(neighbours, torch.tensor([9, 3, 7])).tolist() == [3]


def test_cold_votes_neither_overflow_nor_vanish():
    neighbours = Neighbours(torch.tensor([[0, 1, 2]]), torch.tensor([[-0.9, -0.91, -0.91]]))
    labels = torch.tensor([1, 0, 0])
    assert knn_predictions(neighbours, labels, temperature=1e-6).tolist() == [1]
    assert knn_predictions(neighbours, labels, temperature=1e6).tolist() == [0]


def test_labels_may_be_far_apart():
    train, labels, test, _ = *clusters(200, 1), *clusters(50, 2)
    neighbours = nearest_neighbours(train, test)
    far = torch.tensor([3, 10**9, 10**12, 2**62, 2**63 - 1])
    expected = far[knn_predictions(neighbours, labels)]
    assert torch.equal(knn_predictions(neighbours, far[labels]), expected)


def test_test_labels_choose_nothing():
    train, labels, test, test_labels = *clusters(200, 1), *clusters(50, 2)

    def evaluate(test_labels):
        knn_accuracy(train, labels, test, test_labels)
        neighbours = nearest_neighbours(train, test)
        return {**neighbours._asdict(), "predictions": knn_predictions(neighbours, labels)}

    assert_test_labels_choose_nothing(evaluate, test_labels)
    predicted = evaluate(test_labels)["predictions"]
    shuffled = test_labels[torch.randperm(50, generator=torch.Generator().manual_seed(3))]
    expected = (predicted == shuffled).float().mean()
    assert knn_accuracy(train, labels, test, shuffled) == pytest.approx(float(expected))


def test_wrong_settings_get_a_sentence():
    train, labels, test, test_labels = *clusters(20, 1), *clusters(10, 2)
    with pytest.raises(ValueError, match="k must be >= 1; got 0"):
        knn_accuracy(train, labels, test, test_labels, k=0)
    with pytest.raises(ValueError, match="chunk_size must be >= 1; got -1"):
        knn_accuracy(train, labels, test, test_labels, chunk_size=-1)
    for temperature in (0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"temperature must be > 0; got {temperature}"):
            knn_accuracy(train, labels, test, test_labels, temperature=temperature)
    neighbours = nearest_neighbours(train, test)
    with pytest.raises(ValueError, match=r"train_labels must be those of .* at least 20; got 3"):
        knn_predictions(neighbours, labels[:3])
