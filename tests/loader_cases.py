"""Images, loaders and comparisons for the tests of loaders and data sets."""

import io
import threading
import time
from functools import cache

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ssl_views import MultiViewCollator, MultiViewDataset, MultiViewLoader, ViewRecipe
from ssl_views.native import why_missing

NATIVE = why_missing() is None
needs_library = pytest.mark.skipif(not NATIVE, reason="the native engine was not built")
RECIPE = ViewRecipe.named("cifar", image_size=16, num_views=2)
SIZES = [(9, 13), (16, 16), (31, 20), (12, 40), (8, 8)]


def pixels(number, size):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def encoded(array, format="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=format)
    return buffer.getvalue()


@cache
def mixed_images():
    """Forty-two images of five sizes, every other one a JPEG."""
    images = [encoded(pixels(i, SIZES[i % 5]), "JPEG" if i % 2 else "PNG") for i in range(42)]
    columns = {"image": images, "index": [7 * i + 2**40 for i in range(42)]}
    return datasets.Dataset.from_dict(columns)


def plain(count=10, size=(12, 12)):
    return [{"image": pixels(i, size)} for i in range(count)]


def stock(dataset, collator=None, batch_size=8, **options):
    collator = collator or MultiViewCollator(RECIPE, seed=3)
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collator, **options)


def threaded(dataset, collator=None, batch_size=8, loading=None, **options):
    collator = collator or MultiViewCollator(RECIPE, seed=3)
    items = DataLoader(dataset, batch_size=batch_size, collate_fn=MultiViewLoader.items, **options)
    return MultiViewLoader(items, collator, **(loading or {}))


def is_same(views, other, engine="native"):
    """Bit for bit; the torch engine rounds a view as its place among others has it."""
    if NATIVE and engine == "native":
        return torch.equal(views, other)
    limit = 1e-5 if views.dtype == torch.float32 else 0.02
    return torch.allclose(views, other, atol=limit, rtol=0)


def assert_same(loader, expected, engine="native"):
    found = list(loader)
    assert len(found) == len(expected)
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for name, views in batch.items():
            assert views.stride() == other[name].stride()
            assert views.dtype == other[name].dtype
            assert is_same(views, other[name], engine)


def our_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ssl_views")]


def wait_until(condition, seconds=10.0):
    stop = time.monotonic() + seconds
    while not condition() and time.monotonic() < stop:
        time.sleep(0.001)
    assert condition()


class Counting(MultiViewDataset):
    """Counts the images that are decoded, and the most at once; may wait before each."""

    def __init__(self, rows, gate=None):
        super().__init__(rows, epoch=0)
        self.seen, self.most, self.gate, self._lock = 0, 0, gate, threading.Lock()

    def pixels(self, rows, num_channels, **options):
        with self._lock:
            self.seen, self.most = self.seen + len(rows), max(self.most, len(rows))
        if self.gate is not None:
            self.gate(self.seen)
        return super().pixels(rows, num_channels, **options)
