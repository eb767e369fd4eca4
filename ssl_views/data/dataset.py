"""Data sets that know the epoch, and read rows a batch at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset

from ssl_views.data.bad_images import ATTEMPTS, BadImages, draw_others, replace_bad
from ssl_views.data.decode import try_to_decode
from ssl_views.data.image_limits import LIMITS, BadImage, ImageLimits, PixelFormatError
from ssl_views.data.image_roots import AllowedPlaces, read_image_file
from ssl_views.pixels import PixelBatch

if TYPE_CHECKING:
    from ssl_views.data.cache import PixelCache


@dataclass(frozen=True)
class ImageRows:
    """Rows of a MultiViewDataset in one epoch, not read yet; it gives the items like a list.

    (It is no `Sequence`: data loaders would read and rebuild those when they pin memory.)
    """

    dataset: "MultiViewDataset"
    rows: Sequence[int]
    epoch: int

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read the items one by one."""
        return (self[place] for place in range(len(self)))

    def pin_memory(self) -> "ImageRows":
        """Return the same: there is nothing to pin yet."""
        return self

    def __getitem__(self, place: Any) -> Any:
        """Return an item {"image", "index", "epoch"}, or for a slice fewer rows."""
        if isinstance(place, slice):
            return ImageRows(self.dataset, self.rows[place], self.epoch)
        values, indices = self.dataset.read([self.rows[place]])
        return {"image": values[0], "index": indices[0], "epoch": self.epoch}


