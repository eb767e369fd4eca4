"""Learning curves of runs that differ in their seed only."""

import json
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from ssl_views.sweep.results import RunResult
from ssl_views.sweep.study import SEED, group_name

SECONDS, EPOCHS, IMAGES = "train_seconds", "epoch", "images_seen"
_TOLERANCE = 0.02  # a curve that ends this share earlier still has its last value there


def group_results(results: Sequence[RunResult]) -> list[list[RunResult]]:
    """Group results whose settings differ in the seed only, in the order in which they come."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        settings = {name: value for name, value in result.settings.items() if name != SEED}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(result)
    return list(groups.values())


class Curves:
    """The learning curves of the runs of a group.

    Args:
        runs: finished.
        metric: column of their curves.
    """

    def __init__(self, runs: Sequence[RunResult], metric: str) -> None:
        self.runs, self.metric = runs, metric
        self.name = group_name(runs[0].settings)

    def end(self, axis: str) -> float:
        """Return where the shortest run ends."""
        return min(run.curve[axis][-1] for run in self.runs)

    def at(self, axis: str, place: float) -> dict[Any, float]:
        """Return the metric at a place, by seed; of the runs that come so far."""
        return {
            run.settings.get(SEED): _interpolate(run.curve[axis], run.curve[self.metric], place)
            for run in self.runs
            if run.curve[axis][0] <= place <= run.curve[axis][-1] * (1 + _TOLERANCE)
        }

    def seconds_to(self, target: float) -> dict[Any, float]:
        """Return the seconds until each run reaches a target, by seed; of the runs that do."""
        found = {}
        for run in self.runs:
            seconds = first_crossing(run.curve[SECONDS], run.curve[self.metric], target)
            if seconds is not None:
                found[run.settings.get(SEED)] = seconds
        return found

    def mean(self, seconds: Sequence[float]) -> list[float]:
        """Return the mean over the runs at times, NaN where not all runs have one."""
        means = []
        for time in seconds:
            values = self.at(SECONDS, time)
            means.append(fmean(values.values()) if len(values) == len(self.runs) else math.nan)
        return means


def _interpolate(places: Sequence[float], values: Sequence[float], place: float) -> float:
    return float(np.interp(place, places, values))


def first_crossing(places: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """Return the first place where a curve, linear between its points, is at least a target.

    Example:
        >>> first_crossing([10.0, 20.0, 30.0], [0.2, 0.4, 0.3], 0.35)
        17.5
    """
    if values[0] >= target:
        return float(places[0])
    for i in range(1, len(values)):
        if values[i] >= target:
            share = (target - values[i - 1]) / (values[i] - values[i - 1])
            return float(places[i - 1] + share * (places[i] - places[i - 1]))
    return None


class FrontierPoint(NamedTuple):
    """A point of the Pareto frontier of accuracy against time."""

    seconds: float
    value: float
    name: str


def frontier_points(curves: Sequence[Curves], every_point_counts: bool) -> list[FrontierPoint]:
    """Return the points of groups' means that no other at the same time or earlier is as good as.

    Args:
        curves: of all groups.
        every_point_counts: whether all points of a mean curve are candidates, or its end alone.
    """
    points = []
    for group in curves:
        if every_point_counts:
            times = sorted({t for run in group.runs for t in run.curve[SECONDS]})
            values = group.mean(times)
        else:
            times = [fmean(run.curve[SECONDS][-1] for run in group.runs)]
            values = [fmean(run.curve[group.metric][-1] for run in group.runs)]
        points += [
            FrontierPoint(t, v, group.name)
            for t, v in zip(times, values, strict=True)
            if not math.isnan(v)
        ]
    best: list[FrontierPoint] = []
    for point in sorted(points, key=lambda p: (p.seconds, -p.value)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def frontier_of(curves: Sequence[Curves], every_point_counts: bool) -> set[str]:
    """Return the names of the groups whose mean is the best at some time, whatever came before."""
    return {point.name for point in frontier_points(curves, every_point_counts)}
