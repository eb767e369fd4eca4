"""The torch engine: renders batches of views with tensor operations, on any device."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_views.view_records import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    LUMA,
    SATURATION,
    Rendering,
    ViewRecords,
    check_records,
)

_CACHE_BYTES = 2**20  # views are rendered in chunks that stay in a CPU cache


def render_torch(images: Sequence[Tensor], records: ViewRecords, rendering: Rendering) -> Tensor:
    """Render every view of every image.

    Args:
        images: B uint8 tensors (C, H, W) on one device; sizes may differ, C may not. Equal sizes in
            one batch are fastest.
        records: of the same B images.
        rendering: what the views share.

    Returns:
        (B, V, C, S, S) on the images' device; in [0, 1] (or 0 to 255) unless normalized.

    Raises:
        ValueError: on records that do not fit the images.

    Source:
        As the native engine, see `native.render_native`; also where it differs.
    """
    sizes = np.array([image.shape[1:] for image in images])
    check_records(records, sizes[:, 0], sizes[:, 1], images[0].shape[0], rendering)
    device_type, size = images[0].device.type, rendering.size
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(i)
    num_views, channels = records.flip.shape[1], images[0].shape[0]
    shape = (len(images), num_views, channels, size, size)
    views = torch.empty(shape, device=images[0].device, dtype=rendering.dtype)
    with torch.autocast(device_type, enabled=False):
        for image_shape, group in groups.items():
            floats = num_views * max(channels * size * size, math.prod(image_shape))
            at_once = len(group)
            if device_type == "cpu":
                at_once = max(1, _CACHE_BYTES // (4 * floats))
            for start in range(0, len(group), at_once):
                members = group[start : start + at_once]
                chunk = torch.stack([images[i] for i in members])
                views[members] = _render_equal_sizes(chunk, records.images(members), rendering)
    if rendering.channels_last:
        return views.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    return views


def _render_equal_sizes(images: Tensor, records: ViewRecords, rendering: Rendering) -> Tensor:
    flat = _crop_resize(images, records, rendering.size, rendering.interpolation).flatten(0, 1)
    _color(flat, records)
    _each(flat, records.grayscale, lambda x, rows: _gray(x).expand_as(x))
    _blur(flat, records.blur_sigma, rendering.blur_kernel_size)
    _each(flat, records.solarize, lambda x, rows: torch.where(x >= 0.5, 1 - x, x))
    if rendering.dtype == torch.uint8:
        flat = (flat * 255 + 0.5).clamp_(0, 255)
    elif rendering.mean is not None and rendering.std is not None:
        flat.sub_(torch.tensor(rendering.mean, device=flat.device).view(-1, 1, 1))
        flat.div_(torch.tensor(rendering.std, device=flat.device).view(-1, 1, 1))
    return flat.to(rendering.dtype).unflatten(0, (len(images), -1))


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
    luma = torch.tensor(LUMA, device=views.device).view(3, 1, 1)
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


def _blur(views: Tensor, sigmas: NDArray[np.float32], kernel_size: int) -> None:
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
