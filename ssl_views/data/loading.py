"""From rows to batches of views: a data set that knows the epoch, and a collator that renders."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, groupby
from typing import Any

import fsspec
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ssl_views.data.decode import ImageError, decode_image
from ssl_views.views import ViewRecipe

_AT_ONCE = 32


class MultiViewDataset(Dataset[dict[str, Any]]):
    """Rows for `MultiViewCollator`: each image with its index and the epoch.

    With the collator, it makes a view a function of (seed, epoch, index, view) alone: the number of
    workers, of processes and a resume in mid-epoch change nothing. The epoch lies in memory shared
    with worker processes, persistent ones too. (There is no method `set_epoch`: accelerate would
    call it, but not in every run.)

    Args:
        rows: a sequence of mappings with an image, e.g. from `load_images`. Their "index", where
            they have one, is the image's index; else their place is.
        image_column: its name.
        epoch: fixed epoch, for evaluation; training sets it through `EpochCallback`.
    """

    def __init__(
        self, rows: Sequence[Any] | Any, image_column: str = "image", epoch: int | None = None
    ) -> None:
        self.rows = rows
        self.image_column = image_column
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
        row = self.rows[index]
        index = row["index"] if "index" in row else index
        return {"image": row[self.image_column], "index": int(index), "epoch": self.epoch}


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


class MultiViewCollator:
    """Decodes every image once and renders its views.

    Args:
        recipe: what views are.
        seed: of the run.

    Example:
        >>> rows = [{"image": np.zeros((32, 32, 3), dtype=np.uint8)} for _ in range(8)]
        >>> dataset = MultiViewDataset(rows, epoch=0)
        >>> batch = MultiViewCollator(ViewRecipe.named("cifar"))([dataset[i] for i in range(8)])
        >>> batch["pixel_values"].shape
        torch.Size([8, 4, 3, 32, 32])
    """

    def __init__(self, recipe: ViewRecipe, seed: int = 0) -> None:
        self.recipe = recipe
        self.seed = seed

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return {"pixel_values": (B, V, C, S, S)} from items of a MultiViewDataset."""
        if not items or not {"image", "index", "epoch"} <= items[0].keys():
            found = sorted(items[0]) if items else "no items"
            raise ValueError(
                f"MultiViewCollator takes items with image, index and epoch; got {found}. Wrap "
                "your data set: MultiViewDataset(dataset, image_column=...), and set "
                "remove_unused_columns=False."
            )
        parts = []
        # A batch of a stream that starts over holds images of two epochs.
        for epoch, group in groupby(items, key=lambda item: item["epoch"]):
            members = list(group)
            parts.append(
                decode_and_render(
                    [item["image"] for item in members],
                    [item["index"] for item in members],
                    self.recipe,
                    partial(self.recipe.views, epoch=epoch, seed=self.seed),
                )
            )
        return {"pixel_values": torch.cat(parts)}


def decode_and_render(
    values: Sequence[Any],
    indices: Sequence[int],
    recipe: ViewRecipe,
    render: Callable[[list[Tensor], Sequence[int]], Tensor],
) -> Tensor:
    """Decode and render some images at a time, so that large ones never lie in memory together.

    Args:
        values: what the rows hold, see `decode_image`.
        indices: of the images.
        recipe: says how many channels.
        render: from images and indices to views (images, ...).
    """
    parts = []
    for start in range(0, len(values), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        images = decode_images(values[some], indices[some], recipe.num_channels)
        parts.append(render(images, indices[some]))
    return torch.cat(parts)


@contextmanager
def naming_image(value: Any, index: int) -> Iterator[None]:
    """Name the image, its index and path, in an ImageError raised inside."""
    try:
        yield
    except ImageError as error:
        path = value.get("path") if isinstance(value, Mapping) else None
        place = f" ({path})" if path else ""
        raise ImageError(f"image {index}{place}: {error}. Remove or repair it.") from error


def decode_images(values: Sequence[Any], indices: Sequence[int], num_channels: int) -> list[Tensor]:
    """Decode images to uint8 (C, H, W); an error names the image's index and path."""
    images = []
    for value, index in zip(values, indices, strict=True):
        with naming_image(value, index):
            images.append(decode_image(value, num_channels))
    return images
