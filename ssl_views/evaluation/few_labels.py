"""What features are worth where few images have labels."""

import torch
from torch import Tensor

from ssl_views.evaluation.checks import check_labels, check_test, check_train
from ssl_views.evaluation.linear_probe import fit_linear_probe, shuffled_by_class


def few_label_accuracies(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    share: float,
    num_draws: int = 5,
) -> list[float]:
    """Return the test accuracies of linear probes that know some of the training labels.

    Each draws the same share of every class, rounded, and at least one image of each. A draw
    depends on the labels and its number alone, so other features get the same images.

    Args:
        train_features: (N, D).
        train_labels: (N,) int64, >= 0.
        test_features: (M, D), all of which are classified.
        test_labels: (M,) int64, >= 0.
        share: of the training images, in (0, 1].
        num_draws: number of accuracies.

    Returns:
        `num_draws` fractions, for example for `interval_of_mean`.

    Raises:
        ValueError: if features or labels cannot be used, or share or num_draws is out of range.
    """
    check_train(train_features, train_labels)
    check_test(test_features, train_features)
    check_labels(test_labels, test_features, "test_labels")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1]; got {share}. 0.01 is one label in a hundred.")
    if num_draws < 1:
        raise ValueError(f"num_draws must be >= 1; got {num_draws}. 5 is usual.")
    accuracies = []
    for number in range(num_draws):
        drawn = draw_labelled(train_labels, share, number)
        probe = fit_linear_probe(train_features[drawn], train_labels[drawn])
        correct = probe.predict(test_features) == test_labels
        accuracies.append(float(correct.float().mean()))
    return accuracies


def draw_labelled(labels: Tensor, share: float, number: int) -> Tensor:
    """Return the rows of a draw, ascending: the same share of each class, and at least one.

    Args:
        labels: (N,) int64.
        share: in (0, 1].
        number: of the draw; each gives other rows.
    """
    labels_here = labels.cpu()
    counts = labels_here.unique(return_counts=True)[1].tolist()
    classes = shuffled_by_class(labels_here, number).split(counts)
    drawn = [rows[: max(1, round(share * len(rows)))] for rows in classes]
    return torch.cat(drawn).sort().values.to(labels.device)
