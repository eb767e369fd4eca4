"""One evaluation: which metrics, of which features, under which protocol."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ssl_views.evaluation.feature_sets import LabelledFeatures
from ssl_views.evaluation.few_labels import few_label_accuracies
from ssl_views.evaluation.intervals import Interval, interval_of_mean
from ssl_views.evaluation.knn import knn_accuracy
from ssl_views.evaluation.linear_probe import fit_linear_probe
from ssl_views.spectrum import (
    effective_rank,
    eigenspectrum,
    fit_power_law,
    invariance_per_dimension,
    lidar,
)

FEW_LABELS = (0.01, 0.1)
_LEAST_EIGENVALUES = 10  # for a power law


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What the representations say without labels.

    Attributes:
        effective_rank: RankMe of the test features, at most min(feature_dim, num_test).
        alpha: exponent of their eigenspectrum; None where it has fewer than 10 positive values.
        alpha_r_squared: how well a power law fits.
        alpha_ranks: first and last rank of the fit.
        lidar: LiDAR of the representations of views; None without views.
        view_invariance: mean over dimensions of their correlation between views of an image.
    """

    effective_rank: float
    alpha: float | None = None
    alpha_r_squared: float | None = None
    alpha_ranks: tuple[int, int] | None = None
    lidar: float | None = None
    view_invariance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Metrics(Spread):
    """Metrics of one set of features. Accuracies are fractions; None where there are no labels.

    Attributes:
        knn: accuracy of a weighted vote of the nearest training images.
        linear_probe: accuracy of a linear classifier; None where it was not asked for.
        linear_probe_weight_decay: of that classifier, chosen on training images.
        few_labels: accuracies of linear classifiers that know a share of the labels, by share:
            mean and 95 % interval over draws of the share.
        feature_dim: D, the most that effective_rank can be.
        num_train: training images.
        num_test: test images.
    """

    knn: float | None = None
    linear_probe: float | None = None
    linear_probe_weight_decay: float | None = None
    few_labels: Mapping[str, Interval] | None = None
    feature_dim: int
    num_train: int
    num_test: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, as JSON values."""
        few = self.few_labels or {}
        named = {share: interval._asdict() for share, interval in few.items()}
        return {**asdict(self), "few_labels": named or None}


def _of_fractions(values: list[float]) -> Interval:
    mean, low, high, n = interval_of_mean(values)
    if low is None or high is None:
        return Interval(mean, low, high, n)
    return Interval(mean, max(0.0, low), min(1.0, high), n)


def spread_of(
    features: Tensor, views: Tensor | None = None, eigenvalues: Tensor | None = None
) -> Spread:
    """Compute what needs no labels.

    Args:
        features: (M, D).
        views: (V, B, D), representations of views of some images.
        eigenvalues: `eigenspectrum(features)`, where it is known.
    """
    if eigenvalues is None:
        eigenvalues = eigenspectrum(features)
    known = int((eigenvalues > 0).sum()) >= _LEAST_EIGENVALUES
    law = fit_power_law(eigenvalues) if known else None
    compared = views is not None and min(views.shape[:2]) > 1
    return Spread(
        effective_rank=effective_rank(features),
        alpha=law and law.alpha,
        alpha_r_squared=law and law.r_squared,
        alpha_ranks=law and (law.first, law.last),
        lidar=lidar(views) if views is not None and compared else None,
        view_invariance=(
            float(invariance_per_dimension(views).mean())
            if views is not None and compared
            else None
        ),
    )


def evaluate_features(
    features: LabelledFeatures,
    *,
    views: Tensor | None = None,
    eigenvalues: Tensor | None = None,
    k: int = 20,
    temperature: float = 0.1,
    linear_probe: bool = True,
    few_labels: tuple[float, ...] = (),
) -> Metrics:
    """Compute all metrics of one set of features.

    Args:
        features: of a training and a test set.
        views: (V, B, D), representations of views of some images, for what compares views.
        eigenvalues: `eigenspectrum(features.test)`, where it is known.
        k: neighbours of kNN.
        temperature: of kNN.
        linear_probe: also fit a linear probe, which takes longest.
        few_labels: shares of the labels to fit further linear probes to; one that leaves less than
            an image per class is left out.
    """
    knn = probe = weight_decay = few = None
    if features.train_labels is not None and features.test_labels is not None:
        num_classes = len(features.train_labels.unique())
        parts = (features.train, features.train_labels, features.test, features.test_labels)
        knn = knn_accuracy(*parts, k=k, temperature=temperature)
        if linear_probe:
            classifier = fit_linear_probe(*parts[:2])
            weight_decay = classifier.weight_decay
            probe = float((classifier.predict(parts[2]) == parts[3]).float().mean())
        few = {
            str(share): _of_fractions(few_label_accuracies(*parts, share=share))
            for share in few_labels
            if share * len(features.train) >= num_classes
        }
    return Metrics(
        **asdict(spread_of(features.test, views, eigenvalues)),
        knn=knn,
        linear_probe=probe,
        linear_probe_weight_decay=weight_decay,
        few_labels=few or None,
        feature_dim=features.test.shape[1],
        num_train=len(features.train),
        num_test=len(features.test),
    )
