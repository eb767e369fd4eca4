"""The main job, `ssl-views pretrain` without arguments: time, peak memory, and the table it prints.

    python benchmarks/main_job.py

Writes benchmarks/results/main_job.json. Nothing else should run meanwhile.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import environment

OUTPUT = Path(__file__).parent / "results" / "main_job.json"
SEEDS = (42, 43, 44)  # 42 is what the command does without --seed

if __name__ == "__main__":
    runs = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-m", "ssl_views", "pretrain", "--seed", str(seed)]
            subprocess.run(command, cwd=folder, check=True)
            seconds = time.perf_counter() - start
            summary = json.loads(Path(folder, "runs/pretrain/summary.json").read_text())
        runs.append({"seed": seed, "seconds": seconds, **summary})
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    result = {"command": "ssl-views pretrain", "n": len(runs), "peak_bytes": peak, **environment()}
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps({**result, "runs": runs}, indent=2) + "\n")
    print(f"written to {OUTPUT}")
