"""Weighted k-nearest-neighbour classification."""

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.1,
    chunk_size: int = 1000,
) -> float:
    """Return the accuracy of a vote of nearest neighbours, weighted by exp(cosine / temperature).

    Args:
        train_features: (N, D).
        train_labels: (N,) int64, >= 0.
        test_features: (M, D).
        test_labels: (M,) int64.
        k: neighbours; at most N are used.
        temperature: of the weights; small means that the nearest count more.
        chunk_size: test images at once, which bounds memory.

    Returns:
        A fraction.

    Source:
        Wu et al., arXiv 1805.01978, section 3.4.

    Differs from source:
        k = 20 and temperature 0.1 instead of 200 and 0.07.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(
            f"k must be >= 1 and temperature > 0; got {k} and {temperature}. 20 and 0.1 are usual."
        )
    train, test = F.normalize(train_features, dim=1), F.normalize(test_features, dim=1)
    num_classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    correct = 0
    for start in range(0, len(test), chunk_size):
        chunk = slice(start, start + chunk_size)
        similarity, neighbours = (test[chunk] @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(similarity), num_classes)
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # at most 1, no overflow
        votes.scatter_add_(1, train_labels[neighbours], weights)
        correct += int((votes.argmax(dim=1) == test_labels[chunk]).sum())
    return correct / len(test)
