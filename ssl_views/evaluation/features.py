"""Frozen features: one clean view per image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_views.data.dataset import MultiViewDataset
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.views import ViewRecipe

RAW_PIXEL_SIZE = 32
_AT_ONCE = 32


@dataclass(frozen=True)
class LabelledFeatures:
    """Features (N, D) of a training and a test set, with labels (N,) where there are any."""

    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None


def labelled_features(
    model: SSLViewsModel,
    train: Any,
    test: Any,
    *,
    batch_size: int = 256,
    on_batch: Callable[[int], object] | None = None,
) -> LabelledFeatures:
    """Extract the features of two sets of rows, see `extract_features`, and their labels."""
    recipe = ViewRecipe.for_config(model.config)
    return LabelledFeatures(
        extract_features(model, train, recipe, batch_size=batch_size, on_batch=on_batch),
        extract_features(model, test, recipe, batch_size=batch_size, on_batch=on_batch),
        labels_of(train),
        labels_of(test),
    )


@torch.no_grad()
def extract_features(
    model: SSLViewsModel,
    rows: Sequence[Any] | Any,
    recipe: ViewRecipe,
    *,
    batch_size: int = 256,
    on_batch: Callable[[int], object] | None = None,
) -> Tensor:
    """Return the pooled backbone output of one clean view (the largest centred square) per image.

    The model runs in evaluation mode, and is left in the mode it had.

    Args:
        model: gives representations.
        rows: N mappings with an encoded "image", as from `load_images`.
        recipe: of the model: image size, channels and normalization.
        batch_size: images at once.
        on_batch: called with the number of images done since the last call.

    Returns:
        (N, D_h) float32, on the CPU.
    """
    was_training = model.training
    model.eval()
    features = []
    for pixels in _clean_views(rows, recipe, batch_size):
        output = model(pixels.to(model.device, model.dtype))
        features.append(output.pooler_output.float().cpu())
        if on_batch is not None:
            on_batch(len(pixels))
    model.train(was_training)
    return torch.cat(features)


def raw_pixels(rows: Sequence[Any] | Any, recipe: ViewRecipe, batch_size: int = 256) -> Tensor:
    """Return the normalized pixels of one clean view per image, (N, C * s * s) float32.

    The baseline that a backbone has to beat.
    """
    size = min(recipe.image_size, RAW_PIXEL_SIZE)
    features = []
    for pixels in _clean_views(rows, recipe, batch_size):
        if size < recipe.image_size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        features.append(pixels.flatten(1))
    return torch.cat(features)


def labels_of(rows: Any) -> Tensor | None:
    """Return the labels (N,) int64 of rows, or None where one is missing, null or negative."""
    labels = rows["label"][:] if "label" in rows.column_names else [None]
    return None if any(label is None or label < 0 for label in labels) else torch.tensor(labels)


def _clean_views(rows: Any, recipe: ViewRecipe, batch_size: int) -> Iterator[Tensor]:
    dataset = MultiViewDataset(rows)
    for start in range(0, len(rows), batch_size):
        stop = min(start + batch_size, len(rows))
        parts = []
        for some in range(start, stop, _AT_ONCE):  # large images never lie in memory together
            numbers = range(some, min(some + _AT_ONCE, stop))
            pixels, _ = dataset.pixels(numbers, recipe.num_channels)
            parts.append(recipe.clean_view(pixels))
        yield torch.cat(parts)
