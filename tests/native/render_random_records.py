"""Render random records with a given library: run by test_sanitizers.py in a process of its own.

Usage: render_random_records.py LIBRARY COUNT MODE, where MODE is "right", or "short source" or
"short output" for memory that is one byte too short, which a sanitizer must see.

Every image lies in a block of malloc of exactly its size, so that no byte around it may be read.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from view_cases import random_boxes, records_of

from ssl_views import native
from ssl_views.pixels import PixelBatch
from ssl_views.view_records import Rendering

GUARD, FILL = 128, 0xA5  # bytes around memory to write to
DTYPES = (torch.float32, torch.bfloat16, torch.uint8)
LARGE = ((300, 5), (3, 700), (224, 224), (1, 2000), (2000, 1))
NUM_VIEWS = 8

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


def images_in_blocks(rng, sizes, channels, missing=0):
    """Put random images into a block of malloc each, the last `missing` bytes too short."""
    addresses = []
    for i, (height, width) in enumerate(sizes):
        count = height * width * channels - (missing if i == len(sizes) - 1 else 0)
        addresses.append(libc.malloc(count))
        ctypes.memmove(addresses[-1], rng.bytes(count), count)
    heights, widths = np.array(sizes, dtype=np.int64).T
    return PixelBatch(np.array(addresses, dtype=np.int64), heights, widths, channels, None)


def free(pixels):
    for address in pixels.address.tolist():
        libc.free(address)


def random_rendering(rng, channels):
    size = 224 if rng.random() < 0.002 else int(rng.integers(1, 49))
    dtype = DTYPES[rng.integers(3)]
    normalized = dtype != torch.uint8 and rng.random() < 0.5
    largest = size if rng.random() < 0.2 else min(size, 8)
    return Rendering(
        size,
        ("bilinear", "bicubic")[rng.integers(2)],
        2 * int(rng.integers(largest)) + 1,
        (0.4,) * channels if normalized else None,
        (0.3,) * channels if normalized else None,
        dtype,
        bool(rng.integers(2)),
    )


def guarded_output(rng, shape, rendering):
    """Make room for views at any place, and return it with the bytes around it.

    Sanitizers do not see what is written by some instructions, such as past the caches.
    """
    num_images, num_views, channels, size, _ = shape
    value = rendering.dtype.itemsize
    count = num_images * num_views * channels * size * size
    start = GUARD + value * int(rng.integers(17))
    memory = torch.full((start + count * value + GUARD,), FILL, dtype=torch.uint8)
    flat = torch.frombuffer(memory.numpy(), dtype=rendering.dtype, count=count, offset=start)
    if rendering.channels_last:
        out = flat.view(num_images, num_views, size, size, channels).permute(0, 1, 4, 2, 3)
    else:
        out = flat.view(shape)
    return out, memory[:start], memory[start + count * value :]


def render_some(rng, instruction_set):
    """Render one batch and return how many views it had."""
    channels = int(rng.choice([1, 2, 3, 3, 3, 3, 4, 5]))
    sizes = [tuple(map(int, rng.integers(1, 81, 2))) for _ in range(rng.integers(1, 7))]
    if rng.random() < 0.02:
        sizes[0] = LARGE[rng.integers(len(LARGE))]
    pixels = images_in_blocks(rng, sizes, channels)
    boxes = random_boxes(rng, sizes, NUM_VIEWS)
    boxes[:, 0] = [(0, 0, *size) for size in sizes]
    boxes[:, 1] = [(height - 1, width - 1, 1, 1) for height, width in sizes]
    records = records_of("all", boxes, rng, channels, largest_sigma=float(rng.choice([1, 10])))
    rendering = random_rendering(rng, channels)
    out, guards = None, ()
    if rng.random() < 0.5:
        shape = (len(sizes), NUM_VIEWS, channels, rendering.size, rendering.size)
        out, *guards = guarded_output(rng, shape, rendering)
    views = native.render_native(
        pixels,
        records,
        rendering,
        num_threads=int(rng.integers(1, 5)),
        out=out,
        instruction_set=instruction_set,
    )
    assert torch.isfinite(views.float()).all()
    assert all((guard == FILL).all() for guard in guards), "bytes around the views were changed"
    free(pixels)
    return records.flip.size


def render_too_short(rng, short):
    """Render a whole image with one byte missing, of the image or of the memory to write to."""
    pixels = images_in_blocks(rng, [(13, 17)], 3, missing=int(short == "source"))
    records = records_of("crop", np.array([[(0, 0, 13, 17)]], dtype=np.int32), rng)
    count = 3 * 9 * 9 * 4
    block = libc.malloc(count - (short == "output"))
    memory = (ctypes.c_uint8 * count).from_address(block)
    out = torch.frombuffer(memory, dtype=torch.float32).view(1, 1, 3, 9, 9)
    native.render_native(pixels, records, Rendering(9), out=out)


def main(library, count, mode):
    native.LIBRARY = Path(library)
    rng = np.random.default_rng(0)
    if mode.startswith("short"):
        render_too_short(rng, mode.split()[1])
        print("nothing was seen")  # noqa: T201
        return
    for instruction_set in native.instruction_sets():
        rendered = 0
        while rendered < int(count):
            rendered += render_some(rng, instruction_set)
        print(instruction_set, rendered, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
