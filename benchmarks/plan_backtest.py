"""How well `ssl-views plan` foretells: the stored studies, cut short, against what came.

    python benchmarks/plan_backtest.py

Each study of benchmarks/results/study_*.json with a constant learning rate is cut after a half and
a third of its evaluations, though not before the four that a plan needs; the plan for the time that
all runs take is compared with the means that were measured then. The intervals are for the mean
over the runs at hand, so they leave out the spread of seeds, which those runs share with what is
foretold; only their law is tested.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from environment import environment

from ssl_views.sweep.curves import SECONDS, group_results
from ssl_views.sweep.planning import plan_budget
from ssl_views.sweep.power_law_curves import MIN_POINTS, GroupCurve
from ssl_views.sweep.results import RunResult

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHARES = (1 / 2, 1 / 3)
NUM_DRAWS = 4000


def cut(run, share):
    """Return a run as it would be if it had ended after a share of its evaluations."""
    kept = max(MIN_POINTS, int(share * _count(run)))
    first = [i for i, step in enumerate(run.curve["step"]) if step == 0]  # the start
    kept += len(first)
    return replace(run, curve={name: column[:kept] for name, column in run.curve.items()})


def _count(run):
    return sum(step > 0 for step in run.curve["step"])


def backtest(runs, metric, share):
    """Return what the plan from the first share of the time says, beside what came."""
    groups = group_results(runs)
    runs = [run for group in groups for run in group]
    end = min(run.curve[SECONDS][-1] for run in runs)
    measured = {}
    for group in groups:
        curve = GroupCurve(group, metric)
        measured[curve.name] = float(np.interp(end, curve.times, curve.mean))
    shorter = [cut(run, share) for run in runs]
    plan = plan_budget(shorter, end, metric=metric, every_point_counts=True)
    generator = np.random.default_rng(0)
    groups = {}
    for group in group_results(shorter):
        curve = GroupCurve(group, metric)
        drawn = curve.draw(np.array([end]), NUM_DRAWS, generator)[:, 0]
        low, high = np.quantile(drawn, [0.025, 0.975])
        groups[curve.name] = {
            "low": float(low),
            "predicted": float(np.median(drawn)),
            "high": float(high),
            "measured": measured[curve.name],
        }
    chosen = plan.groups[0]
    return {
        "share": _count(shorter[0]) / _count(runs[0]),
        "end_seconds": end,
        "groups": groups,
        "chosen": chosen.name,
        "best_prob": chosen.best_prob,
        "points_lost": max(measured.values()) - measured[chosen.name],
    }


if __name__ == "__main__":
    studies = {}
    for path in sorted(RESULTS.glob("study_*.json")):
        stored = json.loads(path.read_text())
        runs = [RunResult(**run) for run in stored["results"]]
        runs = [run for run in runs if run.finished]
        if runs and stored["every_point_counts"]:
            cases = [backtest(runs, stored["metric"], share) for share in SHARES]
            by_share = {case["share"]: case for case in cases}  # the same where both have four
            studies[path.stem.removeprefix("study_")] = list(by_share.values())
    result = {"what": "plans from cut studies", **environment(), "studies": studies}
    (RESULTS / "plan_backtest.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(studies, indent=1))
