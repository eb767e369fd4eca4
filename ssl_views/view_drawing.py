"""Drawing records of views from counter-based random numbers."""

from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssl_views.counter_random import uniforms
from ssl_views.view_records import HUE, ViewRecords

if TYPE_CHECKING:
    from ssl_views.views import ViewRecipe

_CROP_TRIES = 10
_NUMBERS = 15  # per view, with the first try of the crop; the further tries follow them
_ORDERS = np.array(list(permutations(range(4))), dtype=np.int64)


def draw_records(
    recipe: "ViewRecipe",
    indices: Sequence[int],
    heights: Sequence[int] | NDArray[np.int64],
    widths: Sequence[int] | NDArray[np.int64],
    *,
    epoch: int,
    seed: int,
) -> ViewRecords:
    """Draw the records of B images.

    They depend on seed, epoch, index, view and the image's size only. Of the numbers of a view, 0
    and 1 place the crop, 2 to 8 are flip, jitter, order, grayscale, blur, sigma and solarize, 9 to
    12 the colour factors, and the rest pairs of area and ratio, one pair per try of the crop.

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
        The place of the crop is drawn once, not per try.
    """
    num_images, numbers = len(indices), recipe.numbers
    if not num_images == len(heights) == len(widths):
        raise ValueError(
            f"there must be one height and width per index; got {num_images} indices, "
            f"{len(heights)} heights and {len(widths)} widths. Give those of the images."
        )
    index = np.asarray(indices, dtype=np.uint64)
    random = uniforms(seed, epoch, index, recipe.num_views, _NUMBERS)
    flip, jitter, order, gray, blur, sigma, solarize = np.moveaxis(random[..., 2:9], -1, 0)

    strength = numbers["strength"]
    operations = _ORDERS[(order * len(_ORDERS)).astype(np.int64)]
    used = strength[np.arange(len(strength))[:, None], operations] > 0
    used &= (jitter < numbers["jitter_prob"])[..., None]
    low, high = np.maximum(1 - strength, 0), 1 + strength
    low[:, HUE], high[:, HUE] = -strength[:, HUE], strength[:, HUE]
    smallest, largest = numbers["blur_sigma"].T
    return ViewRecords(
        box=_draw_boxes(
            recipe, index, np.asarray(heights), np.asarray(widths), random, epoch, seed
        ),
        flip=flip < numbers["flip_prob"],
        order=np.where(used, operations, -1).astype(np.int8),
        factor=(low + (high - low) * random[..., 9:13]).astype(np.float32),
        grayscale=gray < numbers["grayscale_prob"],
        blur_sigma=np.where(
            blur < numbers["blur_prob"], smallest + (largest - smallest) * sigma, 0.0
        ).astype(np.float32),
        solarize=solarize < numbers["solarize_prob"],
    )


def _draw_boxes(
    recipe: "ViewRecipe",
    index: NDArray[np.uint64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    random: NDArray[np.float64],
    epoch: int,
    seed: int,
) -> NDArray[np.int32]:
    """Return (B, V, 4) boxes: the first of ten random shapes that fits, else the largest one."""
    scale, ratio = recipe.numbers["crop_scale"], recipe.numbers["crop_ratio"]
    height, width = heights[:, None], widths[:, None]
    crop, fits = _try(random[..., 13], random[..., 14], height, width, scale, ratio)
    if not fits.all():  # further tries, all at once, for the views that need them
        image, view = np.nonzero(~fits)
        rows, place = np.unique(image, return_inverse=True)
        more = uniforms(seed, epoch, index[rows], len(scale), _NUMBERS + 2 * (_CROP_TRIES - 1))
        tries = more[place, view, _NUMBERS:].reshape(len(image), -1, 2)
        size = heights[image, None], widths[image, None]
        crops, fit = _try(tries[..., 0], tries[..., 1], *size, scale[view, None], ratio[view, None])
        first = fit.argmax(axis=1)
        crop[image, view] = crops[np.arange(len(image)), first]
        fits[image, view] = fit.any(axis=1)
    whole = np.stack([heights, widths], axis=-1)[:, None]
    corner = np.floor(random[..., :2] * (whole - crop + 1))
    if not fits.all():
        tall = np.rint(widths[:, None] / ratio[:, 0])
        wide = np.rint(heights[:, None] * ratio[:, 1])
        centred = np.stack(
            [np.minimum(heights[:, None], tall), np.minimum(widths[:, None], wide)], axis=-1
        )
        centred = np.maximum(centred, 1)
        crop = np.where(fits[..., None], crop, centred)
        corner = np.where(fits[..., None], corner, (whole - centred) // 2)
    return np.concatenate([corner, crop], axis=-1).astype(np.int32)


def _try(
    area: NDArray[np.float64],
    shape: NDArray[np.float64],
    height: NDArray[np.int64],
    width: NDArray[np.int64],
    scale: NDArray[np.float64],
    ratio: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return crops (..., 2) of random area and ratio, and which of them fit into the image."""
    pixels = height * width * (scale[..., 0] + (scale[..., 1] - scale[..., 0]) * area)
    low, high = np.moveaxis(np.log(ratio), -1, 0)
    aspect = np.exp(low + (high - low) * shape)
    rows, columns = np.rint(np.sqrt(pixels / aspect)), np.rint(np.sqrt(pixels * aspect))
    fits = (rows >= 1) & (rows <= height) & (columns >= 1) & (columns <= width)
    return np.stack([rows, columns], axis=-1), fits
