"""The theory in small models: augmentation graph, learning dynamics, kernel eigenvalues.

python benchmarks/theory.py             # about 2 minutes on one core
python benchmarks/theory_pictures.py    # docs/images/theory_*.png

Writes benchmarks/results/theory.json; `python benchmarks/tables.py` makes the table from it.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from environment import environment

from ssl_views.theory import (
    augmentation_spectrum,
    four_image_graph,
    kernel_eigenvalues,
    learning_dynamics,
    sampled_spectrum,
)

RESULT = Path(__file__).parent / "results" / "theory.json"
GRAPHS = {"class and pixels apart": (0.55, 0.2, 0.15, 0.1), "nearly equal": (0.55, 0.18, 0.17, 0.1)}
VIEWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
NUM_DRAWS = 40_000
WEIGHTS = (0.0, 0.01, 0.1, 1.0)
DIMS = (4, 8, 16, 32)
GRID = np.geomspace(1e-4, 4, 36)
SCALE = 1e-3  # standard deviation of initial embeddings
SEEDS = (0, 1, 2)
HELD = (2, 3, 4)  # numbers of eigenfunctions
SHARE_OF_DIM = 0.9
LAW = 0.9 / np.arange(1, 17)  # eigenvalues of the linear-Gaussian model
KERNEL_VIEWS = (2, 4, 8, 16)
KERNEL_IMAGES = (100, 300, 1000, 3000)
REPEATS = 100


def augmentation_graph():
    """Return spectrum and overlaps of the second eigenvector, by graph and number of views."""
    graphs = {}
    for name, probs in GRAPHS.items():
        matrix = four_image_graph(*probs).probabilities
        exact = augmentation_spectrum(matrix).eigenvalues.tolist()
        sampled = []
        for num_views in VIEWS:
            found = sampled_spectrum(matrix, num_views, NUM_DRAWS)
            sampled.append(
                {
                    "num_views": num_views,
                    "eigenvalues": found.eigenvalues.tolist(),
                    "spread": found.spread.tolist(),
                    "overlaps_of_second": dict(
                        zip(
                            ("class", "pixels", "both"), found.overlaps[1, 1:].tolist(), strict=True
                        )
                    ),
                }
            )
        graphs[name] = {"probabilities": probs, "exact": exact, "sampled": sampled}
    return {"num_draws": NUM_DRAWS, "graphs": graphs}


def dynamics():
    """Return rank and projections over steps, by weight."""
    law, dim, num_steps = 1 / torch.arange(1, 17), 4, 4000
    runs = {}
    for weight in WEIGHTS:
        found = learning_dynamics(law, dim, orthogonality_weight=weight, num_steps=num_steps)
        runs[str(weight)] = {
            "steps": found.steps.tolist(),
            "entropy_rank": found.entropy_rank.tolist(),
            "projections": found.projections[:, :6].tolist(),
            "last_rank_by_seed": [
                float(
                    learning_dynamics(
                        law, dim, orthogonality_weight=weight, num_steps=num_steps, seed=seed
                    ).entropy_rank[-1]
                )
                for seed in range(20)
            ],
        }
    return {"law": "1 / rank", "n": 16, "dim": dim, "learning_rate": 0.01, "runs": runs}


def _weight_at(held, wanted):
    """Return the weight at which so many are held first, log-linear between grid points."""
    above = np.flatnonzero(held >= wanted)
    if len(above) == 0:
        return None
    low, high = above[0] - 1, above[0]
    share = (wanted - held[low]) / (held[high] - held[low])
    return float(np.exp((1 - share) * np.log(GRID[low]) + share * np.log(GRID[high])))


def _held(scale, num_steps, every):
    """Return how many eigenfunctions are held after every so many steps, (T, weights) by dim.

    Then, how many of the first D after the last step, (weights,) by dim.
    """
    law, result, first = 1 / torch.arange(1, 65), {}, {}
    for dim in DIMS:
        counts, leading = np.zeros((num_steps // every + 1, len(GRID))), np.zeros(len(GRID))
        for seed in SEEDS:
            initial = np.random.default_rng(seed).standard_normal((dim, len(law))) * scale
            for column, weight in enumerate(GRID):
                found = learning_dynamics(
                    law,
                    dim,
                    orthogonality_weight=weight,
                    num_steps=num_steps,
                    record_every=every,
                    initial=torch.from_numpy(initial),
                ).projections.numpy()
                counts[:, column] += found.sum(axis=1) / len(SEEDS)
                leading[column] += found[-1, :dim].sum() / len(SEEDS)
        result[dim], first[dim] = counts, leading
    return result, first


def _weights_to_hold(held, record):
    """Return by number of eigenfunctions: weights by dim, and their exponent in it."""
    result = {}
    for count in HELD:
        used = [dim for dim in DIMS if dim > count]
        weights = [_weight_at(held[dim][record], count) for dim in used]
        slope = np.polyfit(np.log(used), np.log(weights), 1)[0]
        result[str(count)] = {
            "weights": dict(zip(map(str, used), weights, strict=True)),
            "exponent": float(-slope),
        }
    return result


def dims():
    """Return how many eigenfunctions are held, by dimension, weight and length of training."""
    lengths, every = (1000, 2000, 4000), 1000
    held, first = _held(SCALE, lengths[-1], every)
    small = {"scale": 1e-6, "num_steps": 8000}
    return {
        "law": "1 / rank",
        "n": 64,
        "learning_rate": 0.01,
        "scale": SCALE,
        "num_seeds": len(SEEDS),
        "num_steps": lengths[-1],
        "weights": GRID.tolist(),
        "held": {str(dim): held[dim][-1].tolist() for dim in DIMS},
        "held_of_the_first": {str(dim): first[dim].tolist() for dim in DIMS},
        "weight_to_hold": {
            str(length): _weights_to_hold(held, length // every) for length in lengths
        },
        "share_of_dim": SHARE_OF_DIM,
        "weight_to_hold_share_of_dim": {
            str(dim): _weight_at(held[dim][-1], SHARE_OF_DIM * dim) for dim in DIMS
        },
        "smaller_start": {
            **small,
            "weight_to_hold": _weights_to_hold(_held(**small, every=8000)[0], -1),
        },
    }


def _features(num_views, num_images, seed):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((num_images, len(LAW))) * LAW**0.5
    noise = rng.standard_normal((num_views, num_images, len(LAW))) * (1 - LAW) ** 0.5
    return torch.from_numpy(images + noise)


def _estimates(num_views, num_images):
    result = {"num_views": num_views, "num_images": num_images}
    for form, cross_view in (("cross_view", True), ("mean_view", False)):
        found = np.stack(
            [
                kernel_eigenvalues(_features(num_views, num_images, seed), cross_view=cross_view)
                for seed in range(REPEATS)
            ]
        )
        error = found - LAW
        result[form] = {
            "mean": found.mean(axis=0).tolist(),
            "spread": found.std(axis=0).tolist(),
            "bias_of_mean_eigenvalue": float(error.mean()),
            "bias_of_largest": float(error[:, 0].mean()),
            "spread_of_largest": float(found[:, 0].std()),
            "root_mean_square_error": float(np.sqrt(np.square(error).mean())),
        }
    return result


def kernel():
    """Return estimates of known eigenvalues, by views and images."""
    cells = [_estimates(views, images) for views in KERNEL_VIEWS for images in KERNEL_IMAGES]
    return {"law": "0.9 / rank", "eigenvalues": LAW.tolist(), "repeats": REPEATS, "cells": cells}


def _rounded(value):
    """Return a result with six digits."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main():
    start = time.process_time()
    torch.set_num_threads(1)
    result = {
        "what": "theory in small models: augmentation graph, learning dynamics, kernel eigenvalues",
        **environment(),
        "augmentation_graph": augmentation_graph(),
        "dynamics": dynamics(),
        "dims": dims(),
        "kernel": kernel(),
    }
    result["processor_seconds"] = round(time.process_time() - start)
    RESULT.write_text(json.dumps(_rounded(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
