"""Data sets that know the epoch, and read rows a batch at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset, IterableDataset

from ssl_views.data.decode import ImageError, decode_pixels, naming_image
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

    def pixels(self, rows: Sequence[int], num_channels: int) -> tuple[PixelBatch, list[int]]:
        """Decode the images of some rows, or take them from the cache; also their indices.

        Raises:
            ImageError: with the index and path of an image that cannot be decoded.
        """
        if self.cache is not None:
            return self.cache.batch(rows, num_channels)
        values, indices = self.read(rows)
        return decode_batch(values, indices, num_channels), indices


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


def decode_batch(values: Sequence[Any], indices: Sequence[int], num_channels: int) -> PixelBatch:
    """Decode images; an error names the image's index and path."""
    images = []
    for value, index in zip(values, indices, strict=True):
        with naming_image(value, index):
            images.append(decode_pixels(value, num_channels))
    return PixelBatch.of_arrays(images)


class MultiViewIterableDataset(IterableDataset[dict[str, Any]]):
    """The same for a stream, read again and again: every pass is an epoch. Train with `max_steps`.

    An image's index is a hash of its bytes, so its views do not depend on its place in the stream.

    Args:
        rows: an iterable of mappings with an encoded image; one with `set_epoch` is told the epoch
            to reshuffle.
        image_column: its name.
    """

    def __init__(self, rows: Any, image_column: str = "image") -> None:
        self.rows = rows
        self.image_column = image_column

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield {"image", "index", "epoch"} without end."""
        for epoch in count():
            if hasattr(self.rows, "set_epoch"):
                self.rows.set_epoch(epoch)
            empty = True
            for row in self.rows:
                empty = False
                image = _with_bytes(row[self.image_column])
                yield {"image": image, "index": _content_index(image), "epoch": epoch}
            if empty:
                return


def _with_bytes(image: Any) -> Any:
    """Read a streamed image that is only a path, on this machine or on the Hub."""
    if isinstance(image, Mapping) and image.get("bytes") is None and image.get("path"):
        with fsspec.open(image["path"], "rb") as file:
            return {"bytes": file.read(), "path": image["path"]}
    return image


def _content_index(image: Any) -> int:
    encoded = image.get("bytes") if isinstance(image, Mapping) else image
    if not isinstance(encoded, bytes):
        raise ImageError(
            f"a streamed image must be encoded bytes; got {type(encoded).__name__}. Turn streaming "
            "off for this data set."
        )
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")
