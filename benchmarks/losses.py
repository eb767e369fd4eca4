"""Time and memory of the losses beside the peers' own code, in one interleaved run.

    pip install lightly && pip install --no-deps lightly_utils solo-learn==1.0.2
    python benchmarks/losses.py          # one thread; nothing else should run; about 15 minutes

Peers have losses of two views; for more they are looped over pairs and averaged, as their users do.
Every round runs all losses in shuffled order, forward and backward; a ratio is the median of the
ratios of the rounds. Peak memory is that of a fresh process, above what it holds before the loss.
solo-learn is left out of the largest shape, where it takes minutes a pass. Writes
benchmarks/results/losses.json; benchmarks/tables.py makes the tables from it.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import multiprocessing
import random
import re
import time
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np
import torch
from environment import environment

from ssl_views import barlow_twins_loss, kernel_loss, vicreg_loss

RESULTS = Path(__file__).parent / "results"
WEIGHT = 5e-3
# (V, B, D)
SHAPES = [
    (2, 256, 256),
    (2, 1024, 256),
    (2, 1024, 1024),
    (2, 256, 8192),
    (4, 256, 256),
    (4, 1024, 256),
    (4, 256, 1024),
    (4, 256, 8192),
    (8, 256, 256),
]
SCALING = [(num_views, 1024, 256) for num_views in (2, 4, 8, 16)]
MEMORY = [(4, 256, 1024), (4, 256, 8192)]
MIN_SECONDS = 0.2
PEERS = ("lightly", "solo-learn")


def _over_pairs(two_views):
    def loss(z):
        pairs = list(combinations(z, 2))
        return sum(two_views(a, b) for a, b in pairs) / len(pairs)

    return loss


def file_of(distribution, path, name):
    """Import one file of a distribution whose package needs more than is installed."""
    location = importlib.metadata.distribution(distribution).locate_file(path)
    spec = importlib.util.spec_from_file_location(name, location)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def version_of(distribution):
    return importlib.metadata.version(distribution)


def losses():
    """Return every loss by name, embeddings (V, B, D) -> 0-d."""
    from lightly.loss import BarlowTwinsLoss, VICRegLoss

    solo_barlow = file_of("solo-learn", "solo/losses/barlow.py", "solo_barlow")
    solo_vicreg = file_of("solo-learn", "solo/losses/vicreg.py", "solo_vicreg")
    return {
        "lightly Barlow Twins": _over_pairs(BarlowTwinsLoss(lambda_param=WEIGHT)),
        "solo-learn Barlow Twins": _over_pairs(
            lambda a, b: solo_barlow.barlow_loss_func(a, b, lamb=WEIGHT, scale_loss=1.0)
        ),
        "lightly VICReg": _over_pairs(VICRegLoss()),
        "solo-learn VICReg": _over_pairs(solo_vicreg.vicreg_loss_func),
        "Barlow Twins, mean of the others": lambda z: barlow_twins_loss(z, WEIGHT).total,
        "Barlow Twins, all pairs": lambda z: barlow_twins_loss(z, WEIGHT, all_pairs=True).total,
        "Barlow Twins, redundancy of the mean": lambda z: (
            barlow_twins_loss(z, WEIGHT, redundancy="mean").total
        ),
        "VICReg": lambda z: vicreg_loss(z).total,
        "kernel": lambda z: kernel_loss(z).total,
    }


def embeddings(shape):
    g = torch.Generator().manual_seed(0)
    common = torch.randn(1, *shape[1:], generator=g)
    return (common + torch.randn(*shape, generator=g)).requires_grad_()


def step(loss, z):
    z.grad = None
    start = time.perf_counter()
    loss(z).backward()
    return time.perf_counter() - start


def measure(shape, chosen, rounds):
    """Return milliseconds per forward and backward pass, by loss and round."""
    z, order = embeddings(shape), list(chosen)
    repeats = {}
    for name in order:  # also the warm-up
        first = step(chosen[name], z)
        second = step(chosen[name], z) if first < 5 else first
        repeats[name] = max(1, round(MIN_SECONDS / second))
    times = {name: [] for name in order}
    shuffle = random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            gc.collect()
            total = sum(step(chosen[name], z) for _ in range(repeats[name]))
            times[name].append(1e3 * total / repeats[name])
    return times


def _peak(name, shape, pipe):
    torch.set_num_threads(1)
    loss, z = losses()[name], embeddings(shape)
    step(loss, embeddings((2, 16, 32)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def kilobytes(field):
        return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    before = kilobytes("VmRSS")
    step(loss, z)
    pipe.send((kilobytes("VmHWM") - before) * 1024)


def peak_bytes(name, shape):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(name, shape, sender))
    process.start()
    sender.close()  # or a child that died would be waited for
    result = receiver.recv()
    process.join()
    return result


def exponent(times):
    """Return the slope of log time over log V."""
    views = np.log([shape[0] for shape in SCALING])
    return float(np.polyfit(views, np.log([median(t) for t in times]), 1)[0])


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "losses.json")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    torch.set_num_threads(1)
    every = losses()
    own = {name: loss for name, loss in every.items() if name.split()[0] not in PEERS}
    result = {
        "what": "forward and backward on one thread, float32, milliseconds; peers over all pairs",
        "rounds": args.rounds,
        **environment(),
        "cells": [],
        "scaling": [],
        "peak_bytes": [],
    }
    for package in PEERS:
        result["versions"][package] = version_of(package)
    for shape in SHAPES:
        slow = {name for name in every if name.startswith("solo") and shape == (4, 256, 8192)}
        chosen = {name: loss for name, loss in every.items() if name not in slow}
        times = measure(shape, chosen, args.rounds)
        result["cells"].append({"shape": shape, "milliseconds": times})
        print(shape, {name: round(median(t), 2) for name, t in times.items()}, flush=True)
    for shape in SCALING:
        result["scaling"].append({"shape": shape, "milliseconds": measure(shape, own, args.rounds)})
    result["exponents"] = {
        name: exponent([cell["milliseconds"][name] for cell in result["scaling"]]) for name in own
    }
    print("exponent over V:", result["exponents"], flush=True)
    for shape in MEMORY:
        peaks = {name: peak_bytes(name, shape) for name in every}
        result["peak_bytes"].append({"shape": shape, "bytes": peaks})
        print(shape, {name: f"{peak / 1e6:.0f} MB" for name, peak in peaks.items()}, flush=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
