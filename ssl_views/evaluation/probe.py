"""What an evaluation during training looks at, beside the loss."""

from dataclasses import asdict
from typing import Any

from ssl_views.data.sources import take_fraction
from ssl_views.evaluation.feature_sets import labelled_features
from ssl_views.evaluation.features import (
    EXTRACTION,
    Extraction,
    FeatureProtocol,
    Precision,
    view_representations,
)
from ssl_views.evaluation.report import evaluate_features
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.views import ViewRecipe

NUM_VIEW_IMAGES = 256
_LOGGED = ("knn", "effective_rank", "alpha", "alpha_r_squared", "lidar", "view_invariance")


def view_rows(rows: Any, num_images: int = NUM_VIEW_IMAGES) -> Any:
    """Return the rows whose views are compared: so many, drawn per class where there are labels."""
    return take_fraction(rows, min(1.0, num_images / len(rows)))


def probe_metrics(
    model: SSLViewsModel,
    train: Any,
    test: Any,
    *,
    precision: Precision = "float32",
    extraction: Extraction = EXTRACTION,
) -> dict[str, float]:
    """Return the metrics that are logged, by name; without labels there is no kNN.

    Args:
        model: gives representations; with several processes, each computes a share of them.
        train: rows that kNN compares with, as from `load_images`.
        test: rows that it classifies, and whose spectrum is computed.
        precision: of the backbone's computation.
        extraction: how features are made.
    """
    protocol = FeatureProtocol(precision=precision)
    features = labelled_features(model, train, test, protocol=protocol, extraction=extraction)
    recipe = ViewRecipe.for_config(model.config)
    some = view_rows(test)
    views = view_representations(model, some, recipe, precision=precision, extraction=extraction)
    device = model.device
    metrics = asdict(
        evaluate_features(features.to(device), views=views.to(device), linear_probe=False)
    )
    return {name: metrics[name] for name in _LOGGED if metrics[name] is not None}
