"""The torch engine: renders batches of views with tensor operations, on any device."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_views.torch_operations import ColorStep, ViewNumbers, render_views, view_numbers
from ssl_views.view_records import Rendering, ViewRecords, check_records

_CACHE_BYTES = 2**20  # on the CPU, views are rendered in chunks that stay in a cache
_DEVICE_BYTES = 2**29  # on an accelerator, in chunks of which its memory holds several
_failures: list[Exception] = []  # of torch.compile, in this process
logger = logging.getLogger(__name__)


def render_torch(images: Sequence[Tensor], records: ViewRecords, rendering: Rendering) -> Tensor:
    """Render every view of every image.

    On an accelerator the work is compiled with `torch.compile`, at the first call and again for
    other shapes, and the host does not wait for the device. Images of one size are fastest.

    Args:
        images: B uint8 tensors (C, H, W) on one device; sizes may differ, C may not.
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
    channels, device, size = images[0].shape[0], images[0].device, rendering.size
    check_records(records, sizes[:, 0], sizes[:, 1], channels, rendering)
    # Compiled code is made once per shape, which must not depend on what was drawn.
    numbers = view_numbers(records, rendering.blur_kernel_size, whole=device.type != "cpu")
    num_images, num_views = records.flip.shape
    views = _empty((num_images, num_views, channels, size, size), rendering, device)
    pixels = (_CACHE_BYTES if device.type == "cpu" else _DEVICE_BYTES) // (4 * channels)
    images_at_once = max(1, pixels // max(num_views * size**2, int(sizes.prod(axis=1).max())))
    views_at_once = max(1, min(num_views, pixels // size**2))
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for i in range(0, num_images, images_at_once):
            for v in range(0, num_views, views_at_once):
                part = (slice(i, i + images_at_once), slice(v, v + views_at_once))
                chunk = ViewNumbers(*(x[(..., *part)].flatten(-2) for x in numbers))
                render = _render_on_cpu if device.type == "cpu" else _render_on_accelerator
                render(views[part], images[part[0]], chunk, rendering)
    return views


def _empty(shape: tuple[int, ...], rendering: Rendering, device: torch.device) -> Tensor:
    if not rendering.channels_last:
        return torch.empty(shape, dtype=rendering.dtype, device=device)
    memory = torch.empty((*shape[:2], *shape[3:], shape[2]), dtype=rendering.dtype, device=device)
    return memory.permute(0, 1, 4, 2, 3)


def _render_on_cpu(
    out: Tensor, images: Sequence[Tensor], numbers: ViewNumbers, rendering: Rendering
) -> None:
    """Render the views of a chunk, with what these views need only."""
    if len(images) == 1:  # as little of a large image as possible
        top, left, height, width, _ = numbers.crop
        y, x = int(top.min()), int(left.min())
        bottom, right = int((top + height).max()), int((left + width).max())
        images = [images[0][:, y:bottom, x:right]]
        numbers = numbers._replace(crop=numbers.crop - torch.tensor([[y], [x], [0], [0], [0]]))
    if not numbers.blur[1:].any():
        numbers = numbers._replace(blur=numbers.blur[:1])
    solarize = bool(numbers.solarize.any())
    render_views(out, _side_by_side(images), numbers, rendering, numbers.steps(), solarize)


def _render_on_accelerator(
    out: Tensor, images: Sequence[Tensor], numbers: ViewNumbers, rendering: Rendering
) -> None:
    """Render the views of a chunk with one compiled function, whatever these views need."""
    every = (ColorStep(*(len(images[0]) == 3,) * 2, mean=True),) * len(numbers.color)
    pinned = (x.pin_memory() if out.is_cuda else x for x in numbers)
    numbers = ViewNumbers(*(x.to(out.device, non_blocking=True) for x in pinned))
    _compiled_or_not(out, _side_by_side(images), numbers, rendering, every, True)


def _compiled_or_not(*args: Any) -> None:
    """Call `render_views` compiled, or say why it cannot be compiled and call it as it is."""
    if _failures:
        return render_views(*args)
    try:
        return _compiled()(*args)
    except torch._dynamo.exc.TorchDynamoException as error:
        _failures.append(error)
        logger.warning("Views are rendered without torch.compile, several times slower: %s", error)
    return render_views(*args)


@cache
def _compiled() -> Any:
    return torch.compile(render_views)


def _side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Stack into (C, B, H, W), with zeros where other images are larger."""
    if all(image.shape == images[0].shape for image in images):
        return torch.stack(list(images), dim=1)
    height, width = (max(image.shape[dim] for image in images) for dim in (1, 2))
    shape = (len(images[0]), len(images), height, width)
    source = torch.zeros(shape, dtype=torch.uint8, device=images[0].device)
    for i, image in enumerate(images):
        source[:, i, : image.shape[1], : image.shape[2]] = image
    return source
