"""The choice between the engines that render views."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Literal

from torch import Tensor

from ssl_views.native import instruction_sets, render_native, why_missing
from ssl_views.pixels import PixelBatch, check_images
from ssl_views.torch_engine import render_torch
from ssl_views.view_records import Rendering, ViewRecords

Engine = Literal["auto", "native", "torch"]
ENGINES: tuple[Engine, ...] = ("auto", "native", "torch")
logger = logging.getLogger(__name__)


def engine_name(engine: Engine = "auto") -> str:
    """Say which engine renders views on the CPU, with its instruction set."""
    if engine == "torch" or why_missing() is not None:
        return "torch"
    return f"native ({instruction_sets()[-1]})"


@cache
def _say_once(reason: str) -> None:
    logger.warning(
        "Views are rendered by the torch engine, many times slower than the native one: %s.", reason
    )


def render(
    images: Sequence[Tensor] | PixelBatch,
    records: ViewRecords,
    rendering: Rendering,
    *,
    engine: Engine = "auto",
    num_threads: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Render every view of every image.

    Args:
        images: B uint8 tensors (C, H, W), or a PixelBatch; sizes may differ, C may not.
        records: of the same B images.
        rendering: what the views share.
        engine: "native" on the CPU, "torch" on the images' device; "auto" is native for images on
            the CPU, where it was built.
        num_threads: of the native engine; torch has its own setting.
        out: memory to write to, of the result's shape, dtype and layout.

    Returns:
        (B, V, C, S, S); in [0, 1] (or 0 to 255) unless normalized.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {ENGINES}; got {engine!r}. Leave it out.")
    if num_threads < 1:
        raise ValueError(
            f"num_threads must be at least 1; got {num_threads}. Leave it out for one."
        )
    if engine == "auto":
        reason = why_missing()
        on_cpu = isinstance(images, PixelBatch) or all(x.device.type == "cpu" for x in images)
        if on_cpu and reason is not None:
            _say_once(reason)
        engine = "native" if on_cpu and reason is None else "torch"
    if engine == "native":
        pixels = images if isinstance(images, PixelBatch) else PixelBatch.of(images)
        return render_native(pixels, records, rendering, num_threads=num_threads, out=out)
    tensors = images.tensors() if isinstance(images, PixelBatch) else images
    check_images(tensors)
    views = render_torch(tensors, records, rendering)
    if out is None:
        return views
    if out.shape != views.shape or out.dtype != views.dtype:
        raise ValueError(
            f"out must be {views.dtype} {tuple(views.shape)}; got {out.dtype} {tuple(out.shape)}. "
            "Leave it out."
        )
    return out.copy_(views)
