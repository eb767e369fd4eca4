"""Records of views, and the torch engine that renders them.

A record says everything about a view; rendering is a pure function of (pixels, record). The meaning
of each operation is that of `torchvision.transforms.v2.functional` on float tensors in [0, 1], with
antialias.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_LUMA = (0.2989, 0.587, 0.114)
_CACHE_BYTES = 2**20  # views are rendered in chunks that stay in a CPU cache


@dataclass
class ViewRecords:
    """What was drawn for B images of V views each, as arrays with leading shape (B, V).

    Attributes:
        box: (B, V, 4) int64, crop in source pixels: top, left, height, width.
        flip: bool, horizontal flip after the crop.
        order: (B, V, 4) int64, the colour operations in the order applied (0 brightness, 1
            contrast, 2 saturation, 3 hue; -1 none).
        factor: (B, V, 4) float64, factor of brightness, contrast, saturation (1 changes nothing)
            and hue (turns of the colour circle, 0 changes nothing).
        grayscale: bool, grey in every channel.
        blur_sigma: float64, standard deviation of the blur in output pixels; 0 for none.
        solarize: bool, invert pixels of at least 0.5.
    """

    box: NDArray[np.int64]
    flip: NDArray[np.bool_]
    order: NDArray[np.int64]
    factor: NDArray[np.float64]
    grayscale: NDArray[np.bool_]
    blur_sigma: NDArray[np.float64]
    solarize: NDArray[np.bool_]

    def rows(self, images: Sequence[int]) -> "ViewRecords":
        """Return the records of some of the images."""
        picked = np.asarray(images)
        return ViewRecords(*(getattr(self, field.name)[picked] for field in fields(self)))


def clean_records(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> ViewRecords:
    """Return one unchanged view per image: the largest centred square (V = 1)."""
    count, side = len(heights), np.minimum(heights, widths)
    box = np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=-1)
    no, shape = np.zeros((count, 1), dtype=np.bool_), (count, 1, 4)
    order, factor = np.full(shape, -1, dtype=np.int64), np.ones(shape)
    return ViewRecords(box[:, None], no, order, factor, no, np.zeros((count, 1)), no)


def render(
    images: Sequence[Tensor],
    records: ViewRecords,
    size: int,
    *,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    blur_kernel_size: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Render every view of every image.

    Args:
        images: B uint8 tensors (C, H, W); sizes may differ, C may not. Equal sizes in one batch are
            fastest.
        records: of the same B images.
        size: side S of a view, in pixels.
        interpolation: of the crop-resize, always antialiased.
        blur_kernel_size: odd number of pixels of the blur kernel.
        mean: per channel, in [0, 1]; with `std`, normalize_channels at the end.
        std: per channel.

    Returns:
        (B, V, C, S, S) float32 on the images' device; in [0, 1] unless normalized.

    Source:
        torchvision 0.20 `transforms.v2.functional`: resized_crop(antialias=True), horizontal_flip,
        adjust_*, rgb_to_grayscale, gaussian_blur, solarize, normalize, in this order.

    Differs from source:
        Bicubic results are clamped to [0, 1] at once; torchvision does so for uint8 only. Contrast
        of images that do not have 3 channels pivots on the mean of all channels.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(i)
    num_views, channels = records.flip.shape[1], images[0].shape[0]
    views = torch.empty(
        (len(images), num_views, channels, size, size), device=images[0].device, dtype=torch.float32
    )
    for shape, group in groups.items():
        floats = max(views[0].numel(), math.prod(shape))
        at_once = max(1, _CACHE_BYTES // (4 * floats)) if views.device.type == "cpu" else len(group)
        for start in range(0, len(group), at_once):
            members = group[start : start + at_once]
            chunk, part = torch.stack([images[i] for i in members]), records.rows(members)
            flat = _crop_resize(chunk, part, size, interpolation).flatten(0, 1)
            _color(flat, part)
            _each(flat, part.grayscale, lambda x, rows: _gray(x).expand_as(x))
            _blur(flat, part.blur_sigma, blur_kernel_size)
            _each(flat, part.solarize, lambda x, rows: torch.where(x >= 0.5, 1 - x, x))
            if mean is not None and std is not None:
                flat.sub_(torch.tensor(mean, device=flat.device).view(-1, 1, 1))
                flat.div_(torch.tensor(std, device=flat.device).view(-1, 1, 1))
            views[members] = flat.unflatten(0, (len(members), num_views))
    return views


def _each(
    views: Tensor, chosen: NDArray[np.bool_], operation: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Replace the chosen rows of (N, C, S, S) by operation(rows, row numbers)."""
    rows = torch.from_numpy(np.flatnonzero(chosen.reshape(-1))).to(views.device)
    if len(rows):
        views[rows] = operation(views[rows], rows)


