"""Decoded images, kept in memory or in a file, so that an epoch decodes nothing."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ssl_views.data.dataset import MultiViewDataset
from ssl_views.data.decode import ImageError, image_size, naming_image
from ssl_views.pixels import PixelBatch

_AT_ONCE = 32
_FORMAT = 1
_PIXELS, _IMAGES, _STAMP = "pixels.bin", "images.npz", "cache.json"


class PixelCache:
    """The decoded uint8 pixels of the rows of a data set, one after the other.

    Attributes:
        num_bytes: of all pixels.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        indices: NDArray[np.uint64],
        num_channels: int,
    ) -> None:
        self._pixels = pixels
        self._heights, self._widths, self._indices = heights, widths, indices
        self.num_channels = num_channels
        sizes = heights * widths * num_channels
        self._offsets = np.cumsum(sizes) - sizes
        self.num_bytes = int(sizes.sum())

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._heights)

    def batch(self, rows: Sequence[int], num_channels: int) -> tuple[PixelBatch, list[int]]:
        """Return the images of some rows, and their indices."""
        if num_channels != self.num_channels:
            raise ValueError(
                f"the cache must have the channels of the recipe; got {self.num_channels} and "
                f"{num_channels}. Make it again."
            )
        at = np.asarray(rows)
        address = self._pixels.ctypes.data + self._offsets[at]
        pixels = PixelBatch(
            address, self._heights[at], self._widths[at], num_channels, self._pixels
        )
        return pixels, self._indices[at].tolist()

    @classmethod
    def of(
        cls,
        dataset: MultiViewDataset,
        num_channels: int,
        *,
        limit_bytes: int,
        folder: str | Path | None = None,
        num_threads: int = 1,
        on_size: Callable[[int], object] | None = None,
    ) -> "PixelCache":
        """Decode all images of a data set, or open what was stored for it.

        Args:
            dataset: the images.
            num_channels: C.
            limit_bytes: the pixels must not take more; nothing is decoded if they would.
            folder: where to store them; None for memory. What it holds is used again if it was made
                of the same rows (by the fingerprint of `datasets`) and channels, else replaced.
            num_threads: that decode.
            on_size: called with the bytes that the pixels take, before anything is decoded.

        Raises:
            ValueError: if the pixels would take too much, or the rows have no fingerprint.
            ImageError: with the index and path of an image that cannot be decoded.
        """
        dataset = MultiViewDataset(dataset.rows, dataset.image_column)
        if len(dataset) == 0:
            raise ValueError("a cache needs at least one image; got none. Check the data set.")
        path = None if folder is None else Path(folder)
        stamp: dict[str, Any] = {
            "format": _FORMAT,
            "num_channels": num_channels,
            "num_images": len(dataset),
        }
        if path is not None:
            stamp["fingerprint"] = _fingerprint(dataset.rows)
            stamp["image_column"] = dataset.image_column
            stored = _stored(path, stamp)
            if stored is not None:
                return cls(*stored, num_channels=num_channels)
        sizes = [size for part in _parts(dataset) for size in _sizes(dataset, part)]
        needed = sum(map(math.prod, sizes)) * num_channels
        if on_size is not None:
            on_size(needed)
        free = None if path is None else _free(path)
        if needed > limit_bytes or (free is not None and needed > free):
            room = f"{limit_bytes:,} are allowed" + ("" if free is None else f", {free:,} free")
            raise ValueError(
                f"the decoded images must fit into the cache; they take {needed:,} bytes, and "
                f"{room}. Raise the limit, or train without a cache."
            )
        heights, widths = np.array(sizes, dtype=np.int64).T
        pixels = _memory(path, needed)
        cache = cls(pixels, heights, widths, np.zeros(len(sizes), dtype=np.uint64), num_channels)
        with ThreadPoolExecutor(num_threads) as threads:
            list(threads.map(lambda part: cache._decode(dataset, part), _parts(dataset)))
        if path is not None:
            cast(np.memmap[Any, Any], pixels).flush()
            np.savez(path / _IMAGES, heights=heights, widths=widths, indices=cache._indices)
            unfinished = path / f"{_STAMP}.unfinished"
            unfinished.write_text(json.dumps(stamp))
            unfinished.replace(path / _STAMP)  # last: what has a stamp is whole
        return cache

    def _decode(self, dataset: MultiViewDataset, part: range) -> None:
        batch, indices = dataset.pixels(part, self.num_channels)
        self._indices[part] = np.array(indices, dtype=np.uint64)
        for row, image in zip(part, batch.owner, strict=True):
            expected = self._heights[row] * self._widths[row] * self.num_channels
            if image.size != expected:
                raise ImageError(
                    f"row {row} must decode to the size of its header; got {image.size} values for "
                    f"{expected}. Rows of a cache must not change."
                )
            # The header gives the size before a rotation by EXIF.
            self._heights[row], self._widths[row] = image.shape[:2]
            start = self._offsets[row]
            self._pixels[start : start + image.size] = image.reshape(-1)


def _parts(dataset: MultiViewDataset) -> list[range]:
    starts = range(0, len(dataset), _AT_ONCE)
    return [range(start, min(start + _AT_ONCE, len(dataset))) for start in starts]


def _sizes(dataset: MultiViewDataset, part: range) -> list[tuple[int, int]]:
    """Return the height and width of some images, from their headers."""
    values, indices = dataset.read(part)
    sizes = []
    for value, index in zip(values, indices, strict=True):
        with naming_image(value, index):
            sizes.append(image_size(value))
    return sizes


def _fingerprint(rows: Any) -> str:
    fingerprint = getattr(rows, "_fingerprint", None)
    if fingerprint is None:
        raise ValueError(
            "a cache on disk needs rows with a fingerprint, to know when it is out of date; got "
            f"{type(rows).__name__}. Use rows of datasets, or a cache in memory."
        )
    return str(fingerprint)


def _free(path: Path) -> int:
    """Return the free bytes of a folder's disk, with those of the cache that will be replaced."""
    old = path / _PIXELS
    while not path.exists():
        path = path.absolute().parent
    return shutil.disk_usage(path).free + (old.stat().st_size if old.is_file() else 0)


def _memory(path: Path | None, num_bytes: int) -> NDArray[np.uint8]:
    """Return memory for the pixels; in a file, one that is not a valid cache until it is full."""
    if path is None:
        return np.empty(num_bytes, dtype=np.uint8)
    path.mkdir(parents=True, exist_ok=True)
    for name in (_STAMP, _PIXELS, _IMAGES):  # who has it open keeps what it holds
        (path / name).unlink(missing_ok=True)
    return np.memmap(path / _PIXELS, dtype=np.uint8, mode="w+", shape=(num_bytes,))


def _stored(path: Path, stamp: dict[str, Any]) -> tuple[Any, Any, Any, Any] | None:
    """Open a cache if it has this stamp and is whole."""
    try:
        if json.loads((path / _STAMP).read_text()) != stamp:
            return None
        pixels = np.memmap(path / _PIXELS, dtype=np.uint8, mode="r")
        with np.load(path / _IMAGES, allow_pickle=False) as images:
            heights, widths, indices = (images[name] for name in ("heights", "widths", "indices"))
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
    whole = len(heights) == len(widths) == len(indices) == stamp["num_images"]
    if not whole or len(pixels) != (heights * widths).sum() * stamp["num_channels"]:
        return None
    return pixels, heights, widths, indices
