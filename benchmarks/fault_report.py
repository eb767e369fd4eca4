"""Break runs and files in every way that the tests know, and count what survived.

python benchmarks/fault_report.py                                   # everything, about 12 minutes
python benchmarks/fault_report.py --few --output few.json           # a few of each, to try it out

Writes benchmarks/results/faults.json; `python benchmarks/tables.py` makes the table of
docs/reliability.md from it. Run it with nothing else on the machine: it also measures what a save
and decoding cost. Needs the CIFAR-10 parquet and photographs for the latter (--dataset, --photos).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
from environment import environment
from timing import cpu_microseconds, median_ratio

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "reliability"))

import corpus  # noqa: E402
import fuzz  # noqa: E402
from killed_runs import (  # noqa: E402
    LOADERS,
    MOMENTS,
    Counts,
    Fault,
    Run,
    full_disks,
    kills_at_operations,
    kills_at_steps,
    of_steps,
    operations,
    save_overhead,
    survive,
)

from ssl_views import MultiViewDataset, load_images  # noqa: E402
from ssl_views.data.decode import decode_pixels  # noqa: E402
from ssl_views.data.image_limits import BadImage, ImageLimits  # noqa: E402


def killed_at_steps(folder, few):
    """SIGKILL at moments of steps, one process, every kind of loader."""
    counts = Counts()
    steps = (5, 9) if few else (1, 3, 5, 6, 8, 11)
    for args in LOADERS.values():
        moments = [m for m in MOMENTS if m != "load" or "dataloader_num_workers" not in args]
        trials = kills_at_steps(steps, moments)[:: 9 if few else 2]
        counts += survive(Run(folder / "run", args=args), trials)
    return counts


def killed_with_two_processes(folder, few):
    """SIGKILL of one of two processes."""
    moments = ("forward", "after_optimizer", "step_end")
    trials = [
        (Fault("kill", rank=number % 2, step=step, moment=moment),)
        for number, (step, moment) in enumerate((s, m) for s in (2, 4, 6, 8, 11) for m in moments)
    ]
    return survive(Run(folder / "run", processes=2), trials[:: 6 if few else 1])


def killed_in_a_save(folder, few):
    """SIGKILL at every file operation of saves; native writes cut at two places."""
    run = Run(folder / "run")
    chosen = of_steps(operations(run)[0], (6, 9, 12))
    return survive(run, kills_at_operations(chosen[:: 20 if few else 2]))


def killed_in_a_native_write(folder, few):
    """SIGKILL while tensors are written."""
    run = Run(folder / "run")
    writes = [x for x in of_steps(operations(run)[0], (6, 9)) if x[1][0] == "write"]
    return survive(run, kills_at_operations(writes[:: 3 if few else 1], shares=(0.01, 0.5, 0.99)))


def killed_in_a_save_of_two_processes(folder, few):
    """SIGKILL of either process at file operations and barriers of a save."""
    run = Run(folder / "run", processes=2)
    first, second = (of_steps(found, (9,)) for found in operations(run))
    trials = kills_at_operations(first[:: 30 if few else 4], shares=(0.5,))
    trials += kills_at_operations(second, rank=1, shares=(0.5,))[:: 3 if few else 1]
    return survive(run, trials)


def full_disk(folder, few):
    """No space left from some file operation of a save on."""
    run = Run(folder / "run")
    found = of_steps(operations(run)[0], (6, 9))
    return survive(run, full_disks(found)[:: 10 if few else 2], says="could not be written")


def told_to_terminate(folder, few):
    """SIGTERM: exit code 75, and nothing lost."""
    steps = (4, 9) if few else (1, 2, 4, 5, 6, 8, 10, 11)
    trials = [(Fault("terminate", step=step, moment="forward"),) for step in steps]
    counts = survive(Run(folder / "run"), trials, most_steps_lost=0)
    trials = [(Fault("terminate", rank=1, step=step, moment="forward"),) for step in steps[:3]]
    return counts + survive(Run(folder / "run2", processes=2), trials, most_steps_lost=0)


RUNS = {
    "SIGKILL at a step, one process": killed_at_steps,
    "SIGKILL at a step, two processes": killed_with_two_processes,
    "SIGKILL at a file operation of a save": killed_in_a_save,
    "SIGKILL in the middle of writing tensors": killed_in_a_native_write,
    "SIGKILL in a save, two processes": killed_in_a_save_of_two_processes,
    "disk full in a save": full_disk,
    "SIGTERM, one and two processes": told_to_terminate,
}


def files_as_specified():
    """Decode the corpus; return how many files there are, and which were not as specified."""
    wrong = []
    for entry in corpus.entries():
        limits = ImageLimits(**entry.limits)
        try:
            corpus.assert_as_expected(entry, decode_pixels(entry.data, 3, limits))
            found = ""
        except BadImage as error:
            found = type(error).__name__
        except AssertionError as error:
            found = f"other pixels: {error}"
        if found != entry.error:
            wrong.append(f"{entry.name}: {found or 'pixels'} instead of {entry.error or 'pixels'}")
    return {"tried": len(corpus.entries()), "lost": len(wrong), "failures": wrong}


def damaged_files(count):
    """Decode damaged files in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, fuzz.__file__, str(count), "2", str(Path(folder) / "case")]
        done = subprocess.run(command, check=True, capture_output=True)
    report = json.loads(done.stdout)
    kept = ("count", "results", "wrong", "slow", "slowest", "peak_megabytes", "formats")
    return {name: report[name] for name in kept}


