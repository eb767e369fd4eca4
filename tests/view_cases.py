"""Images, records and torchvision's rendering of them, for the tests of every engine."""

from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from torchvision.transforms import InterpolationMode

from ssl_views import ViewRecipe
from ssl_views.native import render_native
from ssl_views.pixels import PixelBatch
from ssl_views.view_records import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Rendering,
    ViewRecords,
)

ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
COLORS = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE}
OPERATIONS = ("crop", "flip", *COLORS, "grayscale", "blur", "solarize", "all")
FEW_CHANNELS = ("crop", "flip", "brightness", "contrast", "blur", "solarize", "all")


def random_images(count, height, width, channels=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return list(
        torch.randint(0, 256, (count, channels, height, width), generator=g, dtype=torch.uint8)
    )


def images_of(sizes, channels=3, seed=0):
    """One random image per (height, width)."""
    return [random_images(1, *size, channels, seed + i)[0] for i, size in enumerate(sizes)]


def extreme_boxes(height, width):
    """Boxes (V, 4): whole, single pixels, a row, a column, halves, and something in between."""
    h, w = height - 1, width - 1
    return np.array(
        [
            (0, 0, height, width),
            (h // 2, w // 2, 1, 1),
            *((0, 0, 1, 1), (0, w, 1, 1), (h, 0, 1, 1), (h, w, 1, 1)),
            *((h // 2, 0, 1, width), (h, 0, 1, width)),
            *((0, w // 2, height, 1), (0, w, height, 1)),
            (h // 3, w // 4, height - h // 3, max(1, width - w // 2)),
        ],
        dtype=np.int32,
    )


def random_boxes(rng, sizes, num_views):
    """Boxes (B, V, 4) anywhere in images of these sizes."""
    whole = np.broadcast_to(np.array(sizes)[:, None], (len(sizes), num_views, 2))
    shape = rng.integers(1, whole + 1)
    return np.concatenate([rng.integers(0, whole - shape + 1), shape], -1).astype(np.int32)


def make_records(box, **changes):
    """Records of boxes (B, V, 4) that change nothing else, but for what is given."""
    shape = box.shape[:2]
    values = {
        "flip": False,
        "order": np.int8(-1),
        "factor": np.float32([1, 1, 1, 0]),
        "grayscale": False,
        "blur_sigma": np.float32(0),
        "solarize": False,
    } | changes
    tails = {"order": (4,), "factor": (4,)}
    full = {
        name: np.array(np.broadcast_to(value, (*shape, *tails.get(name, ()))))
        for name, value in values.items()
    }
    return ViewRecords(box, **full)


def records_of(operation, box, rng, channels=3, largest_sigma=3.0):
    """Records of one operation with random numbers, or of "all" with random choices."""
    shape = box.shape[:2]
    high = np.array([2, 2, 2, 0.5])
    factor = rng.uniform([0, 0, 0, -0.5], high, (*shape, 4)).astype(np.float32)
    sigma = rng.uniform(0.05, largest_sigma, shape).astype(np.float32)
    if operation == "crop":
        return make_records(box)
    if operation in COLORS:
        first = COLORS[operation]
        order = np.array([first, -1, -1, -1], dtype=np.int8)
        return make_records(box, factor=factor, order=order)
    if operation == "blur":
        return make_records(box, blur_sigma=sigma)
    if operation != "all":
        return make_records(box, **{operation: True})
    order = rng.permuted(np.broadcast_to(np.arange(4), (*shape, 4)), axis=-1)
    order[rng.random(order.shape) < 0.2] = -1
    if channels != 3:
        order[order >= SATURATION] = -1
    return ViewRecords(
        box,
        rng.random(shape) < 0.5,
        order.astype(np.int8),
        factor,
        (rng.random(shape) < 0.2) & (channels == 3),
        np.where(rng.random(shape) < 0.5, sigma, np.float32(0)),
        rng.random(shape) < 0.3,
    )


def with_torchvision(image, records, at, recipe_or_rendering):
    """Render one view by torchvision's own functions, on floats.

    Where torchvision knows 1 and 3 channels only, brightness and contrast are written out.
    """
    rendering = recipe_or_rendering
    if isinstance(rendering, ViewRecipe):
        recipe = rendering
        group = next(group for group in recipe.groups if at[1] in group.views)
        rendering = Rendering(
            group.size, recipe.interpolation, group.kernel_size, recipe.mean, recipe.std
        )
    size, mode = [rendering.size] * 2, InterpolationMode(rendering.interpolation)
    cropped = tv.crop(image, *map(int, records.box[at])).float() / 255
    x = tv.resize(cropped, size, mode, antialias=True)
    if rendering.interpolation == "bicubic":
        x = x.clamp(0, 1)
    if records.flip[at]:
        x = tv.horizontal_flip(x)
    for operation in records.order[at]:
        if operation < 0:
            continue
        factor = float(records.factor[at][operation])
        if len(x) in (1, 3):
            x = ADJUST[operation](x, factor)
        elif operation == BRIGHTNESS:
            x = (factor * x).clamp(0, 1)
        else:
            assert operation == CONTRAST
            x = (factor * x + (1 - factor) * x.mean()).clamp(0, 1)
    if records.grayscale[at]:
        x = tv.rgb_to_grayscale(x, 3)
    if records.blur_sigma[at] > 0:
        kernel_size = [rendering.blur_kernel_size] * 2
        x = tv.gaussian_blur(x, kernel_size, [float(records.blur_sigma[at])] * 2)
    if records.solarize[at]:
        x = tv.solarize(x, 0.5)
    if rendering.mean is None:
        return x
    return tv.normalize(x, list(rendering.mean), list(rendering.std))


def all_with_torchvision(images, records, recipe_or_rendering):
    """Render all views of images, (B, V, C, S, S)."""
    num_images, num_views = records.flip.shape
    return torch.stack(
        [
            torch.stack(
                [
                    with_torchvision(images[i], records, (i, v), recipe_or_rendering)
                    for v in range(num_views)
                ]
            )
            for i in range(num_images)
        ]
    )


def gain(records):
    """How much the colour operations of every view, (B, V), can enlarge an error of its pixels."""
    brightness, contrast, saturation, _ = np.moveaxis(records.factor.astype(float), -1, 0)
    each = (brightness, contrast, 2 * saturation - 1, np.full(brightness.shape, 2.0))
    product = np.ones(brightness.shape)
    for operation, factor in enumerate(each):
        used = (records.order == operation).any(axis=-1)
        product *= np.where(used, np.maximum(factor, 1), 1)
    return torch.from_numpy(product)


@dataclass(frozen=True)
class Case:
    """Images with their records, and what torchvision makes of them."""

    images: list
    records: ViewRecords
    rendering: Rendering
    expected: torch.Tensor

    @classmethod
    def of(cls, images, records, rendering):
        return cls(images, records, rendering, all_with_torchvision(images, records, rendering))

    def native(self, **options):
        return native(self.images, self.records, self.rendering, **options)


def native(images, records, rendering, **options):
    return render_native(PixelBatch.of(images), records, rendering, **options)


def assert_within(actual, expected, atol):
    """Compare views (B, V, C, S, S); `atol` may differ between them. Names the worst view."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().flatten(2).amax(-1).nan_to_num(torch.inf)
    excess = error / atol
    worst = tuple(map(int, np.unravel_index(int(excess.argmax()), error.shape)))
    assert excess[worst] <= 1, f"view {worst} is off by {error[worst]:.3g}"
