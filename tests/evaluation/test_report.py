"""One evaluation as a whole: what it holds, and what test labels may not change."""

import json

import pytest
import torch
from known_features import assert_test_labels_choose_nothing, clusters

from ssl_views.evaluation.feature_sets import LabelledFeatures
from ssl_views.evaluation.few_labels import few_label_accuracies
from ssl_views.evaluation.intervals import interval_of_mean
from ssl_views.evaluation.knn import knn_accuracy
from ssl_views.evaluation.linear_probe import fit_linear_probe, linear_probe_accuracy
from ssl_views.evaluation.report import evaluate_features, spread_of
from ssl_views.spectrum import effective_rank, eigenspectrum, fit_power_law, lidar

LABEL_FREE = (
    "linear_probe_weight_decay", "effective_rank", "alpha", "alpha_r_squared", "alpha_ranks",
    "lidar", "view_invariance", "feature_dim", "num_train", "num_test",
)  # fmt: skip


@pytest.fixture(scope="module")
def features():
    (train, labels), (test, test_labels) = clusters(300, 1, noise=4), clusters(60, 2, noise=4)
    return LabelledFeatures(train, test, labels, test_labels)


@pytest.fixture(scope="module")
def views(features):
    noise = torch.randn(3, 60, 12, generator=torch.Generator().manual_seed(0))
    return features.test + noise


def test_metrics_are_those_of_their_functions(features, views):
    parts = (features.train, features.train_labels, features.test, features.test_labels)
    metrics = evaluate_features(features, views=views, k=7, temperature=0.3, few_labels=(0.1,))
    assert metrics.knn == knn_accuracy(*parts, k=7, temperature=0.3)
    assert metrics.linear_probe == linear_probe_accuracy(*parts)
    assert metrics.linear_probe_weight_decay == fit_linear_probe(*parts[:2]).weight_decay
    few = interval_of_mean(few_label_accuracies(*parts, share=0.1))
    assert metrics.few_labels == {"0.1": few}
    law = fit_power_law(eigenspectrum(features.test))
    assert (metrics.alpha, metrics.alpha_r_squared) == (law.alpha, law.r_squared)
    assert metrics.alpha_ranks == (4, 12)
    assert metrics.effective_rank == effective_rank(features.test)
    assert metrics.lidar == lidar(views)
    assert 0.5 < metrics.view_invariance < 1
    stored = json.loads(json.dumps(metrics.as_dict()))
    assert stored["few_labels"]["0.1"] == {**few._asdict()}
    assert (stored["num_train"], stored["num_test"], stored["feature_dim"]) == (300, 60, 12)


def test_metrics_without_labels(features):
    metrics = evaluate_features(LabelledFeatures(features.train, features.test), few_labels=(0.1,))
    absent = {name for name, value in metrics.as_dict().items() if value is None}
    assert absent == {
        "knn", "linear_probe", "linear_probe_weight_decay", "few_labels", "lidar",
        "view_invariance",
    }  # fmt: skip


def test_test_labels_choose_nothing(features, views):
    def evaluate(test_labels):
        others = LabelledFeatures(features.train, features.test, features.train_labels, test_labels)
        metrics = evaluate_features(others, views=views, few_labels=(0.1,)).as_dict()
        return {name: metrics[name] for name in LABEL_FREE}

    assert_test_labels_choose_nothing(evaluate, features.test_labels)


def test_accuracies_follow_the_test_labels(features):
    """The opposite, so that the test above can fail."""
    wrong = LabelledFeatures(
        features.train, features.test, features.train_labels, (features.test_labels + 1) % 5
    )
    right, other = (evaluate_features(f, few_labels=(0.1,)) for f in (features, wrong))
    assert other.knn < right.knn - 0.2
    assert other.linear_probe < right.linear_probe - 0.2
    assert other.few_labels["0.1"].mean < right.few_labels["0.1"].mean - 0.2


def test_collapsed_features_have_no_power_law():
    spread = spread_of(torch.ones(50, 20), torch.ones(2, 30, 20))
    assert spread.alpha is None
    assert spread.alpha_ranks is None
    assert spread.effective_rank == pytest.approx(1, abs=1e-3)
    assert spread.lidar == 1
    assert spread.view_invariance == 0


def test_one_view_or_one_image_is_not_compared(features):
    for shape in ((1, 30, 12), (3, 1, 12)):
        assert spread_of(features.test, torch.randn(shape)).lidar is None


def test_features_that_are_not_finite_get_a_sentence(features):
    broken = features.test.clone()
    broken[3, 0] = torch.nan
    with pytest.raises(ValueError, match=r"test_features must be finite; got NaN .* 1 of 60 rows"):
        evaluate_features(
            LabelledFeatures(features.train, broken, features.train_labels, features.test_labels)
        )
    with pytest.raises(ValueError, match="features must be finite; got NaN"):
        evaluate_features(LabelledFeatures(features.train, broken))
