"""Weighted k-nearest-neighbour classification."""

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_views.evaluation.checks import (
    check_features,
    check_label_values,
    check_labels,
    check_test,
    check_train,
)

_CHUNK = 512  # larger ones are hardly faster, and take more memory


class Neighbours(NamedTuple):
    """The nearest training images of each test image, nearest first.

    Attributes:
        indices: (M, k) int64, rows of the training features.
        similarity: (M, k) float32, cosine.
    """

    indices: Tensor
    similarity: Tensor


def nearest_neighbours(
    train_features: Tensor, test_features: Tensor, *, k: int = 20, chunk_size: int = _CHUNK
) -> Neighbours:
    """Return the training images with the highest cosine similarity to each test image.

    The search is exact, up to the rounding of float32. Which of several equally similar images
    comes first, or is the last of k, is left to `torch.topk`. A row of zeros has similarity 0 to
    all.

    Args:
        train_features: (N, D), in half precision too; computed in float32.
        test_features: (M, D).
        k: neighbours; at most N are found.
        chunk_size: test images at once. N * chunk_size similarities are in memory.

    Raises:
        ValueError: if features cannot be used, or k or chunk_size is below 1.

    Example:
        >>> train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> nearest_neighbours(train, torch.tensor([[3.0, 1.0]])).indices
        tensor([[0, 1]])
    """
    check_features(train_features, "train_features")
    check_test(test_features, train_features)
    check_votes(k, 1)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1; got {chunk_size}. {_CHUNK} is usual.")
    k = min(k, len(train_features))
    train = _unit_rows(train_features)
    indices = torch.empty(len(test_features), k, dtype=torch.int64, device=train.device)
    similarity = torch.empty(len(test_features), k, device=train.device)
    for start in range(0, len(test_features), chunk_size):
        chunk = slice(start, start + chunk_size)
        values = _unit_rows(test_features[chunk]) @ train.T
        similarity[chunk], indices[chunk] = values.topk(k, dim=1)
    return Neighbours(indices, similarity)


def knn_predictions(
    neighbours: Neighbours, train_labels: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Return the class with most votes, of neighbours that weigh exp(similarity / temperature).

    Of classes with equal votes it is the lowest.

    Args:
        neighbours: of M images.
        train_labels: (N,) int64, >= 0.
        temperature: of the weights; small means that the nearest count more.

    Returns:
        (M,) int64.

    Raises:
        ValueError: if labels cannot be used, or temperature is not above 0.
    """
    check_label_values(train_labels, "train_labels")
    least = int(neighbours.indices.max()) + 1
    if len(train_labels) < least:
        raise ValueError(
            f"train_labels must be those of the images that were searched, at least {least:,}; got "
            f"{len(train_labels):,}. Give the labels of all training features."
        )
    check_votes(1, temperature)
    classes, labels = train_labels.unique(return_inverse=True)
    similarity = neighbours.similarity
    weights = ((similarity - similarity[:, :1]) / temperature).exp()  # at most 1, no overflow
    votes = weights.new_zeros(len(weights), len(classes))
    votes.scatter_add_(1, labels[neighbours.indices], weights)
    return classes[votes.argmax(dim=1)]


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.1,
    chunk_size: int = _CHUNK,
) -> float:
    """Return the accuracy of a vote of nearest neighbours, weighted by exp(cosine / temperature).

    Args:
        train_features: (N, D).
        train_labels: (N,) int64, >= 0.
        test_features: (M, D).
        test_labels: (M,) int64, >= 0.
        k: neighbours; at most N are used.
        temperature: of the weights; small means that the nearest count more.
        chunk_size: test images at once, which bounds memory.

    Returns:
        A fraction.

    Raises:
        ValueError: if features, labels, k, temperature or chunk_size cannot be used.

    Source:
        Wu et al., arXiv 1805.01978, section 3.4.

    Differs from source:
        k = 20 and temperature 0.1 instead of 200 and 0.07.
    """
    check_train(train_features, train_labels)
    check_labels(test_labels, test_features, "test_labels")
    neighbours = nearest_neighbours(train_features, test_features, k=k, chunk_size=chunk_size)
    predicted = knn_predictions(neighbours, train_labels, temperature=temperature)
    return float((predicted == test_labels).float().mean())


def check_votes(k: int, temperature: float) -> None:
    """Refuse a number of neighbours or a temperature that means nothing."""
    if k < 1:
        raise ValueError(f"k must be >= 1; got {k}. 20 is usual.")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0; got {temperature}. 0.1 is usual.")


def _unit_rows(features: Tensor) -> Tensor:
    """Return rows of length 1, or of zeros, float32."""
    rows = features.detach().to(torch.float32, copy=True)
    for order in (torch.inf, 2):  # the largest number first, whose square may overflow
        length = torch.linalg.vector_norm(rows, order, dim=1, keepdim=True)
        rows /= length.clamp_min(torch.finfo(torch.float32).tiny)
    return rows
