"""The studies behind docs/reproduction.md: run what is left of them, and store what they found.

    pip install -e ".[plots]"
    python benchmarks/studies.py --preset cpu                  # hours on 2 cores, an hour a study
    python benchmarks/studies.py --preset gpu --minutes 9.5    # again and again, until all is done
    python benchmarks/studies.py --preset cpu --only num_views

Each study is `ssl-views sweep examples/studies/NAME_PRESET.yaml`, which goes on where it was
stopped or killed. Its results are copied to benchmarks/results/study_NAME_PRESET.json, with the
machine, and its picture to docs/images. Nothing else should run meanwhile.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from environment import environment

from ssl_views.cli import main
from ssl_views.sweep.results import read_results
from ssl_views.sweep.room import Room
from ssl_views.sweep.study import Study

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "examples" / "studies"
NAMES = ("num_views", "projector_dim", "fraction", "reference_formula")


def run(name, args, seconds_left):
    """Run what is left of a study; return whether it is complete."""
    folder = args.work_dir / name
    words = ["sweep", str(STUDIES / f"{name}.yaml"), "--output_dir", str(folder)]
    if args.dataset:
        words += ["--dataset", args.dataset]
    if args.jobs:
        words += ["--jobs", str(args.jobs)]
    if seconds_left is not None:
        words += ["--max_minutes", str(seconds_left / 60)]
    start = time.perf_counter()
    code = main(words)
    if code != 0:
        raise SystemExit(code)
    return store(name, args, folder, time.perf_counter() - start)


def store(name, args, folder, seconds):
    """Write what a study has found so far; return whether it is complete."""
    study = Study.read(STUDIES / f"{name}.yaml", {"dataset": args.dataset} if args.dataset else {})
    keys = {run.key for run in study.runs}
    found = [result for result in read_results(folder) if result.key in keys]
    path = ROOT / "benchmarks" / "results" / f"study_{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    same = before.get("keys") == sorted(keys)
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
        "keys": sorted(keys),
        "results": [asdict(one) for one in found],
    }
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    aside.replace(path)
    picture = folder / "study.png"
    if picture.exists():
        (ROOT / "docs" / "images" / f"study_{name}.png").write_bytes(picture.read_bytes())
    print(f"{name}: {len(found)} of {len(study.runs)} runs, {path.relative_to(ROOT)}", flush=True)
    return len(found) == len(study.runs)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--dataset", help="path or Hub id, instead of the study's")
    parser.add_argument("--dataset_name", default="CIFAR-10", help="how the result names the data")
    parser.add_argument("--jobs", type=int, help="runs at once")
    parser.add_argument("--minutes", type=float, help="stop after so long; call it again to go on")
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "studies")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    begun = time.monotonic()
    for name in args.only:
        left = None if args.minutes is None else 60 * args.minutes - (time.monotonic() - begun)
        if left is not None and left <= 0:
            break
        if not run(f"{name}_{args.preset}", args, left) and args.minutes is not None:
            sys.exit(75)  # call it again
