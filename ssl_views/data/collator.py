"""From rows to batches of views: a collator for data loaders of any kind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_views.data.bad_images import BadImages, draw_others, replace_bad
from ssl_views.data.dataset import ImageRows
from ssl_views.data.decode import try_to_decode
from ssl_views.data.image_limits import LIMITS, BadImage, ImageLimits
from ssl_views.pixels import PixelBatch
from ssl_views.view_engines import Engine
from ssl_views.views import ViewRecipe

_PIXELS_AT_ONCE = 2**22
_MOST_AT_ONCE = 256
Items = Sequence[Mapping[str, Any]] | ImageRows
GROUP_NAMES = ("pixel_values", "local_pixel_values")
INDICES = "indices"


class DecodedImages(NamedTuple):
    """Decoded images of one epoch, with their indices."""

    pixels: PixelBatch
    indices: list[int]
    epoch: int


class MultiViewCollator:
    """Decodes every image once and renders its views.

    Args:
        recipe: what views are.
        seed: of the run.
        engine: "native", "torch", or "auto" for the fastest that there is.
        dtype: float32 or bfloat16.
        channels_last: write the channels of a pixel side by side in memory.
        limits: which images are used.
        bad_images: lists images that cannot be used; another one takes the place of each, with
            views drawn for the index of the bad one. Of rows of a MultiViewDataset it is another
            row, of a stream another image of the batch. None to raise an error.
        keep_indices: put the indices of the images into the batch.

    Example:
        >>> rows = [{"image": np.zeros((32, 32, 3), dtype=np.uint8)} for _ in range(8)]
        >>> dataset = MultiViewDataset(rows, epoch=0)
        >>> batch = MultiViewCollator(ViewRecipe.named("cifar"))([dataset[i] for i in range(8)])
        >>> batch["pixel_values"].shape
        torch.Size([8, 4, 3, 32, 32])
    """

    def __init__(
        self,
        recipe: ViewRecipe,
        seed: int = 0,
        *,
        engine: Engine = "auto",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        limits: ImageLimits = LIMITS,
        bad_images: BadImages | None = None,
        keep_indices: bool = False,
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.engine = engine
        self.dtype = dtype
        self.channels_last = channels_last
        self.limits = limits
        self.bad_images = bad_images
        self.keep_indices = keep_indices
        self._at_once = 8

    def __call__(self, items: Items) -> dict[str, Tensor]:
        """Return a batch from items of a MultiViewDataset.

        Returns:
            {"pixel_values": (B, V, C, S, S)}; where the recipe has small local views, these are
            apart, as "local_pixel_values". With `keep_indices` also "indices" (B,) int64.

        Raises:
            BadImage: with the index and path of an image that cannot be used.
            TooManyBadImages: with `bad_images`, if they cannot be replaced or are too many.
        """
        check_items(items)
        batch = self.empty(len(items))
        self.fill(batch, items, range(len(items)))
        return batch

    def empty(
        self, num_images: int, allocate: Callable[..., Tensor] = torch.empty
    ) -> dict[str, Tensor]:
        """Allocate a batch with a function of shape and dtype."""
        recipe, batch = self.recipe, {}
        for name, group in zip(GROUP_NAMES, recipe.groups, strict=False):
            shape = [num_images, len(group.views), recipe.num_channels, group.size, group.size]
            if self.channels_last:
                shape.append(shape.pop(2))
            memory = allocate(shape, dtype=self.dtype)
            batch[name] = memory.permute(0, 1, 4, 2, 3) if self.channels_last else memory
        if self.keep_indices:
            batch[INDICES] = allocate([num_images], dtype=torch.int64)
        return batch

    def fill(self, batch: Mapping[str, Tensor], items: Items, places: range) -> None:
        """Decode the items at some places of a batch, and render into memory from `empty`."""
        views = [batch[name] for name in GROUP_NAMES if name in batch]
        start = 0
        while start < len(places):
            for pixels, indices, epoch in self.decode(items, places[start : start + self._at_once]):
                stop = start + len(indices)
                records = self.recipe.draw(
                    indices, pixels.heights, pixels.widths, epoch=epoch, seed=self.seed
                )
                self.recipe.render_groups(
                    pixels,
                    records,
                    engine=self.engine,
                    dtype=self.dtype,
                    channels_last=self.channels_last,
                    out=[x[start:stop] for x in views],
                )
                if self.keep_indices:
                    batch[INDICES][start:stop] = as_tensor(indices)
                start = stop
                # Large images do not lie in memory together.
                largest = int((pixels.heights * pixels.widths).max())
                self._at_once = max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // largest))

    def decode(self, items: Items, places: range) -> list[DecodedImages]:
        """Decode the items at some places of a batch, per epoch.

        A batch of a stream that starts over holds images of two epochs.
        """
        part = items[places.start : places.stop]
        if isinstance(part, ImageRows):
            found = part.dataset.pixels(
                part.rows,
                self.recipe.num_channels,
                limits=self.limits,
                bad_images=self.bad_images,
                epoch=part.epoch,
            )
            return [DecodedImages(*found, part.epoch)]
        decoded = []
        for epoch, group in groupby(part, key=lambda item: item["epoch"]):
            members = list(group)
            images = replace_bad(
                [self._look(item) for item in members],
                partial(self._others, items, epoch),
                self.bad_images,
            )
            indices = [item["index"] for item in members]
            decoded.append(DecodedImages(PixelBatch.of_arrays(images), indices, epoch))
        return decoded

    def _look(self, item: Mapping[str, Any]) -> "NDArray[np.uint8] | BadImage":
        channels = self.recipe.num_channels
        return try_to_decode(item["image"], item["index"], channels, self.limits)

    def _others(
        self, items: Items, epoch: int, index: int
    ) -> Iterator["NDArray[np.uint8] | BadImage"]:
        """Give the images of a batch, in an order that is drawn for the index of a bad one."""
        for place in np.argsort(draw_others(epoch, index, len(items))).tolist():
            yield self._look(items[place])


def as_tensor(indices: Sequence[int]) -> Tensor:
    """Return indices below 2**64 as a tensor of int64 with the same bits."""
    return torch.from_numpy(np.array(indices, dtype=np.uint64).view(np.int64))


def check_items(items: Items) -> None:
    """Refuse what is not items of a MultiViewDataset."""
    if isinstance(items, ImageRows) and len(items):
        return
    named = isinstance(items, Sequence) and len(items) > 0 and isinstance(items[0], Mapping)
    if not named or not {"image", "index", "epoch"} <= items[0].keys():
        found = sorted(items[0]) if named else "others" if items else "no items"
        raise ValueError(
            f"MultiViewCollator takes items with image, index and epoch; got {found}. Wrap "
            "your data set: MultiViewDataset(dataset, image_column=...), and set "
            "remove_unused_columns=False. (The loader of a MultiViewLoader takes "
            "collate_fn=MultiViewLoader.items.)"
        )
