"""Labels of evaluation data, and why there may be none that accuracies can be computed from."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_views.evaluation.checks import check_class_names


class Labels(NamedTuple):
    """Labels of a training and a test set.

    Attributes:
        train: (N,) int64, or None.
        test: (M,) int64, or None.
        class_names: by label, where the data names them.
        missing: why there are none, a sentence; empty where there are.
    """

    train: Tensor | None
    test: Tensor | None
    class_names: tuple[str, ...] | None
    missing: str

    def of_images(self, train: Tensor, test: Tensor) -> "Labels":
        """Return the labels of some images, by their places; one class alone says nothing."""
        if self.train is None or self.test is None:
            return self
        labels = self.train[train]
        if len(labels.unique()) > 1:
            return self._replace(train=labels, test=self.test[test])
        label = int(labels[0])
        named = label if self.class_names is None else repr(self.class_names[label])
        why = f"all {len(labels):,} training images have one label, {named}"
        return self._replace(train=None, test=None, missing=why)


def labels_of(rows: Any) -> Tensor | None:
    """Return the labels (N,) int64 of rows, -1 where one is null; None without a column."""
    if "label" not in rows.column_names:
        return None
    return torch.tensor([-1 if label is None else label for label in rows["label"][:]])


def class_names_of(rows: Any) -> tuple[str, ...] | None:
    """Return the names of the classes of rows by label, or None."""
    feature = rows.features.get("label")
    return tuple(feature.names) if hasattr(feature, "names") else None


def find_labels(train: Any, test: Any) -> Labels:
    """Return the labels of two sets of rows, or why accuracies cannot be computed.

    Args:
        train: rows as from `load_images`.
        test: likewise.

    Raises:
        ValueError: if the sets name their classes differently.
    """
    names, test_names = class_names_of(train), class_names_of(test)
    if names is not None and test_names is not None:
        check_class_names(names, test_names)
    found = {"training": labels_of(train), "test": labels_of(test)}
    why = ""
    for kind, labels in found.items():
        if labels is None:
            why = f"the {kind} images have no labels"
        elif bool((labels < 0).any()):
            missing = int((labels < 0).sum())
            why = f"{missing:,} of {len(labels):,} {kind} images have no label"
        if why:
            break
    if why:
        return Labels(None, None, names, why)
    return Labels(found["training"], found["test"], names, "")
