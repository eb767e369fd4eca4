"""Drawing records of views from counter-based random numbers."""

from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssl_views.counter_random import uniforms
from ssl_views.view_engine import HUE, ViewRecords

if TYPE_CHECKING:
    from ssl_views.views import ViewRecipe

_CROP_TRIES = 10
_ORDERS = np.array(list(permutations(range(4))), dtype=np.int64)


def draw_records(
    recipe: "ViewRecipe",
    indices: Sequence[int],
    heights: Sequence[int],
    widths: Sequence[int],
    *,
    epoch: int,
    seed: int,
) -> ViewRecords:
    """Draw the records of B images.

    They depend on seed, epoch, index, view and the image's size only.

    Args:
        recipe: what is random, and how much.
        indices: B image indices below 2**64.
        heights: B heights, pixels.
        widths: B widths, pixels.
        epoch: pass over the data.
        seed: of the run.

    Source:
        Distributions of torchvision 0.20 RandomResizedCrop, ColorJitter, RandomGrayscale,
        GaussianBlur, RandomSolarize.

    Differs from source:
        The numbers come from a counter (see `counter_random`), so nothing else can change them.
    """
    place, (flip, jitter, order, *factor), (gray, blur, sigma, solarize), tries = _split(
        uniforms(seed, epoch, np.asarray(indices, dtype=np.uint64), recipe.num_views, 33)
    )
    operations = np.where(
        (jitter < recipe.jitter_prob)[..., None],
        _ORDERS[(order * len(_ORDERS)).astype(np.int64)],
        -1,
    )
    strength = np.array([recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue])
    operations = np.where(strength[operations] > 0, operations, -1)  # the others change nothing
    low, high = np.maximum(1 - strength, 0), 1 + strength
    low[HUE], high[HUE] = -recipe.hue, recipe.hue
    smallest, largest = recipe.blur_sigma
    return ViewRecords(
        box=_draw_box(recipe, np.asarray(heights), np.asarray(widths), place, tries),
        flip=flip < recipe.flip_prob,
        order=operations,
        factor=low + (high - low) * np.stack(factor, axis=-1),
        grayscale=gray < recipe.grayscale_prob,
        blur_sigma=np.where(blur < recipe.blur_prob, smallest + (largest - smallest) * sigma, 0.0),
        solarize=solarize < recipe.solarize_prob,
    )


def _split(
    random: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Say which of the 33 numbers of a view is for what; single ones lie on the first axis."""
    first = np.moveaxis(random[..., :13], -1, 0)
    return random[..., :2], first[2:9], first[9:13], random[..., 13:]


def _draw_box(
    recipe: "ViewRecipe",
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    place: NDArray[np.float64],
    tries: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return (B, V, 4) boxes: the first of ten random shapes that fits, else the largest one."""
    height, width = heights[:, None, None], widths[:, None, None]
    smallest, largest = recipe.crop_scale
    area = height * width * (smallest + (largest - smallest) * tries[..., :_CROP_TRIES])
    low, high = np.log(recipe.crop_ratio)
    ratio = np.exp(low + (high - low) * tries[..., _CROP_TRIES:])
    shapes = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], axis=-1)))  # (B, V, tries, 2)
    whole = np.stack([heights, widths], axis=-1)[:, None]
    fits = ((shapes >= 1) & (shapes <= whole[:, :, None])).all(axis=-1)
    shape = np.take_along_axis(shapes, fits.argmax(axis=-1)[..., None, None], axis=2)[:, :, 0]
    fitted = np.concatenate([np.floor(place * (whole - shape + 1)), shape], axis=-1)
    centred = np.stack(
        [
            np.minimum(heights, np.rint(widths / recipe.crop_ratio[0])),
            np.minimum(widths, np.rint(heights * recipe.crop_ratio[1])),
        ],
        axis=-1,
    )
    centred = np.broadcast_to(np.maximum(centred, 1)[:, None], shape.shape)
    fallback = np.concatenate([(whole - centred) // 2, centred], axis=-1)
    return np.where(fits.any(axis=-1)[..., None], fitted, fallback).astype(np.int64)
