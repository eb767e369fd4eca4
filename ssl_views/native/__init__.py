"""The native engine: renders views on the CPU, each end to end in cache.

`views.cpp` is compiled once per instruction set when the package is installed with a C++ compiler;
the widest that the processor has is used. Nothing is loaded before it is first asked for.
"""

import ctypes
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_views.pixels import PixelBatch
from ssl_views.view_records import Rendering, ViewRecords, check_records

LIBRARY = Path(__file__).with_name("_views" + (sysconfig.get_config_var("SHLIB_SUFFIX") or ".so"))
_INTERFACE = 2  # SSL_VIEWS_INTERFACE of views.h
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}


class _Batch(ctypes.Structure):
    """SslViewsBatch of views.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_images", "num_views", "channels", "size")),
        *((n, ctypes.c_int64) for n in ("bicubic", "blur_kernel_size", "dtype", "channels_last")),
        *((name, ctypes.c_void_p) for name in ("pixels", "heights", "widths")),
        *((name, ctypes.c_void_p) for name in ("box", "flip", "order", "factor", "grayscale")),
        *((name, ctypes.c_void_p) for name in ("blur_sigma", "solarize", "scale", "shift")),
        ("views", ctypes.c_void_p),
    )


@cache
def _load() -> Any:
    """Load the library, or say in a sentence why not."""
    if not LIBRARY.is_file():
        return "it was not built, which takes a C++17 compiler (GCC or Clang) at installation"
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return f"it cannot be loaded ({error}); install the package again"
    if library.ssl_views_interface() != _INTERFACE:
        return "it was built from other sources; install the package again"
    library.ssl_views_isa.restype = ctypes.c_char_p
    number, pointer, word = ctypes.c_int64, ctypes.c_void_p, ctypes.c_uint32
    library.ssl_views_philox.argtypes = [pointer, number, number, number, word, word, pointer]
    library.ssl_views_philox.restype = None
    library.ssl_views_render.argtypes = [ctypes.POINTER(_Batch), ctypes.c_int, ctypes.c_int]
    return library


def why_missing() -> str | None:
    """Return why the engine cannot be used, or None where it can."""
    library = _load()
    return library if isinstance(library, str) else None


def philox_words(
    seed: int, epoch: int, indices: NDArray[np.uint64], num_views: int, num_blocks: int
) -> NDArray[np.uint32] | None:
    """Return (B, V, 4 * num_blocks) random words, see `counter_random`; None without a library."""
    library = _load()
    if isinstance(library, str):
        return None
    index = np.ascontiguousarray(indices, dtype=np.uint64)
    words = np.empty((len(index), num_views, 4 * num_blocks), dtype=np.uint32)
    library.ssl_views_philox(
        index.ctypes.data, len(index), num_views, num_blocks, seed, epoch, words.ctypes.data
    )
    return words


def instruction_sets() -> list[str]:
    """Return what this processor can use, from the plainest to the widest."""
    library = _load()
    if isinstance(library, str):
        return []
    return [library.ssl_views_isa(i).decode() for i in range(library.ssl_views_num_usable())]


def render_native(
    images: PixelBatch,
    records: ViewRecords,
    rendering: Rendering,
    *,
    num_threads: int = 1,
    out: Tensor | None = None,
    instruction_set: str | None = None,
) -> Tensor:
    """Render every view of every image.

    Args:
        images: B decoded images.
        records: of the same B images.
        rendering: what the views share.
        num_threads: threads in this process; the pixels do not depend on it.
        out: memory to write to, of the result's shape, dtype and layout.
        instruction_set: one of `instruction_sets()`; the widest by default. Results of two differ
            by rounding.

    Returns:
        (B, V, C, S, S), in [0, 1] (or 0 to 255) unless normalized.

    Raises:
        ValueError: on records that do not fit the images, or if the engine is missing.

    Source:
        torchvision 0.20 `transforms.v2.functional`: resized_crop(antialias=True), horizontal_flip,
        adjust_*, rgb_to_grayscale, gaussian_blur, solarize, normalize.

    Differs from source:
        Bicubic results are clamped to [0, 1] at once; torchvision does so for uint8 only. Contrast
        of images that do not have 3 channels pivots on the mean of all channels.
    """
    library = _load()
    if isinstance(library, str):
        raise ValueError(
            f"the native engine must be there to be used; it is missing: {library}. Leave out "
            "engine='native'."
        )
    available = instruction_sets()
    if instruction_set is not None and instruction_set not in available:
        raise ValueError(
            f"instruction_set must be one of {available}; got {instruction_set!r}. Leave it out "
            "for the widest."
        )
    check_records(records, images.heights, images.widths, images.num_channels, rendering)
    num_images, num_views = records.flip.shape
    channels, size = images.num_channels, rendering.size
    shape = (num_images, num_views, channels, size, size)
    views = _empty(shape, rendering) if out is None else _checked(out, shape, rendering)
    scale, shift = _affine(rendering, channels)
    keep = {
        "pixels": images.address,
        "heights": images.heights,
        "widths": images.widths,
        **vars(records),
        "scale": scale,
        "shift": shift,
    }
    batch = _Batch(
        num_images=num_images,
        num_views=num_views,
        channels=channels,
        size=size,
        bicubic=rendering.interpolation == "bicubic",
        blur_kernel_size=rendering.blur_kernel_size,
        dtype=_DTYPES[rendering.dtype],
        channels_last=rendering.channels_last,
        views=views.data_ptr(),
        **{name: _contiguous(keep, name) for name in keep},
    )
    isa = len(available) - 1 if instruction_set is None else available.index(instruction_set)
    if library.ssl_views_render(batch, isa, num_threads):
        raise MemoryError("not enough memory to render views. Use smaller batches or crops.")
    return views


def _affine(rendering: Rendering, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what a pixel in [0, 1] is multiplied by at last, and what is added, per channel."""
    scale, shift = np.ones(channels), np.zeros(channels)
    if rendering.dtype == torch.uint8:
        scale, shift = scale * 255, shift + 0.5  # the engine rounds down
    elif rendering.mean is not None and rendering.std is not None:
        scale = scale / np.asarray(rendering.std)
        shift = -np.asarray(rendering.mean) * scale
    return scale.astype(np.float32), shift.astype(np.float32)


def _contiguous(arrays: dict[str, NDArray[Any]], name: str) -> int:
    """Return the address of an array, which is replaced by a contiguous copy where it is not."""
    arrays[name] = np.ascontiguousarray(arrays[name])
    return arrays[name].ctypes.data


def _empty(shape: tuple[int, ...], rendering: Rendering) -> Tensor:
    """Allocate (B, V, C, S, S), with the channels of a pixel side by side if so rendered."""
    if not rendering.channels_last:
        return torch.empty(shape, dtype=rendering.dtype)
    num_images, num_views, channels, size, _ = shape
    memory = torch.empty((num_images, num_views, size, size, channels), dtype=rendering.dtype)
    return memory.permute(0, 1, 4, 2, 3)


def _checked(out: Tensor, shape: tuple[int, ...], rendering: Rendering) -> Tensor:
    memory = out.permute(0, 1, 3, 4, 2) if rendering.channels_last and out.ndim == 5 else out
    if (
        out.shape != shape
        or out.dtype != rendering.dtype
        or out.device.type != "cpu"
        or not memory.is_contiguous()
    ):
        layout = "channels last" if rendering.channels_last else "contiguous"
        raise ValueError(
            f"out must be {rendering.dtype} {shape}, {layout}, on the CPU; got {out.dtype} "
            f"{tuple(out.shape)}, strides {out.stride()}, on {out.device}. Leave it out."
        )
    return out
