"""Which orthogonality weight suits which dimension: the sweep behind orthogonality_weight="auto".

    pip install matplotlib
    python benchmarks/orthogonality_weight.py --dataset PATH_OR_HUB_ID      # 2 cores, under an hour
    python benchmarks/orthogonality_weight.py --dataset ... --preset gpu    # a larger one
    python benchmarks/orthogonality_weight.py --fit                     # rule and picture only

Pretrains a thin ResNet on a subset of CIFAR-10 once per loss, number of views, dimension and
weight, and measures kNN accuracy on frozen features. Every finished run is stored at once; a run
that is stored is not repeated, so a killed sweep goes on where it was. The rule weight = constant /
D^exponent is the one that loses the least accuracy against the best weight of every cell, on
average.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from environment import environment
from orthogonality_weight_picture import draw
from transformers import set_seed

from ssl_views import SSLViewsConfig, SSLViewsForPreTraining, ViewRecipe, effective_rank
from ssl_views.data.sources import load_train_and_test
from ssl_views.evaluation.knn import knn_accuracy
from ssl_views.evaluation.labels import labels_of
from ssl_views.losses import AUTO

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "images" / "orthogonality_weight.png"
# Weight times D, half a decade apart. For VICReg a weight b is an invariance weight of 1 / (b D).
CONSTANTS = {
    "barlow_twins": [0.1, 0.32, 1, 3.2, 10, 32, 100],
    "vicreg": [0.0013, 0.004, 0.013, 0.04, 0.13, 0.4, 1.3],
    "kernel": [4, 13, 40, 128, 400, 1300, 4000],
}
# Dilated, because the stock network would leave one pixel of a 32 px view.
THIN = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "output_stride": 8}
PRESETS = {
    "cpu": {
        "model": {"backbone": "resnet18", "model_args": THIN, "upscale": 1},
        "dims": [32, 64, 128, 256, 512],
        "num_images": 10_000,
        "num_test": 5_000,
        "batch_size": 128,
        "num_steps": 128,
        "seeds": [0],
    },
    "gpu": {
        "model": {"backbone": "resnet18", "upscale": 2},
        "dims": [32, 64, 128, 256, 512, 2048, 8192],
        "num_images": 50_000,
        "num_test": 10_000,
        "batch_size": 512,
        "num_steps": 1_500,
        "seeds": [0, 1, 2],
    },
}
NUM_VIEWS = (2, 4)
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 5e-3, 0.05, 0.1
CROP_SCALE = (0.25, 1.0)
KEY = ("loss", "num_views", "dim", "weight", "seed")


def load(dataset, preset, device):
    """Return decoded images and labels, (N, 3, 32, 32) uint8, of a training and a test subset."""
    from ssl_views.data.decode import decode_image

    sets = []
    for rows, count in zip(
        load_train_and_test(dataset), (preset["num_images"], preset["num_test"]), strict=True
    ):
        rows = rows.shuffle(seed=0).select(range(min(count, len(rows))))
        images = torch.stack([decode_image(row["image"], 3) for row in rows])
        sets.append((images.to(device), labels_of(rows)))
    return sets


def learning_rate(step, num_steps):
    warmup = WARMUP * num_steps
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


def train(sets, preset, device, *, loss, num_views, dim, weight, seed):
    """Pretrain once and evaluate; return what was found."""
    start = time.perf_counter()
    set_seed(seed)
    config = SSLViewsConfig(
        **preset["model"],
        image_size=32,
        num_views=num_views,
        projector_dim=dim,
        loss=loss,
        orthogonality_weight=weight,
        recipe="cifar",
        recipe_args={"crop_scale": list(CROP_SCALE)},
    )
    recipe = ViewRecipe.for_config(config)
    model = SSLViewsForPreTraining(config).to(device)
    (images, labels), (test_images, test_labels) = sets
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    batch_size, num_steps = preset["batch_size"], preset["num_steps"]
    per_epoch = len(images) // batch_size
    for step in range(num_steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = torch.randperm(
                len(images), generator=torch.Generator().manual_seed(seed + 1000 * epoch)
            )
        chosen = order[position * batch_size : (position + 1) * batch_size]
        views = recipe.views(
            list(images[chosen.to(device)]), chosen.tolist(), epoch=epoch, seed=seed
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps)
        with torch.autocast(device, torch.bfloat16):
            total = model(views).loss
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()

    @torch.no_grad()
    def features(pixels):
        parts = []
        for chunk in pixels.split(500):
            views = recipe.clean_view(list(chunk))
            with torch.autocast(device, torch.bfloat16):
                output = model.ssl_views(views)
            parts.append(output.pooler_output.float().cpu())
        return torch.cat(parts)

    train_features, test_features = features(images), features(test_images)
    finite = bool(torch.isfinite(test_features).all())
    return {
        "knn": knn_accuracy(train_features, labels, test_features, test_labels) if finite else 0.1,
        "effective_rank": effective_rank(test_features) if finite else 1.0,
        "final_loss": total.item() if math.isfinite(total.item()) else None,
        "seconds": time.perf_counter() - start,
    }


_worker = {}


def _start(dataset, preset, device, threads):
    torch.set_num_threads(threads)
    _worker.update(sets=load(dataset, preset, device), preset=preset, device=device)


def _run(job):
    return {**job, **train(**_worker, **job)}


def jobs(preset, losses):
    """Return all runs; the middle weights of all cells come first."""
    order = sorted(range(7), key=lambda i: abs(i - 3))
    return [
        dict(zip(KEY, (loss, v, d, CONSTANTS[loss][i] / d, seed), strict=True))
        for seed, i, d, v, loss in product(
            preset["seeds"], order, preset["dims"], NUM_VIEWS, losses
        )
    ]


def sweep(args, preset, path):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = json.loads(path.read_text()) if path.exists() else {"runs": [], "seconds": 0.0}
    if result["runs"] and result["preset"] != preset:
        raise SystemExit(f"{path} holds runs of another preset; move it away")
    done = {tuple(run[k] for k in KEY) for run in result["runs"]}
    todo = [job for job in jobs(preset, args.losses) if tuple(job.values()) not in done]
    result.update(what="kNN (k = 20, temperature 0.1) on one clean view per image")
    result.update(dataset=args.dataset_name, preset=preset, **environment())
    before, start = result["seconds"], time.perf_counter()
    threads = max(1, (os.cpu_count() or 1) // args.processes)
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.processes, _start, (args.dataset, preset, device, threads)) as pool:
        for number, run in enumerate(pool.imap_unordered(_run, todo), 1):
            result["runs"].append(run)
            result["seconds"] = before + time.perf_counter() - start
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=1) + "\n")
            partial.replace(path)
            print(f"{number}/{len(todo)} {run}", flush=True)


def cells(runs, loss):
    """Return {(num_views, dim): (log weights, mean kNN)} of one loss, by ascending weight."""
    found = {}
    for run in runs:
        if run["loss"] == loss:
            cell = found.setdefault((run["num_views"], run["dim"]), {})
            cell.setdefault(run["weight"], []).append(run["knn"])
    return {
        key: (np.log(sorted(cell)), np.array([np.mean(cell[w]) for w in sorted(cell)]))
        for key, cell in sorted(found.items())
    }


def best_weight(log_weights, accuracy):
    """Return (weight, whether it is inside the grid), from a parabola through the best three."""
    top = int(accuracy.argmax())
    if top in (0, len(accuracy) - 1):
        return math.exp(log_weights[top]), False
    near = slice(top - 1, top + 2)
    a, b, _ = np.polyfit(log_weights[near], accuracy[near], 2)
    return math.exp(-b / (2 * a)) if a < 0 else math.exp(log_weights[top]), True


def regret(found, constant, exponent):
    """Return the mean loss of accuracy of constant / D^exponent against the best weights."""
    losses = []
    for (_, dim), (log_weights, accuracy) in found.items():
        wanted = math.log(constant) - exponent * math.log(dim)
        losses.append(accuracy.max() - np.interp(wanted, log_weights, accuracy))
    return float(np.mean(losses))


def best_rule(found, exponents):
    """Return (regret, constant, exponent) of the best rule; 64 is the dimension it turns about."""
    logs = np.concatenate([w + np.log(d / 64) for (_, d), (w, _) in found.items()])
    at_64 = np.exp(np.linspace(logs.min(), logs.max(), 121))
    rules = [(regret(found, c * 64**e, e), c * 64**e, e) for e in exponents for c in at_64]
    lowest = min(rule[0] for rule in rules)
    # A flat bottom is the rule, not its edge: the middle of all that are within 0.1 points.
    flat = [rule for rule in rules if rule[0] <= lowest + 1e-3]
    exponent = float(np.median([e for _, _, e in flat]))
    exponent = min(exponents, key=lambda e: abs(e - exponent))
    same = [c for _, c, e in flat if e == exponent] or [c for r, c, e in [min(flat)]]
    constant = float(np.exp(np.mean(np.log(same))))
    return regret(found, constant, exponent), constant, float(exponent)


def fit(runs):
    """Return the fitted rules by loss."""
    exponents = np.round(np.arange(-0.5, 2.01, 0.1), 1)
    rules = {}
    for loss in CONSTANTS:
        found = cells(runs, loss)
        if not found or any(len(log_weights) < 7 for log_weights, _ in found.values()):
            continue
        free, fixed = best_rule(found, exponents), best_rule(found, [1.0])
        without = [
            best_rule({k: v for k, v in found.items() if k[1] != dim}, exponents)[2]
            for dim in sorted({dim for _, dim in found})
        ]
        best = {key: best_weight(*cell) for key, cell in found.items()}
        rules[loss] = {
            "exponent": free[2],
            "exponent_range_leaving_out_one_dim": [min(without), max(without)],
            "constant": free[1],
            "regret": free[0],
            "constant_at_exponent_1": fixed[1],
            "regret_at_exponent_1": fixed[0],
            "regret_of_auto": regret(found, *AUTO[loss]),
            "best_weights": [
                {"num_views": v, "dim": d, "weight": w, "inside_grid": inside}
                for (v, d), (w, inside) in best.items()
            ],
        }
    return rules


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset")
    parser.add_argument("--dataset_name", default="CIFAR-10", help="how the result names the data")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--losses", nargs="+", default=list(CONSTANTS), choices=CONSTANTS)
    parser.add_argument("--processes", type=int, default=None, help="runs at once")
    parser.add_argument("--fit", action="store_true", help="only fit and draw what is stored")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if not args.fit and args.dataset is None:
        parser.error("--dataset is needed to run the sweep")
    gpu = torch.cuda.is_available()
    args.processes = args.processes or (4 if gpu else os.cpu_count() or 1)
    suffix = "" if args.preset == "cpu" else f"_{args.preset}"
    args.output = args.output or RESULTS / f"orthogonality_weight{suffix}.json"
    return args


if __name__ == "__main__":
    args = parse()
    if not args.fit:
        sweep(args, PRESETS[args.preset], args.output)
    result = json.loads(args.output.read_text())
    result["rules"] = fit(result["runs"])
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["rules"], indent=1))
    found = {loss: cells(result["runs"], loss) for loss in result["rules"]}
    draw(found, result["rules"], AUTO, PICTURE.with_stem(args.output.stem))
