"""Which images are drawn, and that a probe knows their labels only."""

import pytest
import torch
from known_features import assert_test_labels_choose_nothing, clusters

from ssl_views.evaluation.few_labels import draw_labelled, few_label_accuracies
from ssl_views.evaluation.linear_probe import linear_probe_accuracy

LABELS = torch.tensor([0] * 1000 + [5] * 500 + [2] * 40 + [7])[
    torch.randperm(1541, generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize(
    ("share", "counts"),
    [(0.01, [10, 1, 5, 1]), (0.1, [100, 4, 50, 1]), (1e-6, [1] * 4), (1.0, [1000, 40, 500, 1])],
)
def test_a_draw_has_its_share_of_every_class(share, counts):
    drawn = draw_labelled(LABELS, share, 0)
    assert drawn.diff().min() > 0  # ascending, none twice
    found, number = LABELS[drawn].unique(return_counts=True)
    assert found.tolist() == [0, 2, 5, 7]
    assert number.tolist() == counts


def test_draws_differ_and_come_again():
    draws = [set(draw_labelled(LABELS, 0.1, number).tolist()) for number in range(5)]
    for number, draw in enumerate(draws):
        assert draw == set(draw_labelled(LABELS, 0.1, number).tolist())
        others = draws[:number]
        assert all(len(draw & other) < 0.3 * len(draw) for other in others)


def test_every_image_is_drawn_as_often():
    labels = torch.arange(40) % 4
    drawn = torch.cat([draw_labelled(labels, 0.3, number) for number in range(2000)])
    assert drawn.bincount(minlength=40).double().std() / 600 < 0.06  # 0.034 by chance


def test_accuracies_are_those_of_probes_on_the_draws():
    train, labels, test, test_labels = *clusters(600, 1, noise=3), *clusters(300, 2, noise=3)
    found = few_label_accuracies(train, labels, test, test_labels, share=0.1, num_draws=3)
    drawn = [draw_labelled(labels, 0.1, number) for number in range(3)]
    expected = [linear_probe_accuracy(train[d], labels[d], test, test_labels) for d in drawn]
    assert found == expected
    assert len(set(found)) > 1
    every = few_label_accuracies(train, labels, test, test_labels, share=1.0, num_draws=1)
    assert every == [linear_probe_accuracy(train, labels, test, test_labels)]
    assert 0.3 < min(found) <= max(found) < every[0]
    assert len(few_label_accuracies(train, labels, test, test_labels, share=0.01)) == 5


def test_labels_that_were_not_drawn_are_not_known():
    train, labels, test, test_labels = *clusters(600, 1), *clusters(300, 2)
    drawn = draw_labelled(labels, 0.1, 0)
    hidden = torch.full_like(train, 1e9)
    hidden[drawn] = train[drawn]
    found = few_label_accuracies(hidden, labels, test, test_labels, share=0.1, num_draws=1)
    assert found == few_label_accuracies(train, labels, test, test_labels, share=0.1, num_draws=1)


def test_test_labels_choose_nothing():
    train, labels, test, test_labels = *clusters(200, 1, noise=3), *clusters(50, 2, noise=3)

    def evaluate(test_labels):
        few_label_accuracies(train, labels, test, test_labels, share=0.2, num_draws=2)
        return {"draws": torch.cat([draw_labelled(labels, 0.2, number) for number in range(2)])}

    assert_test_labels_choose_nothing(evaluate, test_labels)
    scores = [
        few_label_accuracies(train, labels, test, torch.full((50,), label), share=0.2, num_draws=1)
        for label in range(5)
    ]
    assert sum(score for (score,) in scores) == pytest.approx(1)  # one class for each image


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_gets_a_sentence(share):
    parts = *clusters(30, 1), *clusters(20, 2)
    with pytest.raises(ValueError, match=rf"share must be in \(0, 1\]; got {share}"):
        few_label_accuracies(*parts, share=share)


def test_no_draws_get_a_sentence():
    parts = *clusters(30, 1), *clusters(20, 2)
    with pytest.raises(ValueError, match="num_draws must be >= 1; got 0"):
        few_label_accuracies(*parts, share=0.5, num_draws=0)
