"""Frozen features: one clean view per image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from ssl_views.data.dataset import MultiViewDataset
from ssl_views.data.decode import try_to_decode
from ssl_views.data.image_limits import LIMITS, BadImage, ImageLimits
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.pixels import PixelBatch
from ssl_views.views import ViewRecipe

RAW_PIXEL_SIZE = 32
_AT_ONCE = 32
_NAMED = 3

logger = logging.get_logger(__name__)


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
    limits: ImageLimits = LIMITS,
) -> LabelledFeatures:
    """Extract the features of two sets of rows, see `extract_features`, and their labels.

    Images that cannot be used have neither.
    """
    recipe = ViewRecipe.for_config(model.config)
    features, labels = [], []
    for rows in (train, test):
        found, kept = _extract(model, rows, recipe, batch_size, on_batch, limits)
        known = labels_of(rows)
        features.append(found)
        labels.append(None if known is None else known[kept])
    return LabelledFeatures(*features, *labels)


def extract_features(
    model: SSLViewsModel,
    rows: Sequence[Any] | Any,
    recipe: ViewRecipe,
    *,
    batch_size: int = 256,
    on_batch: Callable[[int], object] | None = None,
    limits: ImageLimits = LIMITS,
) -> Tensor:
    """Return the pooled backbone output of one clean view (the largest centred square) per image.

    The model runs in evaluation mode, and is left in the mode it had. Images that cannot be used
    are left out, and a warning names them.

    Args:
        model: gives representations.
        rows: N mappings with an encoded "image", as from `load_images`.
        recipe: of the model: image size, channels and normalization.
        batch_size: images at once.
        on_batch: called with the number of images done since the last call.
        limits: which images are used.

    Returns:
        (N, D_h) float32, on the CPU; N without those left out.

    Raises:
        PixelFormatError: with the index and path of an image for which the user has to decide.
        ValueError: if no image can be used.
    """
    return _extract(model, rows, recipe, batch_size, on_batch, limits)[0]


@torch.no_grad()
def _extract(
    model: SSLViewsModel,
    rows: Any,
    recipe: ViewRecipe,
    batch_size: int,
    on_batch: Callable[[int], object] | None,
    limits: ImageLimits,
) -> tuple[Tensor, list[int]]:
    """Return features, and the places of the rows that they are of."""
    was_training = model.training
    model.eval()
    features, kept = [], []
    for pixels, places in _clean_views(rows, recipe, batch_size, limits):
        output = model(pixels.to(model.device, model.dtype))
        features.append(output.pooler_output.float().cpu())
        kept += places
        if on_batch is not None:
            on_batch(len(places))
    model.train(was_training)
    return torch.cat(features), kept


def raw_pixels(
    rows: Sequence[Any] | Any,
    recipe: ViewRecipe,
    batch_size: int = 256,
    *,
    limits: ImageLimits = LIMITS,
) -> Tensor:
    """Return the normalized pixels of one clean view per image, (N, C * s * s) float32.

    The baseline that a backbone has to beat. It leaves out the images that `extract_features` does.
    """
    size = min(recipe.image_size, RAW_PIXEL_SIZE)
    features = []
    for pixels, _ in _clean_views(rows, recipe, batch_size, limits):
        if size < recipe.image_size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        features.append(pixels.flatten(1))
    return torch.cat(features)


def labels_of(rows: Any) -> Tensor | None:
    """Return the labels (N,) int64 of rows, or None where one is missing, null or negative."""
    labels = rows["label"][:] if "label" in rows.column_names else [None]
    return None if any(label is None or label < 0 for label in labels) else torch.tensor(labels)


def _clean_views(
    rows: Any, recipe: ViewRecipe, batch_size: int, limits: ImageLimits
) -> Iterator[tuple[Tensor, list[int]]]:
    """Give clean views, a batch at a time, with the places of their rows; say what is left out."""
    dataset = MultiViewDataset(rows)
    bad: list[BadImage] = []
    for start in range(0, len(rows), batch_size):
        stop = min(start + batch_size, len(rows))
        parts, places = [], []
        for some in range(start, stop, _AT_ONCE):  # large images never lie in memory together
            numbers = range(some, min(some + _AT_ONCE, stop))
            images = []
            for place, value, index in zip(numbers, *dataset.read(numbers), strict=True):
                outcome = try_to_decode(value, index, recipe.num_channels, limits)
                if isinstance(outcome, BadImage):
                    bad.append(outcome)
                else:
                    images.append(outcome)
                    places.append(place)
            if images:
                parts.append(recipe.clean_view(PixelBatch.of_arrays(images)))
        if parts:
            yield torch.cat(parts), places
    if len(bad) == len(rows):
        why = f" First {bad[0]}" if bad else ""
        raise ValueError(f"there must be an image that can be used; got none of {len(rows)}.{why}")
    if bad:
        # Once: the same rows are evaluated again and again.
        logger.warning_once(describe_left_out(bad, len(rows)))


def describe_left_out(bad: Sequence[BadImage], num_images: int) -> str:
    """Return a line on images that are left out, and one for each of the first."""
    lines = [f"{len(bad)} of {num_images:,} images cannot be used and are left out:"]
    lines += [f"image {e.index}{f' ({e.path})' if e.path else ''}: {e.reason}" for e in bad]
    more = ["..."] if len(bad) > _NAMED else []
    return "\n  ".join(lines[: _NAMED + 1] + more)
