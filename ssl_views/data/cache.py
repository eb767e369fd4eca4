"""Decoded images, kept in memory or in a file, so that an epoch decodes nothing."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ssl_views.data.dataset import MultiViewDataset
from ssl_views.data.decode import image_size, try_to_decode
from ssl_views.data.image_limits import (
    LIMITS,
    BadImage,
    ImageLimits,
    PixelFormatError,
    naming_image,
)
from ssl_views.pixels import PixelBatch

_AT_ONCE = 32
_FORMAT = 2
_PIXELS, _IMAGES, _STAMP = "pixels.bin", "images.npz", "cache.json"
_ARRAYS = ("heights", "widths", "indices", "offsets")


class PixelCache:
    """The decoded uint8 pixels of the rows of a data set, one after the other.

    An image that cannot be used has a height of 0.

    Attributes:
        num_bytes: of all pixels.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        indices: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        num_channels: int,
        limits: ImageLimits,
    ) -> None:
        self._pixels = pixels
        self._heights, self._widths, self._indices = heights, widths, indices
        self._offsets = offsets  # of N images and the end
        self.num_channels, self.limits = num_channels, limits
        self.num_bytes = int(offsets[-1])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._heights)

    def batch(
        self, rows: Sequence[int], num_channels: int, limits: ImageLimits = LIMITS
    ) -> tuple[PixelBatch, list[int]]:
        """Return the images of some rows, and their indices."""
        if num_channels != self.num_channels:
            raise ValueError(
                f"the cache must have the channels of the recipe; got {self.num_channels} and "
                f"{num_channels}. Make it again."
            )
        if limits != self.limits:
            raise ValueError(
                f"the cache must have the limits of the collator; got {self.limits} and {limits}. "
                "Make it again."
            )
        at = np.asarray(rows)
        address = self._pixels.ctypes.data + self._offsets[at]
        pixels = PixelBatch(
            address, self._heights[at], self._widths[at], num_channels, self._pixels
        )
        return pixels, self._indices[at].tolist()

    def image(self, row: int) -> "NDArray[np.uint8] | None":
        """Return the pixels (H, W, C) of one row, or None if it cannot be used."""
        shape = (int(self._heights[row]), int(self._widths[row]), self.num_channels)
        start = self._offsets[row]
        return self._pixels[start : start + math.prod(shape)].reshape(shape) if shape[0] else None

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
        limits: ImageLimits = LIMITS,
    ) -> "PixelCache":
        """Decode all images of a data set, or open what was stored for it.

        Images that cannot be used are no error here: whoever asks for one decides.

        Args:
            dataset: the images.
            num_channels: C.
            limit_bytes: the pixels must not take more; nothing is decoded if they would.
            folder: where to store them; None for memory. What it holds is used again if it was made
                of the same rows (by the fingerprint of `datasets`), channels and limits, and if its
                bad images still are; else replaced.
            num_threads: that decode.
            on_size: called with the bytes that the pixels take, before anything is decoded.
            limits: which images are used.

        Raises:
            ValueError: if the pixels would take too much, the rows have no fingerprint, or no image
                can be used.
            PixelFormatError: with the index and path of an image for which the user has to decide.
        """
        dataset = MultiViewDataset(dataset.rows, dataset.image_column)
        if len(dataset) == 0:
            raise ValueError("a cache needs at least one image; got none. Check the data set.")
        path = None if folder is None else Path(folder)
        stamp: dict[str, Any] = {
            "format": _FORMAT,
            "num_channels": num_channels,
            "num_images": len(dataset),
            "limits": asdict(limits),
        }
        if path is not None:
            stamp["fingerprint"] = _fingerprint(dataset.rows)
            stamp["image_column"] = dataset.image_column
            stored = _stored(path, stamp)
            if stored is not None:
                cache = cls(**stored, num_channels=num_channels, limits=limits)
                if cache._is_up_to_date(dataset):
                    return cache
        sizes = [size for part in _parts(dataset) for size in _sizes(dataset, part, limits)]
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
        offsets = np.concatenate([[0], np.cumsum(heights * widths * num_channels)])
        pixels = _memory(path, needed)
        indices = np.zeros(len(sizes), dtype=np.uint64)
        cache = cls(pixels, heights, widths, indices, offsets, num_channels, limits)
        with ThreadPoolExecutor(num_threads) as threads:
            list(threads.map(lambda part: cache._decode(dataset, part), _parts(dataset)))
        if not heights.any():
            first = cache._why_bad(dataset, 0)
            raise ValueError(f"a cache needs an image that can be used; got none. First {first}")
        if path is not None:
            cast(np.memmap[Any, Any], pixels).flush()
            arrays = (heights, widths, indices, offsets)
            np.savez(path / _IMAGES, **dict(zip(_ARRAYS, arrays, strict=True)))
            unfinished = path / f"{_STAMP}.unfinished"
            unfinished.write_text(json.dumps(stamp))
            unfinished.replace(path / _STAMP)  # last: what has a stamp is whole
        return cache

    def _decode(self, dataset: MultiViewDataset, part: range) -> None:
        values, indices = dataset.read(part)
        self._indices[part] = np.array(indices, dtype=np.uint64)
        for row, value, index in zip(part, values, indices, strict=True):
            start, stop = self._offsets[row : row + 2]
            image = None
            if stop > start:  # else its header was bad
                image = try_to_decode(value, index, self.num_channels, self.limits)
            if image is None or isinstance(image, BadImage):
                self._heights[row] = self._widths[row] = 0
                continue
            if image.size != stop - start:
                raise ValueError(
                    f"row {row} must decode to the size of its header; got {image.size} values for "
                    f"{stop - start}. Rows of a cache must not change."
                )
            # The header gives the size before a rotation by EXIF.
            self._heights[row], self._widths[row] = image.shape[:2]
            self._pixels[start:stop] = image.reshape(-1)

    def _why_bad(self, dataset: MultiViewDataset, row: int) -> BadImage | None:
        (value,), (index,) = dataset.read([row])
        outcome = try_to_decode(value, index, self.num_channels, self.limits)
        return outcome if isinstance(outcome, BadImage) else None

    def _is_up_to_date(self, dataset: MultiViewDataset) -> bool:
        """Return whether the bad images still are: a folder may have been allowed since."""
        return all(
            self._why_bad(dataset, row) is not None
            for row in np.flatnonzero(self._heights == 0).tolist()
        )


