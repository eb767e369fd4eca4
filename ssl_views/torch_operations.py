"""Rendering as tensor functions: shapes and branches depend on shapes and static arguments only.

Views are planes (C, N, S, S) meanwhile, so that a channel of all views is one piece of memory. What
does not touch pixels is turned into a few numbers per view beforehand, with numpy: every colour
operation is then one weighted sum and a clamp, the same for all views.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_views.view_records import CONTRAST, HUE, LUMA, SATURATION, Rendering, ViewRecords


class ColorStep(NamedTuple):
    """What one colour step has to compute: for some of the views a hue, a grey, a mean."""

    hue: bool
    grey: bool
    mean: bool


class ViewNumbers(NamedTuple):
    """Records as float32 numbers, of views with leading shape (B, V) or flat (N,).

    Attributes:
        crop: (5, ...): top, left, height, width, flip.
        color: (P, 7, ...) for P steps: weights of a channel, the next, the one after, of the grey
            of a pixel, of the mean grey of the view, and of the sum of a pixel's largest and
            smallest channel; then 1 for a hue.
        blur: (K, ...): weights of the pixels at distance 0 to K - 1.
        solarize: (1, ...).
    """

    crop: Tensor
    color: Tensor
    blur: Tensor
    solarize: Tensor

    def steps(self) -> tuple[ColorStep, ...]:
        """Return what each colour step has to compute for these views."""
        used = self.color.flatten(2).any(dim=-1).tolist()
        return tuple(ColorStep(hue, grey, mean) for *_, grey, mean, _, hue in used)


def view_numbers(records: ViewRecords, kernel_size: int, whole: bool = False) -> ViewNumbers:
    """Return the numbers of records, on the CPU; `whole` with those that change nothing here."""
    box = np.moveaxis(records.box, -1, 0)
    numbers = (
        np.concatenate([box, records.flip[None]]),
        _color_numbers(records, whole),
        _blur_numbers(records.blur_sigma, kernel_size, whole),
        records.solarize[None],
    )
    return ViewNumbers(*(torch.from_numpy(array.astype(np.float32)) for array in numbers))


def _color_numbers(records: ViewRecords, whole: bool) -> NDArray[np.float64]:
    """Return (P, 7, B, V), see ViewNumbers: the operations in their order, and grayscale.

    A hue needs no angle. Let m and M be the smallest and largest channel of a pixel. Turning the
    hue by t in [0, 1] sixths of the circle makes red
        r - g + (2 t - 1) b + (1 - t) (m + M), clamped to [m, M],
    and likewise green and blue, cyclically: both sides are linear in the hue between its corners
    and equal there. Backwards, g and b change places, and a third of the circle moves the channels
    on by one.
    """
    order = np.moveaxis(records.order, -1, 0)
    gray = np.where(records.grayscale, SATURATION, -1)[None]
    operation = np.concatenate([order, gray])  # grey is a saturation of 0
    factor = np.take_along_axis(np.moveaxis(records.factor, -1, 0), order.clip(0), axis=0)
    factor = np.concatenate([factor, np.zeros_like(factor[:1])]).astype(np.float64)
    used = (operation >= 0).any(axis=(1, 2)) | whole
    operation, factor = operation[used], factor[used]
    hue = operation == HUE
    sixths = np.where(hue, 6 * factor, 0)
    thirds = np.rint(sixths / 2).astype(np.int64)
    rest = sixths - 2 * thirds
    weights = np.stack([np.ones_like(rest), 2 * (-rest).clip(0) - 1, 2 * rest.clip(0) - 1], axis=1)
    moved = (np.arange(3)[:, None, None] + thirds[:, None]) % 3
    numbers = np.zeros((len(operation), 7, *records.flip.shape))
    numbers[:, :3] = np.take_along_axis(weights, moved, axis=1) * hue[:, None]
    numbers[:, 0] += np.where(operation < 0, 1, factor) * ~hue
    numbers[:, 3] = (1 - factor) * (operation == SATURATION)
    numbers[:, 4] = (1 - factor) * (operation == CONTRAST)
    numbers[:, 5] = (1 - np.abs(rest)) * hue
    numbers[:, 6] = hue
    return numbers


def _blur_numbers(sigma: NDArray[np.float32], kernel_size: int, whole: bool) -> NDArray[np.float64]:
    """Return (K, B, V), see ViewNumbers; K is 1 where nothing is blurred."""
    distance = np.arange(kernel_size // 2 + 1 if sigma.any() or whole else 1)[:, None, None]
    with np.errstate(over="ignore"):
        weights = np.exp(-0.5 * (distance / sigma.clip(1e-30).astype(np.float64)) ** 2)
    return weights / (2 * weights.sum(axis=0) - 1)


def render_views(
    out: Tensor,
    source: Tensor,
    numbers: ViewNumbers,
    rendering: Rendering,
    steps: tuple[ColorStep, ...],
    solarize: bool,
) -> None:
    """Render N = B V views.

    Args:
        out: (B, V, C, S, S), written to.
        source: (C, B, H, W) uint8.
        numbers: of the N views, on the same device.
        rendering: what the views share.
        steps: P, what each colour step has to compute.
        solarize: whether any view is solarized.
    """
    bicubic = rendering.interpolation == "bicubic"
    views = _crop_resize(source, numbers.crop, rendering.size, bicubic)
    for step, weights in zip(steps, numbers.color, strict=True):
        views = _color(views, weights, step)
    if len(numbers.blur) > 1:
        views = _blur(views, numbers.blur)
    if solarize:
        inverted = (2 * views).sub_(1).clamp_min_(0)  # x - (2 x - 1) = 1 - x
        views = views.addcmul_(inverted, numbers.solarize[0, :, None, None], value=-1)
    if rendering.dtype == torch.uint8:
        views = views.mul_(255).add_(0.5).clamp_(0, 255)
    elif rendering.mean is not None and rendering.std is not None:
        for plane, mean, std in zip(views, rendering.mean, rendering.std, strict=True):
            plane.sub_(mean).mul_(1 / std)
    out.copy_(views.unflatten(1, out.shape[:2]).permute(1, 2, 0, 3, 4))


def _resize_weights(
    start: Tensor, length: Tensor, flip: Tensor | None, source: int, size: int, bicubic: bool
) -> Tensor:
    """Weights (N, size, source) of an antialiased resize of [start, start + length)."""
    index = torch.arange(size, device=start.device, dtype=start.dtype)
    if flip is not None:
        index = torch.where(flip[:, None] > 0, size - 1 - index, index)
    scale = (length / size)[:, None]
    center = scale * (index + 0.5) - 0.5
    pixel = torch.arange(source, device=start.device, dtype=start.dtype) - start[:, None]
    pixel = torch.where((pixel < 0) | (pixel >= length[:, None]), math.inf, pixel)
    distance = (pixel[:, None] - center[:, :, None]).abs_()
    distance = distance.mul_((1 / scale.clamp_min(1))[:, :, None])
    if bicubic:  # Keys' kernel with a = -0.5, as in every antialiased resize; both parts end in 0
        near, far = distance.clamp(max=1), distance.clamp(1, 2)
        weights = (1.5 * near - 2.5) * near**2 + 1
        weights += ((-0.5 * far + 2.5) * far - 4) * far + 2
    else:
        weights = distance.neg_().add_(1).clamp_min_(0)
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def _crop_resize(source: Tensor, crop: Tensor, size: int, bicubic: bool) -> Tensor:
    """Crop, resize and flip (C, B, H, W) uint8 into (C, N, size, size) float32."""
    channels, num_images, source_height, source_width = source.shape
    top, left, height, width, flip = crop
    rows = _resize_weights(top, height, None, source_height, size, bicubic).div_(255)
    columns = _resize_weights(left, width, flip, source_width, size, bicubic)
    rows = rows.view(num_images, -1, source_height)
    half = torch.matmul(rows, source.float()).view(channels, -1, size, source_width)
    views = torch.matmul(half, columns.transpose(1, 2))
    return views.clamp_(0, 1) if bicubic else views


def _color(views: Tensor, weights: Tensor, step: ColorStep) -> Tensor:
    """Apply one colour operation per view, see `_color_numbers`."""
    own, following, after, grey, mean, extremes, is_hue = weights[:, :, None, None]
    result = views * own
    if step.grey or step.mean:
        luma = LUMA if len(views) == 3 else (1 / len(views),) * len(views)
        pivot = views[0] * luma[0]
        for channel, weight in zip(views[1:], luma[1:], strict=True):
            pivot = pivot.add_(channel, alpha=weight)
        shift = mean * pivot.mean(dim=(1, 2), keepdim=True) if step.mean else 0
        result = result.add_(pivot.mul_(grey).add_(shift))
    if not step.hue:
        return result.clamp_(0, 1)
    low = torch.minimum(torch.minimum(views[0], views[1]), views[2])
    high = torch.maximum(torch.maximum(views[0], views[1]), views[2])
    both = (low + high).mul_(extremes)
    low, high = low.mul_(is_hue), high.mul_(is_hue).add_(1 - is_hue)
    for c in range(3):
        plane = result[c].addcmul_(views[(c + 1) % 3], following).add_(both)
        plane.addcmul_(views[(c + 2) % 3], after)
        torch.minimum(torch.maximum(plane, low, out=plane), high, out=plane)
    return result


def _blur(views: Tensor, weights: Tensor) -> Tensor:
    """Blur along both axes, reflecting at the border."""
    half, size = len(weights) - 1, views.shape[-1]
    padded = F.pad(views, (half, half, half, half), mode="reflect")
    for dim in (2, 3):
        blurred = padded.narrow(dim, half, size) * weights[0, :, None, None]
        for distance in range(1, half + 1):
            weight = weights[distance, :, None, None]
            for at in (half - distance, half + distance):
                blurred = blurred.addcmul_(padded.narrow(dim, at, size), weight)
        padded = blurred
    return padded
