"""Views per second of whole loaders beside lightly's, by the wall clock, in one interleaved run.

    pip install lightly torchvision
    python benchmarks/loader.py --dataset CIFAR10 --photos FOLDER_OF_PHOTOS

From rows to batches of V views, on two cores: two worker processes for the peer, two threads for
ours. One recipe for all, that of benchmarks/views.py. Every round runs all methods in shuffled
order, each in whole passes over its images; a ratio is the median of the ratios of the rounds.
Workers start, and everything is warm, before. What each method does and leaves out is WORK below.
Beforehand, the batches of MultiViewLoader are compared with those of a stock DataLoader. Nothing
else should run; about 3 minutes. Writes benchmarks/results/loader.json.
"""

import argparse
import gc
import importlib.metadata
import io
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from statistics import median

import datasets
import simplejpeg
import torch
from environment import environment
from PIL import Image
from timing import median_ratio
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import set_seed
from views import lightly_view, recipe_of

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    MultiViewLoader,
    PixelCache,
    load_images,
)
from ssl_views.native import instruction_sets

RESULTS = Path(__file__).parent / "results"
SEED = 0
NUM_VIEWS = 4
NUM_THREADS = 2  # or worker processes
SIZES = (32, 224)
BATCH_SIZE = {32: 256, 224: 32}
NUM_BATCHES = {32: 192, 224: 12}  # of a pass of ours
NUM_BATCHES_OF_PROCESSES = {32: {"lightly": 8, "ours": 48}, 224: {"lightly": 12, "ours": 12}}
NUM_CHECKED = 3  # batches
CACHE_BYTES = 2**31
PEER = "lightly"
WORK = {
    "lightly": "torch DataLoader, shuffled, 2 persistent worker processes, default prefetch and "
    "collate, over a data set that holds the encoded images as a list of bytes, decodes with PIL "
    "and calls lightly's MultiViewTransform of V BYOLView2Transform; V tensors (B, 3, S, S)",
    "ours, JPEG": "MultiViewLoader, 2 threads, prefetch 2, over a shuffled DataLoader of "
    "MultiViewDataset; rows from the Arrow table, decoded once per image; (B, V, 3, S, S) float32",
    "ours, cache": "the same from PixelCache in memory; filling it is not in the time",
    "..., 1 thread": "the same with one thread",
    "..., processes": "torch DataLoader, shuffled, 2 persistent worker processes, with "
    "MultiViewCollator",
    "decoding": "a bound from JPEG: simplejpeg alone on a list of bytes, 2 threads; V times the "
    "images per second",
    "all": "consumed by reading one value of each batch; what processes send lies in shared memory "
    "that a training step would have to map first",
}


class EncodedImages(Dataset):
    """Images for the peer: the bytes in memory, decoded with PIL."""

    def __init__(self, encoded, transform):
        self.encoded, self.transform = encoded, transform

    def __len__(self):
        return len(self.encoded)

    def __getitem__(self, row):
        image = Image.open(io.BytesIO(self.encoded[row])).convert("RGB")
        return self.transform(image), row


def lightly_loader(encoded, size):
    from lightly.transforms.multi_view_transform import MultiViewTransform

    images = EncodedImages(encoded, MultiViewTransform([lightly_view(size)] * NUM_VIEWS))
    return stock_loader(images, size)


