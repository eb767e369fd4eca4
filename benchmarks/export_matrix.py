"""Export an architecture of every timm family, and load it by timm and transformers alone.

python benchmarks/export_matrix.py    # about 2 minutes; once for each set of versions

Adds the installed versions to benchmarks/results/export_matrix.json; `python benchmarks/tables.py`
makes the table of docs/publishing.md from it.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from environment import environment

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "publish")]

from family_runs import Loaders, outcomes  # noqa: E402
from timm_families import FAILURES, LOADERS, cases  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "export_matrix.json"


def measured():
    """Return the outcomes with the installed versions."""
    chosen, families = cases(), {}
    with tempfile.TemporaryDirectory() as folder, Loaders() as loaders:
        for name, found in outcomes(chosen, loaders, Path(folder)):
            families[name] = {"architecture": chosen[name].architecture, **found}
            print(name, *(found[loader] for loader in LOADERS), sep="\t", flush=True)
    times = os.times()  # of this process, and of the one that loads
    seconds = times.user + times.system + times.children_user + times.children_system
    return {
        **environment(),
        "processor_seconds": round(seconds),
        "n": len(families),
        "families": families,
    }


def main():
    run = measured()
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("timm", "transformers"))
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {"runs": {}}
    runs = {**stored["runs"], versions: run}
    known = {
        name: {"loaders": list(why.loaders), "before": why.before, "reason": why.reason}
        for name, why in FAILURES.items()
    }
    RESULT.write_text(json.dumps({"known_failures": known, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
