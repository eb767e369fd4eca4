"""Labels of evaluation data, and why there may be none."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from ssl_views.data.sources import load_images
from ssl_views.evaluation.labels import class_names_of, find_labels, labels_of


def rows_of(labels, names=None):
    kind = Value("int64") if names is None else ClassLabel(names=names)
    return Dataset.from_dict({"label": labels}, features=Features({"label": kind}))


def test_labels_of_rows():
    rows = load_images("digits")
    assert labels_of(rows).tolist() == rows["label"]
    assert labels_of(rows.select_columns(["image"])) is None
    assert labels_of(rows_of([0, None, 2])).tolist() == [0, -1, 2]
    assert class_names_of(rows) == tuple("0123456789")
    assert class_names_of(rows_of([0, 1])) is None


def test_labels_that_are_there():
    found = find_labels(rows_of([0, 1, 1], ["a", "b"]), rows_of([1], ["a", "b"]))
    assert found.train.tolist() == [0, 1, 1]
    assert found.test.tolist() == [1]
    assert found.class_names == ("a", "b")
    assert found.missing == ""


@pytest.mark.parametrize(
    ("train", "test", "why"),
    [
        ([0, None, -1, 1], [0, 1], "2 of 4 training images have no label"),
        ([0, 1], [0, None], "1 of 2 test images have no label"),
    ],
)
def test_why_there_are_no_accuracies(train, test, why):
    found = find_labels(rows_of(train), rows_of(test))
    assert found.missing == why
    assert found.train is None
    assert found.test is None


@pytest.mark.parametrize(("names", "label"), [(None, "1"), (["cat", "dog"], "'dog'")])
def test_one_class_is_no_class(names, label):
    labels = find_labels(rows_of([1, 0, 1], names), rows_of([0, 1], names))
    every = labels.of_images(torch.arange(3), torch.tensor([1]))
    assert every.train.tolist() == [1, 0, 1]
    assert every.test.tolist() == [1]
    found = labels.of_images(torch.tensor([0, 2]), torch.arange(2))
    assert found.missing == f"all 2 training images have one label, {label}"
    assert found.train is None
    assert found.test is None


def test_no_column_of_labels():
    rows = load_images("digits").select(range(5))
    bare = rows.select_columns(["image"])
    assert find_labels(bare, rows).missing == "the training images have no labels"
    assert find_labels(rows, bare).missing == "the test images have no labels"


def test_class_names_that_differ_get_a_sentence():
    with pytest.raises(ValueError, match="class names"):
        find_labels(rows_of([0, 1], ["a", "b"]), rows_of([0, 1], ["b", "a"]))
