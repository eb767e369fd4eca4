"""One evaluation: which metrics, of which features, under which protocol."""

from dataclasses import asdict, dataclass

from ssl_views.evaluation.features import LabelledFeatures
from ssl_views.evaluation.knn import knn_accuracy
from ssl_views.evaluation.linear_probe import linear_probe_accuracy
from ssl_views.spectrum import effective_rank


@dataclass(frozen=True)
class Metrics:
    """Metrics of one set of features. Accuracies are fractions; None where there are no labels.

    Attributes:
        knn: accuracy of a weighted vote of the nearest training images.
        linear_probe: accuracy of a linear classifier; None where it was not asked for.
        effective_rank: RankMe of the test features.
        feature_dim: D, the most that effective_rank can be.
        num_train: training images.
        num_test: test images.
    """

    knn: float | None
    linear_probe: float | None
    effective_rank: float
    feature_dim: int
    num_train: int
    num_test: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the fields by name."""
        return asdict(self)


def evaluate_features(
    features: LabelledFeatures, *, k: int = 20, temperature: float = 0.1, linear_probe: bool = True
) -> Metrics:
    """Compute all metrics of one set of features.

    Args:
        features: of a training and a test set.
        k: neighbours of kNN.
        temperature: of kNN.
        linear_probe: also fit a linear probe, which takes longest.
    """
    knn = probe = None
    if features.train_labels is not None and features.test_labels is not None:
        parts = (features.train, features.train_labels, features.test, features.test_labels)
        knn = knn_accuracy(*parts, k=k, temperature=temperature)
        probe = linear_probe_accuracy(*parts) if linear_probe else None
    return Metrics(
        knn=knn,
        linear_probe=probe,
        effective_rank=effective_rank(features.test),
        feature_dim=features.test.shape[1],
        num_train=len(features.train),
        num_test=len(features.test),
    )