def _resize_weights(start: Tensor, length: Tensor, source: int, size: int, cubic: bool) -> Tensor:
    """Weights (N, size, source) of an antialiased resize of [start, start + length)."""
    scale = (length / size)[:, None, None]
    center = start[:, None, None] + scale * (torch.arange(size, device=start.device) + 0.5)[:, None]
    pixel = torch.arange(source, device=start.device) + 0.5
    distance = ((pixel - center) / scale.clamp_min(1)).abs()
    if cubic:  # Keys' kernel with a = -0.5, as in every antialiased resize
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    else:
        weights = (1 - distance).clamp_min(0)
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])
    weights = weights * inside[:, None, :]
    return weights / weights.sum(dim=-1, keepdim=True)


def _crop_resize(images: Tensor, records: ViewRecords, size: int, interpolation: str) -> Tensor:
    """Crop, resize and flip (B, C, H, W) uint8 into (B, V, C, size, size) float32."""
    cubic = interpolation == "bicubic"
    box = torch.from_numpy(records.box.reshape(-1, 4)).double().to(images.device)
    top, left, height, width = box.unbind(-1)
    rows = _resize_weights(top, height, images.shape[2], size, cubic)
    columns = _resize_weights(left, width, images.shape[3], size, cubic)
    flip = torch.from_numpy(records.flip.reshape(-1, 1, 1)).to(images.device)
    columns = torch.where(flip, columns.flip(1), columns)
    shape = (len(images), -1)
    rows, columns = rows.float().unflatten(0, shape), columns.float().unflatten(0, shape)
    source = images.float().div_(255)[:, None]
    views = torch.matmul(
        torch.matmul(rows[:, :, None], source), columns[:, :, None].transpose(-1, -2)
    )
    return views.clamp_(0, 1) if cubic else views


def _gray(views: Tensor) -> Tensor:
    """Luma of RGB, or the mean of another number of channels: (N, C, S, S) -> (N, 1, S, S)."""
    if views.shape[1] != 3:
        return views.mean(dim=1, keepdim=True)
    luma = torch.tensor(_LUMA, device=views.device).view(3, 1, 1)
    return (views * luma).sum(dim=1, keepdim=True)


def _color(views: Tensor, records: ViewRecords) -> None:
    """Apply the colour operations of every view in its own order, in place."""
    order = records.order.reshape(-1, 4)
    factor = torch.from_numpy(records.factor.reshape(-1, 4)).float().to(views.device)
    for position in range(4):
        for operation in (BRIGHTNESS, CONTRAST, SATURATION, HUE):

            def apply(x: Tensor, rows: Tensor, operation: int = operation) -> Tensor:
                amount = factor[rows, operation].view(-1, 1, 1, 1)
                if operation == HUE:
                    return _shift_hue(x, amount)
                if operation == BRIGHTNESS:
                    return (x * amount).clamp_(0, 1)
                pivot = _gray(x)
                if operation == CONTRAST:
                    pivot = pivot.mean(dim=(2, 3), keepdim=True)
                return (amount * x + (1 - amount) * pivot).clamp_(0, 1)

            _each(views, order[:, position] == operation, apply)


def _shift_hue(views: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of RGB views through HSV; `turns` is in [-0.5, 0.5]."""
    red, green, blue = views.unbind(1)
    value, low = views.amax(dim=1), views.amin(dim=1)
    chroma = value - low
    saturation = chroma / torch.where(value == 0, 1.0, value)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = (hue / 6 + turns[:, 0]) % 1.0
    # A channel of RGB is v - v s max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6, n = 5, 3, 1.
    offset = torch.tensor([5.0, 3.0, 1.0], device=views.device).view(1, 3, 1, 1)
    k = (offset + 6 * hue[:, None]) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return (value[:, None] * (1 - saturation[:, None] * ramp)).clamp_(0, 1)


def _blur(views: Tensor, sigmas: NDArray[np.float64], kernel_size: int) -> None:
    """Blur each view with its own sigma, reflecting at the border, in place."""
    sigma = torch.from_numpy(sigmas.reshape(-1)).float().to(views.device)
    half = kernel_size // 2
    offset = torch.arange(-half, half + 1, device=views.device)

    def blur(x: Tensor, rows: Tensor) -> Tensor:
        kernel = torch.exp(-0.5 * (offset / sigma[rows, None]) ** 2)
        kernel = kernel / kernel.sum(dim=1, keepdim=True)
        weight = kernel.repeat_interleave(x.shape[1], dim=0)[:, None]
        padded = F.pad(x, (half, half, half, half), mode="reflect").flatten(0, 1)[None]
        blurred = F.conv2d(padded, weight[:, :, :, None], groups=len(weight))
        blurred = F.conv2d(blurred, weight[:, :, None, :], groups=len(weight))
        return blurred.view_as(x)

    _each(views, sigmas > 0, blur)
