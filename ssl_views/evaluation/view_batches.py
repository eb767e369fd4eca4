"""Batches of views to evaluate: read and rendered ahead, shared among processes."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from ssl_views.data.dataset import MultiViewDataset
from ssl_views.data.decode import try_to_decode
from ssl_views.data.image_limits import LIMITS, BadImage, ImageLimits
from ssl_views.naming import printable
from ssl_views.pixels import PixelBatch
from ssl_views.statistics import rank, world_size

_AT_ONCE = 32  # images decoded together; large ones never all lie in memory
_NAMED = 3

logger = logging.get_logger(__name__)

Render = Callable[[PixelBatch, Sequence[int]], Tensor]


class ViewBatch(NamedTuple):
    """Views (n, F, C, S, S) of n images, None where n = 0, and the places of their rows."""

    views: Tensor | None
    places: list[int]


class ViewBatches:
    """Batches of rendered views of the images of rows, without those that cannot be used.

    Several processes take turns: each gets its own batches, as many as the others, some empty. How
    rows are cut into batches does not depend on the number of processes.

    Args:
        rows: N mappings with an encoded "image", as from `load_images`.
        num_channels: C.
        render: makes views (n, F, C, S, S) from the pixels and indices of n images.
        images_at_once: rows of a batch.
        num_threads: that decode and render ahead.
        limits: which images are used.
        shared: whether processes take turns; else each gets all batches.
    """

    def __init__(
        self,
        rows: Any,
        num_channels: int,
        render: Render,
        *,
        images_at_once: int,
        num_threads: int = 1,
        limits: ImageLimits = LIMITS,
        shared: bool = True,
    ) -> None:
        self.dataset = MultiViewDataset(rows)
        self.num_channels = num_channels
        self.render = render
        self.images_at_once = images_at_once
        self.num_threads = num_threads
        self.limits = limits
        self.turn, self.turns = (rank(), world_size()) if shared else (0, 1)
        self.bad: list[BadImage] = []

    def __iter__(self) -> Iterator[ViewBatch]:
        """Yield the batches of this process."""
        count, step = len(self.dataset), self.images_at_once
        num_batches = -(-count // step)
        starts = [(turn + self.turn) * step for turn in range(0, num_batches, self.turns)]
        threads = ThreadPoolExecutor(self.num_threads, "ssl_views")
        ahead: deque[list[Future[ViewBatch]]] = deque()
        try:
            for start in starts:
                parts = range(start, min(start + step, count), _AT_ONCE)
                stops = [min(part + _AT_ONCE, start + step, count) for part in parts]
                ranges = map(range, parts, stops)
                ahead.append([threads.submit(self._part, part) for part in ranges])
                if len(ahead) > 1:
                    yield self._batch(ahead.popleft())
            while ahead:
                yield self._batch(ahead.popleft())
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _part(self, rows: range) -> ViewBatch:
        images, places, kept = [], [], []
        for place, value, index in zip(rows, *self.dataset.read(rows), strict=True):
            outcome = try_to_decode(value, index, self.num_channels, self.limits)
            if isinstance(outcome, BadImage):
                self.bad.append(outcome)
            else:
                images.append(outcome)
                places.append(place)
                kept.append(index)
        views = self.render(PixelBatch.of_arrays(images), kept) if images else None
        return ViewBatch(views, places)

    def _batch(self, parts: list[Future[ViewBatch]]) -> ViewBatch:
        results = [part.result() for part in parts]
        views = [result.views for result in results if result.views is not None]
        places = [place for result in results for place in result.places]
        return ViewBatch(torch.cat(views) if views else None, places)

    def check(self, num_used: int) -> None:
        """Say which images were left out, after the last batch.

        Args:
            num_used: images of all processes.

        Raises:
            ValueError: if there were none.
        """
        self.bad.sort(key=lambda error: error.index)
        num_bad = len(self.dataset) - num_used
        if num_used == 0:
            why = f" First {self.bad[0]}" if self.bad else ""
            raise ValueError(
                f"there must be an image that can be used; got none of {len(self.dataset)}.{why}"
            )
        if num_bad and rank() == 0:
            # Once: the same rows are evaluated again and again.
            logger.warning_once(describe_left_out(self.bad, len(self.dataset), num_bad))


def describe_left_out(bad: Sequence[BadImage], num_images: int, num_bad: int | None = None) -> str:
    """Return a line on images that are left out, and one for each of the first.

    Args:
        bad: those that this process has seen.
        num_images: of all.
        num_bad: of all processes.
    """
    count = len(bad) if num_bad is None else num_bad
    lines = [f"{count} of {num_images:,} images cannot be used and are left out:"]
    for e in bad[:_NAMED]:
        named = f" ({e.path})" if e.path else ""
        lines.append(printable(f"image {e.index}{named}: {e.reason}"))
    return "\n  ".join([*lines, "..."] if len(lines) <= count else lines)
