"""The studies behind docs/reproduction.md: run what is left of them, and store what they found.

    pip install -e ".[plots]"
    python benchmarks/studies.py --preset cpu                # about 3.5 hours on 2 cores
    python benchmarks/studies.py --preset gpu --minutes 8    # again, until it ends with 0
    python benchmarks/studies.py --preset cpu --only num_views
    python benchmarks/studies.py --preset cpu --draw         # no runs: pictures of stored results

Each study is `ssl-views sweep examples/studies/NAME_PRESET.yaml`, which goes on where it was
stopped or killed. Its results are copied to benchmarks/results/study_NAME_PRESET.json, with the
machine and what raw pixels reach, and drawn to docs/images. Exits with 75 while runs are
left, then with 1 if some have failed. Nothing else should run meanwhile.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from environment import environment
from reproduction_tables import picture

from ssl_views import ViewRecipe, knn_accuracy
from ssl_views.cli import main
from ssl_views.data.sources import load_train_and_test, take_fraction
from ssl_views.evaluation.features import raw_pixels
from ssl_views.evaluation.labels import labels_of
from ssl_views.sweep.room import Room
from ssl_views.sweep.runner import results_of
from ssl_views.sweep.study import Study

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "examples" / "studies"
NAMES = ("num_views", "projector_dim", "fraction", "reference_formula")
FAILED, AGAIN = 1, 75  # exit codes


def run(name, args, seconds_left):
    """Run what is left of a study, and store what it has; return the exit code of the sweep."""
    folder = args.work_dir / name
    words = ["sweep", str(STUDIES / f"{name}.yaml"), "--output_dir", str(folder)]
    if args.dataset:
        words += ["--dataset", args.dataset]
    if args.jobs:
        words += ["--jobs", str(args.jobs)]
    if seconds_left is not None:
        words += ["--max_minutes", str(seconds_left / 60)]
    start, code = time.perf_counter(), 1
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    finally:
        store(name, args, folder, time.perf_counter() - start)
    if code not in (0, FAILED, AGAIN):
        raise SystemExit(code)
    return code


def store(name, args, folder, seconds):
    """Write what a study has found so far, if anything."""
    study = Study.read(STUDIES / f"{name}.yaml", {"dataset": args.dataset} if args.dataset else {})
    found = results_of(study, folder)
    if not found:
        return
    path = args.results_dir / f"study_{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    keys = [run.key for run in study.runs]
    same = before.get("keys") == keys
    result = {
        "what": study.about.strip(),
        "dataset": args.dataset_name,
        **environment(),
        "jobs": Room.of_this_machine(args.jobs).jobs,
        "seconds": seconds + (before["seconds"] if same else 0.0),
        "num_runs": len(study.runs),
        "n": len({run.flags["seed"] for run in study.runs}),
        "metric": study.metric,
        "reference": dict(study.reference),
        "targets": list(study.targets),
        "every_point_counts": study.every_point_counts,
        "base": {k: v for k, v in study.runs[0].flags.items() if k != "dataset"},
        "raw_pixels": before["raw_pixels"] if same else baseline(study.runs[0].flags),
        "keys": keys,
        "results": [asdict(one) for one in found],
    }
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    aside.replace(path)
    draw(name, args)
    print(f"{name}: {len(found)} of {len(study.runs)} runs stored", flush=True)


def draw(name, args):
    """Draw what is stored of a study."""
    result = json.loads((args.results_dir / f"study_{name}.json").read_text())
    if any(run["status"] == "finished" for run in result["results"]):
        (args.images_dir / f"study_{name}.png").write_bytes(picture(result))


def baseline(flags):
    """Return the kNN accuracy of raw pixels, with the images that the runs are evaluated on."""
    most = flags["probe_images"]
    rows = [
        take_fraction(rows, min(1.0, most / len(rows)))
        for rows in load_train_and_test(
            flags["dataset"],
            split=flags.get("probe_split", "train"),
            test_split=flags.get("test_split"),
        )
    ]
    recipe = ViewRecipe.named(flags["recipe"], image_size=flags["image_size"])
    pixels, labels = [raw_pixels(r, recipe) for r in rows], [labels_of(r) for r in rows]
    return knn_accuracy(pixels[0], labels[0], pixels[1], labels[1])


def parse(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted({path.stem.rpartition("_")[0] for path in STUDIES.glob("*.yaml")})
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", nargs="+", choices=known, default=NAMES)
    parser.add_argument("--dataset", help="path or Hub id, instead of the study's")
    parser.add_argument("--dataset_name", default="CIFAR-10", help="how the result names the data")
    parser.add_argument("--jobs", type=int, help="runs at once")
    parser.add_argument("--minutes", type=float, help="stop after so long; call it again to go on")
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "studies")
    parser.add_argument("--results_dir", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--images_dir", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--draw", action="store_true", help="draw what is stored; run nothing")
    return parser.parse_args(words)


def run_all(args):
    """Run the studies one after the other, or draw them; return the exit code."""
    if args.draw:
        for name in args.only:
            draw(f"{name}_{args.preset}", args)
        return 0
    begun, codes = time.monotonic(), []
    for name in args.only:
        left = None if args.minutes is None else 60 * args.minutes - (time.monotonic() - begun)
        if left is not None and left <= 0:
            return AGAIN
        codes.append(run(f"{name}_{args.preset}", args, left))
    return AGAIN if AGAIN in codes else max(codes)


if __name__ == "__main__":
    sys.exit(run_all(parse()))
