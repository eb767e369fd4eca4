"""Learning curves of runs that differ in their seed only."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
from sklearn.isotonic import isotonic_regression

from ssl_views.sweep.results import RunResult
from ssl_views.sweep.study import SEED, group_name

SECONDS, EPOCHS, IMAGES = "train_seconds", "epoch", "images_seen"
TOLERANCE = 0.02  # a curve that ends this share earlier still has its last value there


def group_results(results: Sequence[RunResult]) -> list[list[RunResult]]:
    """Group results whose settings differ in the seed only, in the order in which they come.

    Their curves are made comparable, see `align`.
    """
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        settings = {name: value for name, value in result.settings.items() if name != SEED}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(result)
    return [align(group) for group in groups.values()]


def align(runs: Sequence[RunResult]) -> list[RunResult]:
    """Return runs of one group at the steps that all finished ones share, and with steady times.

    A run that goes on after a stop may be evaluated once more there, at a step of its own. And
    every step is as long as the median step of all runs: steps of equal settings cost the same;
    what else runs on a machine, or starts with a run, slows some of them down, and would count as a
    property of the settings.
    """
    drawn = [run for run in runs if run.finished and run.curve]
    if not drawn:
        return list(runs)
    shared = set.intersection(*(set(run.curve["step"]) for run in drawn))
    rates = []
    for run in drawn:
        before = (0, 0.0)
        for step, seconds in zip(run.curve["step"], run.curve[SECONDS], strict=True):
            if step > before[0]:
                rates.append((seconds - before[1]) / (step - before[0]))
            before = (step, seconds)
    rate = median(rates) if rates else 0.0
    aligned = []
    for run in runs:
        if run.finished and run.curve:
            kept = [i for i, step in enumerate(run.curve["step"]) if step in shared]
            curve = {name: [column[i] for i in kept] for name, column in run.curve.items()}
            run = replace(run, curve={**curve, SECONDS: [rate * step for step in curve["step"]]})
        aligned.append(run)
    return aligned


class Curves:
    """The learning curves of the runs of a group.

    Args:
        runs: finished, see `align`.
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
            if run.curve[axis][0] <= place <= run.curve[axis][-1] * (1 + TOLERANCE)
        }

    def without(self, seed: Any) -> "Curves | None":
        """Return the curves of the other seeds; None where there are none."""
        others = [run for run in self.runs if run.settings.get(SEED) != seed]
        return Curves(others, self.metric) if others else None

    def smooth(self) -> tuple[list[float], list[float]]:
        """Return times and the mean over the runs, made to never fall (isotonic regression)."""
        return self.column(SECONDS), isotonic_regression(self.column(self.metric)).tolist()

    def column(self, name: str) -> list[float]:
        """Return the mean of a column over the runs."""
        columns = [run.curve[name] for run in self.runs]
        return [fmean(values) for values in zip(*columns, strict=True)]

    def seconds_to(self, target: float) -> float | None:
        """Return the seconds until the smooth mean reaches a target; None if it does not."""
        return first_crossing(*self.smooth(), target)

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
