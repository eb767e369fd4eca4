"""From rows to batches of views: a collator for data loaders of any kind."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_views.data.dataset import ImageRows, decode_batch
from ssl_views.pixels import PixelBatch
from ssl_views.view_engines import Engine
from ssl_views.views import ViewRecipe

_PIXELS_AT_ONCE = 2**22
_MOST_AT_ONCE = 256
Items = Sequence[Mapping[str, Any]] | ImageRows
GROUP_NAMES = ("pixel_values", "local_pixel_values")


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
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.engine = engine
        self.dtype = dtype
        self.channels_last = channels_last
        self._at_once = 8

    def __call__(self, items: Items) -> dict[str, Tensor]:
        """Return a batch from items of a MultiViewDataset.

        Returns:
            {"pixel_values": (B, V, C, S, S)}; where the recipe has small local views, these are
            apart, as "local_pixel_values".
        """
        check_items(items)
        batch = self.empty(len(items))
        self.fill(batch, items)
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
        return batch

    def fill(self, batch: Mapping[str, Tensor], items: Items) -> None:
        """Decode some items and render their views into memory from `empty`."""
        start = 0
        while start < len(items):
            some = items[start : start + self._at_once]
            for pixels, indices, epoch in decode_items(some, self.recipe.num_channels):
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
                    out=[x[start:stop] for x in batch.values()],
                )
                start = stop
                # Large images do not lie in memory together.
                largest = int((pixels.heights * pixels.widths).max())
                self._at_once = max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // largest))


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


def decode_items(items: Items, num_channels: int) -> list[DecodedImages]:
    """Decode items, per epoch: a batch of a stream that starts over holds images of two."""
    if isinstance(items, ImageRows):
        return [DecodedImages(*items.dataset.pixels(items.rows, num_channels), items.epoch)]
    decoded = []
    for epoch, group in groupby(items, key=lambda item: item["epoch"]):
        members = list(group)
        indices = [item["index"] for item in members]
        pixels = decode_batch([item["image"] for item in members], indices, num_channels)
        decoded.append(DecodedImages(pixels, indices, epoch))
    return decoded
