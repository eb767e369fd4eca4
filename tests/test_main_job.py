"""The main job as a new user runs it: time, memory, and whether it learned anything."""

import json
import resource
import subprocess
import sys
import time

import pytest


@pytest.mark.slow
@pytest.mark.timed
def test_the_main_job_is_quick_small_and_learns(tmp_path):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ssl_views", "pretrain"], cwd=tmp_path, check=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    summary = json.loads((tmp_path / "runs" / "pretrain" / "summary.json").read_text())
    gain = summary["trained backbone"]["knn"] - summary["untrained backbone"]["knn"]
    assert gain >= 0.05
    assert seconds < 240
    assert peak < 2e9
