"""What features, labels and class names must be, before anything is computed from them."""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

_NAMED = 3  # classes, in a sentence


def check_features(features: Tensor, name: str = "features") -> None:
    """Check that features are numbers, one row per image.

    Args:
        features: (N, D), floating point.
        name: for the sentence.

    Raises:
        ValueError: if they are of another shape or type, empty, or not finite.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor; got {_kind(features)}. Convert it, for "
            "example with torch.as_tensor(...).float()."
        )
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(
            f"{name} must have shape (N, D) with at least one image and one dimension; got "
            f"{tuple(features.shape)}. Flatten them to one row per image."
        )
    # A sum is several times faster than isfinite(), and finite only if all numbers are.
    if not features.sum(dtype=torch.float32).isfinite():
        bad = (~features.isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise ValueError(
                f"{name} must be finite; got NaN or infinite values in {len(bad):,} of "
                f"{len(features):,} rows, first in row {int(bad[0])}. Look at the weights and the "
                "images that they come from."
            )


def check_labels(labels: Tensor, features: Tensor, name: str = "labels") -> None:
    """Check that there is one label per row of features.

    Args:
        labels: (N,) int64, >= 0.
        features: (N, D).
        name: for the sentence.

    Raises:
        ValueError: if they are of another shape or type, or some are missing.
    """
    check_label_values(labels, name)
    if len(labels) != len(features):
        raise ValueError(
            f"{name} must be as many as their features; got {len(labels):,} labels for "
            f"{len(features):,} rows. Leave out the labels of images that were left out."
        )


def check_label_values(labels: Tensor, name: str = "labels") -> None:
    """Check that labels (N,) are classes counted from 0, and that none is missing.

    Raises:
        ValueError: if not.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(
            f"{name} must be an int64 tensor of shape (N,); got {_kind(labels)}. An accuracy needs "
            "a class per image, counted from 0."
        )
    missing = (labels < 0).nonzero()
    if len(missing):
        raise ValueError(
            f"{name} must be classes counted from 0; got {len(missing):,} of {len(labels):,} below "
            f"0, first {int(labels[missing[0]])} at row {int(missing[0])}. Leave out images "
            "without a label."
        )


def check_train(features: Tensor, labels: Tensor) -> None:
    """Check what a classifier learns from: features (N, D), labels (N,) of at least two classes.

    Raises:
        ValueError: if that is not what they are.
    """
    check_features(features, "train_features")
    check_labels(labels, features, "train_labels")
    if labels.min() == labels.max():
        raise ValueError(
            "train_labels must hold at least two classes to tell apart; got only class "
            f"{int(labels[0])}, {len(labels):,} times. Take images of another class too."
        )


def check_test(features: Tensor, train_features: Tensor) -> None:
    """Check that test features (M, D) have the dimensions of training features (N, D).

    Raises:
        ValueError: if not.
    """
    check_features(features, "test_features")
    if features.shape[1] != train_features.shape[1]:
        raise ValueError(
            "train_features and test_features must have as many dimensions; got "
            f"{train_features.shape[1]} and {features.shape[1]}. Extract both with one backbone."
        )


def check_class_names(train: Sequence[str] | None, test: Sequence[str] | None) -> None:
    """Check that a label means the same in the training and the test set.

    Args:
        train: class names by label, or None where the data does not name them, which fits any.
        test: likewise.

    Raises:
        ValueError: if the names differ.
    """
    if train is None or test is None:
        return
    pairs = enumerate(zip_longest(train, test))
    found = [f"{label} is {a!r} and {b!r}" for label, (a, b) in pairs if a != b]
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise ValueError(
            "the training and the test set must have the same class names; label "
            f"{', '.join(found[:_NAMED])}{more}. Take sets with the same classes, in one order."
        )


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"