def decoding(dataset, photos, rounds, seconds):
    """Return our time to read and decode rows, in multiples of plain `datasets`, by data set."""
    ratios = {}
    for name, source, count in (("CIFAR-10", dataset, 256), ("photographs", photos, 16)):
        rows = load_images(source).select(range(count))
        ours = MultiViewDataset(rows)
        plain = rows.cast_column("image", datasets.Image(mode="RGB"))
        methods = {
            "ours": (lambda d=ours, n=count: d.pixels(range(n), 3), count),
            "datasets": (lambda d=plain, n=count: [np.asarray(x) for x in d[:n]["image"]], count),
        }
        times = cpu_microseconds(methods, rounds, seconds)
        ratios[name] = {
            "microseconds": times,
            "ratio": median_ratio(times, "ours", "datasets"),
        }
    return ratios


def main():
    """Try everything, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--dataset", default="../shared/data/cifar10")
    parser.add_argument("--photos", default="../shared/data/photos")
    parser.add_argument("--output", default=ROOT / "benchmarks" / "results" / "faults.json")
    options = parser.parse_args()
    start = time.perf_counter()
    faults = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, attempt) in enumerate(RUNS.items()):
            place = Path(folder) / str(number)
            place.mkdir()
            counts = attempt(place, options.few)
            faults[name] = asdict(counts)
            print(f"{name}: {counts.tried} tried, {counts.lost} lost", flush=True)
            for failure in counts.failures:
                print(f"  {failure}", flush=True)
        save = save_overhead(Path(folder))
    print(f"a save: {save}", flush=True)
    files = files_as_specified()
    print(f"files: {files}", flush=True)
    damaged = damaged_files(2000 if options.few else 30_000)
    print(f"damaged files: {damaged['count']}, {damaged['results']}", flush=True)
    decode = decoding(options.dataset, options.photos, *((3, 0.2) if options.few else (9, 1.0)))
    for name, cell in decode.items():
        print(f"decoding {name}: {cell['ratio']:.2f} of plain datasets", flush=True)
    result = {
        **environment(),
        "seconds": time.perf_counter() - start,
        "faults": faults,
        "files": files,
        "damaged": damaged,
        "save": save,
        "decode": decode,
    }
    Path(options.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