def stock_loader(rows, size, collate_fn=None, num_workers=NUM_THREADS, shuffle=True):
    return DataLoader(
        rows,
        batch_size=BATCH_SIZE[size],
        shuffle=shuffle,
        drop_last=True,
        collate_fn=collate_fn,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def our_loader(rows, size, num_threads=NUM_THREADS, shuffle=True):
    batches = stock_loader(rows, size, MultiViewLoader.items, 0, shuffle)
    collator = MultiViewCollator(recipe_of(size, NUM_VIEWS), SEED)
    return MultiViewLoader(batches, collator, num_threads=num_threads, prefetch=2)


def rows_of(args, size):
    """Return enough encoded images for a pass, some of them many times."""
    rows = load_images(args.dataset if size == 32 else args.photos)
    needed = BATCH_SIZE[size] * NUM_BATCHES[size]
    rows = datasets.concatenate_datasets([rows] * -(-needed // len(rows)))
    return rows.select(range(needed)) if len(rows) > needed else rows


def compare(sources, size):
    """Compare the batches of both of our loaders; return how many views were equal."""
    collator, equal = MultiViewCollator(recipe_of(size, NUM_VIEWS), SEED), 0
    expected = list(islice(stock_loader(sources["JPEG"], size, collator, 0, False), NUM_CHECKED))
    for name, source in sources.items():
        batches = islice(our_loader(source, size, shuffle=False), NUM_CHECKED)
        for batch, other in zip(batches, expected, strict=True):
            pairs = zip(batch.values(), other.values(), strict=True)
            if batch.keys() != other.keys() or not all(torch.equal(*pair) for pair in pairs):
                raise SystemExit(f"batches of {size} px from {name} differ from the DataLoader's")
            equal += batch["pixel_values"].shape[:2].numel()
    return equal


def consume(loader):
    """Take all batches, reading a value of each; return the number of views."""
    num_views = 0
    for batch in loader:
        views = [batch["pixel_values"]] if isinstance(batch, dict) else batch[0]
        views[-1].view(-1)[-1].item()
        num_views += sum(x.shape[:-3].numel() for x in views)
    return num_views


def decoding(encoded, threads):
    """Decode all images in threads; return the number of views that could be made of them."""
    share = -(-len(encoded) // (8 * NUM_THREADS))
    parts = [encoded[i : i + share] for i in range(0, len(encoded), share)]
    list(threads.map(lambda part: [simplejpeg.decode_jpeg(code, "RGB") for code in part], parts))
    return NUM_VIEWS * len(encoded)


def methods_of(sources, encoded, size, threads):
    """Return functions that make a pass and return its number of views, by method."""
    epochs, collator = count(), MultiViewCollator(recipe_of(size, NUM_VIEWS), SEED)
    num_images = {who: n * BATCH_SIZE[size] for who, n in NUM_BATCHES_OF_PROCESSES[size].items()}

    def a_pass(source, loader):
        def run():
            source.epoch = next(epochs)
            return consume(loader)

        return run

    peer = lightly_loader(encoded[: num_images["lightly"]], size)
    methods = {PEER: lambda: consume(peer)}
    for name, source in sources.items():  # processes first: they should be forked before threads
        few = Subset(source, range(num_images["ours"]))
        methods[f"ours, {name}, processes"] = a_pass(source, stock_loader(few, size, collator))
    for name, source in sources.items():
        methods[f"ours, {name}"] = a_pass(source, our_loader(source, size))
        methods[f"ours, {name}, 1 thread"] = a_pass(source, our_loader(source, size, 1))
    return methods | {"decoding": lambda: decoding(encoded, threads)}


def views_per_second(methods, rounds, seconds):
    """Return views per second by method and round; each makes whole passes, after one before."""
    for run in methods.values():
        run()
    order, shuffle = list(methods), random.Random(SEED)
    rates = {name: [] for name in order}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            gc.collect()
            num_views, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < seconds:
                num_views += methods[name]()
            rates[name].append(num_views / passed)
    return rates


def show(rates):
    for name, values in rates.items():
        spread = f"[{min(values):,.0f} .. {max(values):,.0f}]"
        ratio = median_ratio(rates, name, PEER)
        print(f"{name:24s} {median(values):11,.0f} views/s {spread:26s} x {ratio:.1f}", flush=True)


def parse():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--dataset", required=True, help="images of 32 px, for views of 32 px")
    parser.add_argument("--photos", required=True, help="photographs, for views of 224 px")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="per method and round, at least")
    parser.add_argument("--output", type=Path, default=RESULTS / "loader.json")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    torch.set_num_threads(1)
    set_seed(SEED)
    what = "views per second of the wall clock, by method and round"
    options = {"num_views": NUM_VIEWS, "num_threads_or_processes": NUM_THREADS, "prefetch": 2}
    result = {"what": what, "rounds": args.rounds, "seconds_per_round": args.seconds, "seed": SEED}
    result |= {"instruction_set": instruction_sets()[-1], **environment(), "work": WORK}
    result |= {**options, "cells": []}
    for size in args.sizes:
        rows = rows_of(args, size)
        sources = {"JPEG": MultiViewDataset(rows, epoch=0)}
        cache = PixelCache.of(sources["JPEG"], 3, limit_bytes=CACHE_BYTES, num_threads=NUM_THREADS)
        sources["cache"] = MultiViewDataset(rows, epoch=0, cache=cache)
        encoded = [image["bytes"] for image in rows["image"]]
        num_equal = compare(sources, size)
        print(f"{size} px, V = {NUM_VIEWS}; {num_equal} views equal the DataLoader's", flush=True)
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            methods = methods_of(sources, encoded, size, threads)
            rates = views_per_second(methods, args.rounds, args.seconds)
        show(rates)
        ratios = {n: median_ratio(rates, f"ours, {n}", PEER) for n in sources}
        cell = {"size": size, "batch_size": BATCH_SIZE[size], "num_images": len(rows)}
        cell |= {"num_equal_views": num_equal, "ratios": ratios, "views_per_second": rates}
        result["cells"].append(cell)
        del methods  # ends the workers
    for package in (PEER, "pillow", "simplejpeg"):
        result["versions"][package] = importlib.metadata.version(package)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
