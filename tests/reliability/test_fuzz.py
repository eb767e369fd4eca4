"""Damaged files, by the thousand: pixels or BadImage, soon, in little memory, and no crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import ALLOWED, MEGABYTES, OTHERS, SECONDS, damaged

FUZZ = Path(__file__).with_name("fuzz.py")


def run(folder, *words):
    """Run the fuzzer in a process of its own and return what it reports."""
    state = folder / "case"
    command = [sys.executable, str(FUZZ), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(state)], capture_output=True, timeout=900, env=environment, check=False
    )
    case = state.read_text() if state.is_file() else "before the first"
    error = done.stderr[-2000:].decode(errors="replace")
    assert done.returncode == 0, f"exit status {done.returncode} at case {case}: {error}"
    return json.loads(done.stdout)


def check(report):
    assert report["wrong"] == []  # (case, format, what came out); damaged(seed, case) is the file
    assert report["slow"] == []
    assert report["peak_megabytes"] < MEGABYTES, report["large"]
    counts = report["formats"]
    for format in ALLOWED:  # so that neither is tested on nothing
        assert counts[format].get("pixels", 0) > report["count"] / 200
        assert counts[format].get("bad", 0) > report["count"] / 200
    for format in OTHERS:  # one or another has become a valid file of an allowed format
        assert counts[format]["bad"] > report["count"] / 100
        assert counts[format].get("pixels", 0) <= report["count"] / 5000


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return run(tmp_path_factory.mktemp("fuzz"), 2000, 0)


def test_2000_damaged_files(report):
    check(report)


@pytest.mark.slow
def test_30000_damaged_files(tmp_path):
    check(run(tmp_path, 30_000, 1))


def test_a_small_file_that_states_a_huge_size_costs_little(report):
    """The size in a header is a promise of whoever wrote the file; memory is ours."""
    measured = report["headers"]
    assert len(measured) >= 60
    assert {name: case for name, case in measured.items() if case[0].startswith("WRONG")} == {}
    costly = {n: c for n, c in measured.items() if c[1] > SECONDS or c[2] > MEGABYTES}
    assert costly == {}


def test_a_case_is_always_the_same_file():
    assert damaged(0, 17) == damaged(0, 17)
    assert len({damaged(0, case)[1] for case in range(200)}) > 190
