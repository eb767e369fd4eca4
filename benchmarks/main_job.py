"""The main job, `ssl-views pretrain` without arguments: time, peak memory, and the table it prints.

    python benchmarks/main_job.py

Writes benchmarks/results/main_job.json, with the facts of the model card of the first seed's
encoder. Nothing else should run meanwhile.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import environment

from model_cards import card_of

RUN = "runs/pretrain"
OUTPUT = Path(__file__).parent / "results" / "main_job.json"
SEEDS = (42, 43, 44)  # 42 is what the command does without --seed
COMMAND = (sys.executable, "-m", "ssl_views")
DIGITS = "8x8 scans of handwritten digits of the UCI data set that comes with scikit-learn"


def pretrain(folder, *words):
    """Run the main job in a folder; return the seconds of the command, and its table."""
    folder.mkdir()
    start = time.perf_counter()
    subprocess.run([*COMMAND, "pretrain", *words], cwd=folder, check=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **json.loads((folder / RUN / "summary.json").read_text())}


def evaluated_card(folder):
    """Evaluate a run, and return the facts of its card."""
    subprocess.run([*COMMAND, "evaluate", RUN], cwd=folder, check=True)
    metrics = json.loads((folder / RUN / "evaluation.json").read_text())
    return card_of(
        folder / RUN,
        data=f"{metrics['num_train']:,} {DIGITS}",
        evaluation_data=f"the {metrics['num_test']:,} other {DIGITS}",
        limits="A demonstration: the network is tiny, and the scans are of 8x8 pixels.",
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        folders = {seed: Path(work, str(seed)) for seed in SEEDS}
        runs = [
            {"seed": seed, **pretrain(folder, "--seed", str(seed))}
            for seed, folder in folders.items()
        ]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        card = evaluated_card(folders[SEEDS[0]])
    result = {"command": "ssl-views pretrain", "n": len(runs), "peak_bytes": peak, **environment()}
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps({**result, "runs": runs, "card": card}, indent=2) + "\n")
    print(f"written to {OUTPUT}")
