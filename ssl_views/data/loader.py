"""Batches made by threads of this process, ahead of the training step."""

import weakref
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_views.data.collator import (
    GROUP_NAMES,
    INDICES,
    DecodedImages,
    Items,
    MultiViewCollator,
    as_tensor,
    check_items,
)


class BufferPool:
    """Memory that is used again when nobody looks at it any more.

    Fresh memory costs more than the views that are written to it: the system clears it page by
    page. A tensor from the pool, and every tensor that shares its memory, is an ordinary one.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = {}

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor; its memory comes back when the last reference to it is gone."""
        count = int(np.prod(shape)) * dtype.itemsize
        free = self._free.setdefault(count, [])
        memory = free.pop() if free else torch.empty(count, dtype=torch.uint8)
        lease = memory.numpy().view()
        weakref.finalize(lease, free.append, memory).atexit = False
        return torch.from_numpy(lease).view(dtype).view(*shape)


class MultiViewLoader:
    """Reads, decodes and renders batches in threads, some batches ahead.

    Views are rendered without Python's lock, so threads of one process do what worker processes do
    for other loaders, without copying batches between processes. The batches, and their order, are
    those of a `DataLoader` with a `MultiViewCollator`. Rows of a data set are read by the threads;
    a stream, which has one reader, by the caller.

    Args:
        batches: an iterable of lists of items: a `DataLoader` over a MultiViewDataset or
            MultiViewIterableDataset, made with `collate_fn=MultiViewLoader.items`.
        collate_fn: makes batches of items.
        num_threads: that work at the same time.
        prefetch: batches made ahead, at least 1; with the one in use, so many lie in memory at
            once, and one more.
        device: where batches go; pinned memory is used for a GPU.
        render_on_device: send decoded pixels, of images of one size, and render there, by the torch
            engine.

    Example:
        >>> dataset = MultiViewDataset(load_images("digits"), epoch=0)
        >>> loader = MultiViewLoader(
        ...     torch.utils.data.DataLoader(
        ...         dataset, batch_size=256, shuffle=True, collate_fn=MultiViewLoader.items
        ...     ),
        ...     MultiViewCollator(ViewRecipe.named("digits", num_views=2)),
        ... )
        >>> next(iter(loader))["pixel_values"].shape
        torch.Size([256, 2, 1, 32, 32])
    """

    def __init__(
        self,
        batches: Iterable[Items],
        collate_fn: MultiViewCollator,
        *,
        num_threads: int = 1,
        prefetch: int = 2,
        device: torch.device | str = "cpu",
        render_on_device: bool = False,
    ) -> None:
        num_workers = getattr(batches, "num_workers", 0)
        if num_workers > 0:
            raise ValueError(
                "the loader of the items must have no worker processes, for threads do their work; "
                f"got num_workers={num_workers}. Set num_workers=0."
            )
        if num_threads < 1 or prefetch < 1:
            raise ValueError(
                f"num_threads and prefetch must be at least 1; got {num_threads} and {prefetch}. "
                "For batches made when they are asked for, use a DataLoader with the collator."
            )
        self.batches = batches
        self.collate_fn = collate_fn
        self.num_threads = num_threads
        self.prefetch = prefetch
        self.device = torch.device(device)
        self.render_on_device = render_on_device
        self._pinned = self.device.type == "cuda"
        self._pool = BufferPool()

    @staticmethod
    def items(items: Items) -> Items:
        """Return items as they are: the `collate_fn` of the `batches`."""
        return items

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Generator[dict[str, Tensor], None, None]:
        """Yield the batches of an epoch.

        Raises:
            BadImage: with the index and path of an image that cannot be used.
            TooManyBadImages: if the collator replaces them, and there are too many.
        """
        threads = ThreadPoolExecutor(self.num_threads, "ssl_views")
        started: deque[tuple[Any, list[Future[Any]]]] = deque()
        try:
            for items in self.batches:
                started.append(self._start(threads, items))
                if len(started) > self.prefetch:
                    yield self._finish(*started.popleft())
            while started:
                yield self._finish(*started.popleft())
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _start(self, threads: ThreadPoolExecutor, items: Items) -> tuple[Any, list[Future[Any]]]:
        """Give the parts of a batch to the threads."""
        check_items(items)
        # No more parts than keep all threads busy: each costs some time to prepare.
        at_once = -(-len(items) // -(-self.num_threads // self.prefetch))
        places = range(len(items))
        parts = [places[i : i + at_once] for i in range(0, len(items), at_once)]
        if self.render_on_device:
            return None, [threads.submit(self.collate_fn.decode, items, part) for part in parts]
        batch = self.collate_fn.empty(len(items), self._allocate)
        work = []
        for part in parts:
            memory = {name: x[part.start : part.stop] for name, x in batch.items()}
            work.append(threads.submit(self.collate_fn.fill, memory, items, part))
        return batch, work

    def _allocate(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if self._pinned:  # torch pools pinned memory itself
            return torch.empty(*shape, dtype=dtype, pin_memory=True)
        return self._pool.empty(shape, dtype)

    def _render(self, decoded: list[DecodedImages]) -> dict[str, Tensor]:
        """Render on the device, from pixels that are sent there."""
        recipe = self.collate_fn.recipe
        parts = []
        for epoch, group in groupby(decoded, key=lambda part: part.epoch):
            members = list(group)
            images = [image for part in members for image in part.pixels.tensors()]
            sizes = {tuple(image.shape) for image in images}
            if len(sizes) > 1:
                raise ValueError(
                    "render_on_device needs images of one size, for they are sent together; got "
                    f"{sorted(sizes)[:4]}. Render on the CPU."
                )
            stacked = torch.stack(images)
            if self._pinned:
                stacked = stacked.pin_memory()
            _, _, height, width = stacked.shape
            indices = [index for part in members for index in part.indices]
            count = len(indices)
            records = recipe.draw(
                indices, [height] * count, [width] * count, epoch=epoch, seed=self.collate_fn.seed
            )
            on_device = list(stacked.to(self.device, non_blocking=self._pinned))
            parts.append(
                recipe.render_groups(
                    on_device,
                    records,
                    engine="torch",
                    dtype=self.collate_fn.dtype,
                    channels_last=self.collate_fn.channels_last,
                )
            )
        views = (torch.cat(x) if len(x) > 1 else x[0] for x in zip(*parts, strict=True))
        batch = dict(zip(GROUP_NAMES, views, strict=False))
        if self.collate_fn.keep_indices:
            named = as_tensor([index for part in decoded for index in part.indices])
            batch[INDICES] = named.to(self.device)
        return batch

    def _finish(self, batch: Any, parts: list[Future[Any]]) -> dict[str, Tensor]:
        """Wait for a batch and bring it to its device."""
        results = [part.result() for part in parts]
        if batch is None:
            return self._render([decoded for part in results for decoded in part])
        return {name: x.to(self.device, non_blocking=self._pinned) for name, x in batch.items()}