class MultiViewDataset(Dataset[dict[str, Any]]):
    """Rows for `MultiViewCollator`: each image with its index and the epoch.

    With the collator, it makes a view a function of (seed, epoch, index, view) alone: the number of
    workers, of processes and a resume in mid-epoch change nothing. The epoch lies in memory shared
    with worker processes, persistent ones too. (There is no method `set_epoch`: accelerate would
    call it, but not in every run.)

    Args:
        rows: a sequence of mappings with an image, e.g. from `load_images`. Their "index", where
            they have one, is the image's index; else their place is. `MultiViewLoader` reads them
            from several threads.
        image_column: its name.
        epoch: fixed epoch, for evaluation; training sets it through `EpochCallback`.
        cache: decoded images of these rows, see `PixelCache`.
    """

    def __init__(
        self,
        rows: Sequence[Any] | Any,
        image_column: str = "image",
        epoch: int | None = None,
        cache: "PixelCache | None" = None,
    ) -> None:
        self.rows = rows
        self.image_column = image_column
        self.cache = cache
        if cache is not None and len(cache) != len(rows):
            raise ValueError(
                f"the cache must hold the images of the rows; got {len(cache)} images and "
                f"{len(rows)} rows. Make it from these rows."
            )
        self._table = _encoded(rows, image_column)
        self._places = AllowedPlaces()
        self._epoch = torch.full(
            (1,), -1 if epoch is None else epoch, dtype=torch.int64
        ).share_memory_()

    @property
    def epoch(self) -> int:
        """The current epoch. Reading it before it was set is an error."""
        epoch = int(self._epoch)
        if epoch < 0:
            raise RuntimeError(
                "the data set must know the epoch, so that every epoch gets new views; it was not "
                "set. With a Trainer, pass callbacks=[EpochCallback(dataset)]; in a loop of your "
                "own, set dataset.epoch = epoch."
            )
        return epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch.fill_(value)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return {"image", "index", "epoch"} of one image."""
        return self.__getitems__([index])[0]

    def __getitems__(self, rows: Sequence[int]) -> ImageRows:
        """Return the items of a batch; they are read when they are looked at."""
        return ImageRows(self, rows, self.epoch)

    def read(self, rows: Sequence[int]) -> tuple[list[Any], list[int]]:
        """Read what some rows hold: their images, encoded, and their indices."""
        if self._table is not None:
            table = self._table[list(rows)]
            known = "index" in table.column_names
            indices = table["index"].to_pylist() if known else list(rows)
            return _values(table[self.image_column].combine_chunks()), indices
        members = [self.rows[row] for row in rows]
        indices = [
            int(m["index"]) if "index" in m else row for m, row in zip(members, rows, strict=True)
        ]
        return [member[self.image_column] for member in members], indices

    def pixels(
        self,
        rows: Sequence[int],
        num_channels: int,
        *,
        limits: ImageLimits = LIMITS,
        bad_images: BadImages | None = None,
        epoch: int = 0,
    ) -> tuple[PixelBatch, list[int]]:
        """Decode the images of some rows, or take them from the cache; also their indices.

        Args:
            rows: their places.
            num_channels: C.
            limits: which images can be used.
            bad_images: lists those that cannot, and another row takes the place of each; it depends
                on the epoch and the index alone. None to raise an error.
            epoch: of the replacements.

        Raises:
            BadImage: with the index and path of an image that cannot be used.
            PixelFormatError: likewise, also with `bad_images`.
            TooManyBadImages: if there are more than `bad_images` allows, or several in a row.
        """
        outcomes: list[NDArray[np.uint8] | BadImage]
        if self.cache is None:
            values, indices = self.read(rows)
            outcomes = [
                try_to_decode(value, index, num_channels, limits)
                for value, index in zip(values, indices, strict=True)
            ]
        else:
            batch, indices = self.cache.batch(rows, num_channels, limits)
            if batch.heights.all():
                return batch, indices
            outcomes = [self._look(row, num_channels, limits) for row in rows]

        def others(index: int) -> Iterator[NDArray[np.uint8] | BadImage]:
            for number in draw_others(epoch, index, ATTEMPTS):
                yield self._look(int(number * len(self)), num_channels, limits)

        return PixelBatch.of_arrays(replace_bad(outcomes, others, bad_images)), indices

    def _look(
        self, row: int, num_channels: int, limits: ImageLimits
    ) -> "NDArray[np.uint8] | BadImage":
        """Return the pixels of one row, or why there are none."""
        pixels = None if self.cache is None else self.cache.image(row)
        if pixels is not None:
            return pixels
        (value,), (index,) = self.read([row])
        outcome = try_to_decode(value, index, num_channels, limits)
        if self.cache is None or isinstance(outcome, BadImage):
            return outcome
        changed = BadImage(f"image {index} was bad when the cache was made. Make the cache again.")
        changed.index = index
        return changed


def _encoded(rows: Any, image_column: str) -> Any:
    """Return a view of a `datasets.Dataset` that gives Arrow tables, if its images are encoded."""
    if not isinstance(rows, datasets.Dataset) or image_column not in rows.column_names:
        return None
    if rows.format["type"] == "custom":  # a transform of the user's
        return None
    feature = rows.features[image_column]
    encoded = isinstance(feature, datasets.Image) and not feature.decode
    binary = isinstance(feature, datasets.Value) and "binary" in feature.dtype
    if not (encoded or binary):
        return None
    names = [name for name in (image_column, "index") if name in rows.column_names]
    return rows.select_columns(names).with_format("arrow")


def _values(column: Any) -> list[Any]:
    """Return the images of an Arrow array: bytes, or dictionaries with bytes and path."""
    if not isinstance(column, pa.StructArray) or column.null_count:
        return column.to_pylist()
    encoded, paths = column.field("bytes"), column.field("path")
    if encoded.null_count:
        return column.to_pylist()
    pairs = zip(_bytes(encoded), paths.to_pylist(), strict=True)
    return [{"bytes": data, "path": path} for data, path in pairs]


def _bytes(array: Any) -> list[bytes]:
    """Return what an Arrow array of bytes without nulls holds."""
    dtype = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, dtype)[array.offset : array.offset + len(array) + 1].tolist()
    memory = memoryview(data)
    return [bytes(memory[start:end]) for start, end in pairwise(ends)]


class MultiViewIterableDataset(IterableDataset[dict[str, Any]]):
    """The same for a stream, read again and again: every pass is an epoch. Train with `max_steps`.

    An image's index is a hash of its bytes, so its views do not depend on its place in the stream.

    Args:
        rows: an iterable of mappings with an encoded image; one with `set_epoch` is told the epoch
            to reshuffle.
        image_column: its name.
        limits: how many bytes of a file are read.
    """

    def __init__(
        self, rows: Any, image_column: str = "image", *, limits: ImageLimits = LIMITS
    ) -> None:
        self.rows = rows
        self.image_column = image_column
        self.limits = limits
        self._places = AllowedPlaces()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield {"image", "index", "epoch"} without end."""
        for epoch in count():
            if hasattr(self.rows, "set_epoch"):
                self.rows.set_epoch(epoch)
            empty = True
            for row in self.rows:
                empty = False
                image = _with_bytes(row[self.image_column], self.limits)
                yield {"image": image, "index": _content_index(image), "epoch": epoch}
            if empty:
                return


def _with_bytes(image: Any, limits: ImageLimits) -> Any:
    """Read a streamed image that is only a path; one that cannot be read is left as it is."""
    if isinstance(image, Mapping) and image.get("bytes") is None and image.get("path"):
        with suppress(BadImage):
            return {**image, "bytes": read_image_file(image["path"], limits)}
    return image


def _content_index(image: Any) -> int:
    """Return a hash of the bytes of a streamed image, or of its path where it has none."""
    content = image
    if isinstance(image, Mapping):
        content = image.get("bytes")
        if content is None:
            content = str(image.get("path")).encode(errors="surrogateescape")
    if content is None:
        content = b""
    if not isinstance(content, bytes):
        raise PixelFormatError(
            f"a streamed image must be encoded bytes; got {type(content).__name__}. Turn streaming "
            "off for this data set."
        )
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
