"""Features of a training and a test set, with their labels."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ssl_views.evaluation.feature_cache import FeatureCache
from ssl_views.evaluation.features import (
    EXTRACTION,
    ONE_CLEAN_VIEW,
    Extraction,
    FeatureProtocol,
    features_and_places,
)
from ssl_views.evaluation.labels import find_labels
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.statistics import gather_rows, rank
from ssl_views.views import ViewRecipe


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of images to learn from and of images to evaluate on.

    Attributes:
        train: (N, D).
        test: (M, D).
        train_labels: (N,) int64, or None.
        test_labels: (M,) int64, or None.
        train_places: (N,), the places of the rows that the features are of, or None for all.
        test_places: (M,), likewise.
        class_names: by label, where the data names them.
        no_labels: why there are no labels, a sentence.
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    train_places: Tensor | None = None
    test_places: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    no_labels: str = ""

    def to(self, device: torch.device) -> "LabelledFeatures":
        """Return the features and labels on a device."""
        labels = self.train_labels, self.test_labels
        train_labels, test_labels = (None if x is None else x.to(device) for x in labels)
        return replace(
            self,
            train=self.train.to(device),
            test=self.test.to(device),
            train_labels=train_labels,
            test_labels=test_labels,
        )


def labelled_features(
    model: SSLViewsModel,
    train: Any,
    test: Any,
    *,
    protocol: FeatureProtocol = ONE_CLEAN_VIEW,
    extraction: Extraction = EXTRACTION,
    cache: FeatureCache | None = None,
) -> LabelledFeatures:
    """Extract the features of two sets of rows, see `extract_features`, and their labels.

    Images that cannot be used have neither.

    Args:
        model: gives representations.
        train: rows to learn from, as from `load_images`.
        test: rows to evaluate on.
        protocol: what the features are.
        extraction: how they are made.
        cache: keeps them.

    Raises:
        ValueError: if the two sets name their classes differently, or no image can be used.
    """
    labels = find_labels(train, test)
    (train_features, train_places), (test_features, test_places) = (
        _cached_features(model, rows, protocol, extraction, cache) for rows in (train, test)
    )
    labels = labels.of_images(train_places, test_places)
    return LabelledFeatures(
        train_features,
        test_features,
        labels.train,
        labels.test,
        train_places,
        test_places,
        labels.class_names,
        labels.missing,
    )


def _cached_features(
    model: SSLViewsModel,
    rows: Any,
    protocol: FeatureProtocol,
    extraction: Extraction,
    cache: FeatureCache | None,
) -> tuple[Tensor, Tensor]:
    """Return features and places, from the cache of the first process where they are."""
    recipe = ViewRecipe.for_config(model.config)
    key = found = None
    if cache is not None:
        key = cache.key(model, rows, recipe, protocol, extraction.limits)
    if cache is not None and key is not None:
        found = cache.read(key)
        everyone = gather_rows(torch.tensor([found is not None], device=model.device))
        if found is not None and bool(everyone.all()):
            if extraction.on_batch is not None:
                extraction.on_batch(len(found[0]))
            return found
    made = features_and_places(model, rows, recipe, protocol, extraction)
    # Images left out today may be there tomorrow, and are to be named every time.
    whole = len(made[1]) == len(rows)
    if cache is not None and key is not None and whole and rank() == 0:
        cache.write(key, *made)
    return made
