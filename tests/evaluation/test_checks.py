"""Every wrong input gets a sentence, from every function that takes it, and fast."""

import time

import pytest
import torch
from known_features import clusters

from ssl_views import knn_accuracy, linear_probe_accuracy
from ssl_views.evaluation.checks import (
    check_class_names,
    check_features,
    check_label_values,
    check_labels,
)
from ssl_views.evaluation.few_labels import few_label_accuracies

FEATURES = torch.ones(6, 2)
LABELS = torch.tensor([0, 1, 0, 1, 2, 0])


def few_labels(*parts):
    return few_label_accuracies(*parts, share=0.5)


def spoilt(*places, value=torch.nan):
    features = FEATURES.clone()
    for row, column in places:
        features[row, column] = value
    return features


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (torch.ones(3), r"x must have shape \(N, D\) .* got \(3,\)\. Flatten"),
        (torch.ones(3, 2, 1), r"must have shape \(N, D\) .* got \(3, 2, 1\)"),
        (torch.ones(0, 2), r"at least one image and one dimension; got \(0, 2\)"),
        (torch.ones(3, 0), r"at least one image and one dimension; got \(3, 0\)"),
        (torch.ones(3, 2).long(), r"x must be a floating-point tensor; got int64 of shape \(3, 2"),
        ([[1.0]], "x must be a floating-point tensor; got a list"),
        (None, "x must be a floating-point tensor; got None"),
        (spoilt((3, 1)), "x must be finite; got NaN or infinite values in 1 of 6 rows, first in "
         "row 3"),
        (spoilt((5, 0), (2, 0), (2, 1)), "in 2 of 6 rows, first in row 2"),
        (spoilt((4, 0), value=torch.inf), "in 1 of 6 rows, first in row 4"),
        (spoilt((4, 0), value=-torch.inf).bfloat16(), "in 1 of 6 rows, first in row 4"),
    ],
)  # fmt: skip
def test_features(features, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_features(features, "x")


def test_large_features_are_finite():
    check_features(torch.full((600, 50), 3e38))  # their sum is not
    check_features(torch.full((600, 50), 6e4, dtype=torch.float16))


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (None, r"y must be an int64 tensor of shape \(N,\); got None"),
        ([0, 1, 0, 1, 2, None], "y must be an int64 tensor .*; got a list"),
        (LABELS.float(), r"got float32 of shape \(6,\)"),
        (LABELS[:, None], r"got int64 of shape \(6, 1\)"),
        (LABELS[:-1], "y must be as many as their features; got 5 labels for 6 rows"),
        (torch.tensor([0, 1, -1, 0, -7, 1]), "counted from 0; got 2 of 6 below 0, first -1 at "
         r"row 2\. Leave out"),
    ],
)  # fmt: skip
def test_labels(labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_labels(labels, FEATURES, "y")


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_probe_accuracy, few_labels])
def test_every_accuracy_checks_its_input(accuracy):
    train, labels = clusters(30, 1)
    test, test_labels = clusters(20, 2)
    broken = train.clone()
    broken[7, 3] = torch.nan
    unlabelled = test_labels.clone()
    unlabelled[4:6] = -1
    cases = [
        ((broken, labels, test, test_labels), "train_features must be finite; .* first in row 7"),
        ((train, labels, broken, labels), "test_features must be finite; .* first in row 7"),
        ((train, labels[1:], test, test_labels), "train_labels .* got 29 labels for 30 rows"),
        ((train, labels, test, test_labels[1:]), "test_labels .* got 19 labels for 20 rows"),
        ((train, labels, test, unlabelled), "test_labels .* 2 of 20 below 0, first -1 at row 4"),
        ((train, None, test, test_labels), "train_labels .* got None"),
        ((train, labels, test, None), "test_labels .* got None"),
        ((train, labels * 0 + 3, test, test_labels), "at least two classes to tell apart; got only "
         "class 3, 30 times"),
        ((train, labels, test[:, 1:], test_labels), "as many dimensions; got 12 and 11"),
        ((train[:0], labels[:0], test, test_labels), r"train_features .* got \(0, 12\)"),
    ]  # fmt: skip
    for parts, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            accuracy(*parts)


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        ("ab", "ba", r"label 0 is 'a' and 'b', 1 is 'b' and 'a'\. Take"),
        ("abc", "ab", r"label 2 is 'c' and None\. Take"),
        ("abcdef", "uvwxyz", r"label 0 is 'a' and 'u', .* 2 is 'c' and 'w' and 3 more\. Take"),
    ],
)
def test_class_names_that_differ(train, test, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_class_names(tuple(train), tuple(test))


@pytest.mark.parametrize(("train", "test"), [("ab", "ab"), (None, "ab"), ("ab", None)])
def test_class_names_that_agree_or_are_not_known(train, test):
    check_class_names(train, test)


def test_checks_take_milliseconds():
    features, labels = torch.ones(50_000, 512), torch.zeros(50_000, dtype=torch.int64)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        check_features(features)
        check_label_values(labels)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1