def _parts(dataset: MultiViewDataset) -> list[range]:
    starts = range(0, len(dataset), _AT_ONCE)
    return [range(start, min(start + _AT_ONCE, len(dataset))) for start in starts]


def _sizes(dataset: MultiViewDataset, part: range, limits: ImageLimits) -> list[tuple[int, int]]:
    """Return the height and width of some images, from their headers; 0 for bad ones."""
    values, indices = dataset.read(part)
    sizes = []
    for value, index in zip(values, indices, strict=True):
        try:
            with naming_image(value, index):
                sizes.append(image_size(value, limits))
        except PixelFormatError:
            raise
        except BadImage:
            sizes.append((0, 0))
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
    return np.memmap(path / _PIXELS, dtype=np.uint8, mode="w+", shape=(max(1, num_bytes),))


def _stored(path: Path, stamp: dict[str, Any]) -> dict[str, Any] | None:
    """Open a cache if it has this stamp and is whole."""
    try:
        if json.loads((path / _STAMP).read_text()) != stamp:
            return None
        pixels = np.memmap(path / _PIXELS, dtype=np.uint8, mode="r")
        with np.load(path / _IMAGES, allow_pickle=False) as images:
            arrays = {name: images[name] for name in _ARRAYS}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
    lengths = [len(array) for array in arrays.values()]
    count = stamp["num_images"]
    if lengths != [count, count, count, count + 1] or len(pixels) != arrays["offsets"][-1]:
        return None
    return {"pixels": pixels, **arrays}
