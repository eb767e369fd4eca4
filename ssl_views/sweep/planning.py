"""Which settings to spend a time budget on, from short runs of a study, and how sure that is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssl_views.evaluation.run_comparison import is_accuracy
from ssl_views.naming import did_you_mean
from ssl_views.sweep.curves import group_results
from ssl_views.sweep.power_law_curves import MIN_POINTS, Array, GroupCurve
from ssl_views.sweep.results import RunResult

_NUM_TIMES = 40  # of the frontier


@dataclass(frozen=True)
class GroupPlan:
    """What to expect of the runs that differ in their seed only.

    Attributes:
        name: the settings that vary.
        num_runs: finished runs.
        measured: metric at the last evaluation that all of them have, mean.
        measured_seconds: of training until then, mean.
        predicted: metric at the budget, mean over seeds.
        low: end of the interval of `predicted`; None where no spread is known.
        high: likewise.
        best_prob: probability that no other group is better at the budget.
        frontier_prob: probability that the group is better than all groups before, at some time
            from the first evaluation that all have (or end of a run) to the budget.
        extrapolation: budget over `measured_seconds`, where the curve ends before the budget; else
            1.
        law_deviation: standard deviation of `predicted` that is due to the extrapolation.
        seed_deviation: and the one that is due to seeds.
    """

    name: str
    num_runs: int
    measured: float
    measured_seconds: float
    predicted: float
    low: float | None
    high: float | None
    best_prob: float | None
    frontier_prob: float | None
    extrapolation: float
    law_deviation: float
    seed_deviation: float | None


@dataclass(frozen=True)
class Plan:
    """Which settings to spend a budget on.

    Attributes:
        metric: an accuracy.
        budget_seconds: of training.
        confidence: of intervals.
        every_point_counts: see `Study`; where it is not so, final values alone are compared.
        groups: the most promising first.
        expected_loss: of accuracy, on average, that the best group is ahead of the first one.
        several_seeds: whether some settings have several; if not, intervals leave seeds out.
        degrees: of freedom of the spread of seeds.
        left_out: groups of which nothing is known at the budget, and why.
        notes: sentences on what must be known to read the numbers.
    """

    metric: str
    budget_seconds: float
    confidence: float
    every_point_counts: bool
    groups: tuple[GroupPlan, ...]
    expected_loss: float | None
    several_seeds: bool
    degrees: float
    left_out: Mapping[str, str]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, as JSON values."""
        return asdict(self)


def plan_budget(
    results: Sequence[RunResult],
    budget_seconds: float,
    *,
    metric: str = "knn",
    every_point_counts: bool = False,
    confidence: float = 0.95,
    num_draws: int = 4000,
    seed: int = 0,
) -> Plan:
    """Say which settings are the best after a time of training, and how sure that is.

    Where a point of a curve is what a shorter run would have reached, curves are interpolated
    linearly up to their end, and go on as `PowerLaws`. Otherwise final values of the groups that
    fit in the budget are compared. Groups scatter about their expectation by the spread of seeds:
    one standard deviation of runs, pooled over groups at the budget or the curve's end, over the
    root of the number of runs, Student t. With one seed each, the deviation of evaluations from
    the laws takes its place, which says nothing of seeds. All probabilities are shares of joint
    draws. They do not say how other test images would do.

    Args:
        results: of one study, trained on the same hardware.
        budget_seconds: of training alone, without evaluations.
        metric: name of a column of the curves; an accuracy.
        every_point_counts: see `Study`.
        confidence: of intervals.
        num_draws: how many.
        seed: of the draws.

    Raises:
        ValueError: if the budget, the confidence or the metric is none, no run has finished, there
            is one group only, or nothing is known at the budget.
    """
    _check_numbers(budget_seconds, confidence)
    finished = [result for result in results if result.finished]
    _check_metric(finished, metric)
    curves = [GroupCurve(group, metric) for group in group_results(finished)]
    if len(curves) == 1:
        raise ValueError(
            f"a plan chooses between settings; all finished runs have the same: {curves[0].name}. "
            "Run others too."
        )
    reasons = {curve.name: curve.missing(budget_seconds, every_point_counts) for curve in curves}
    curves = [curve for curve in curves if not reasons[curve.name]]
    if not curves:
        name, reason = next(iter(reasons.items()))
        raise ValueError(
            f"something must be known at a budget of {budget_seconds:g} seconds; of no settings it "
            f"is: {name}: {reason}. Give a larger budget, or run shorter runs."
        )
    deviation, degrees, several = _spread_of_seeds(curves, budget_seconds, every_point_counts)
    generator = np.random.default_rng(seed)
    times = _times(curves, budget_seconds, every_point_counts)
    if every_point_counts:
        drawn = [curve.draw(times, num_draws, generator) for curve in curves]
    else:
        drawn = [np.tile(_final_value(curve, times), (num_draws, 1)) for curve in curves]
    central = np.stack(drawn, axis=1)  # (num_draws, groups, times)
    roots = np.sqrt([curve.num_runs for curve in curves])
    values = central
    if deviation is not None:
        pooled = deviation * np.sqrt(degrees / generator.chisquare(degrees, num_draws))
        seeds = pooled[:, None] * generator.standard_normal((num_draws, len(curves))) / roots
        values = central + seeds[..., None]
    best, frontier = best_probabilities(values[..., -1]), frontier_probabilities(values)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    lows, highs = np.clip(np.quantile(values[..., -1], tails, axis=0), 0.0, 1.0)
    groups = []
    for i, curve in enumerate(curves):
        within = curve.reaches(budget_seconds) or not every_point_counts
        known = deviation is not None
        groups.append(
            GroupPlan(
                name=curve.name,
                num_runs=curve.num_runs,
                measured=float(curve.mean[-1]),
                measured_seconds=float(curve.times[-1]),
                predicted=float(np.median(central[:, i, -1])),
                low=float(lows[i]) if known else None,
                high=float(highs[i]) if known else None,
                best_prob=float(best[i]) if known else None,
                frontier_prob=float(frontier[i]) if known else None,
                extrapolation=1.0 if within else float(budget_seconds / curve.times[-1]),
                law_deviation=float(np.std(central[:, i, -1])),
                seed_deviation=None if deviation is None else float(deviation / roots[i]),
            )
        )
    order = sorted(range(len(groups)), key=lambda i: (-best[i], -groups[i].predicted))
    at_budget = np.clip(values[..., -1], 0.0, 1.0)
    loss = float(np.mean(at_budget.max(axis=1) - at_budget[:, order[0]]))
    return Plan(
        metric=metric,
        budget_seconds=float(budget_seconds),
        confidence=confidence,
        every_point_counts=every_point_counts,
        groups=tuple(groups[i] for i in order),
        expected_loss=None if deviation is None else loss,
        several_seeds=several,
        degrees=degrees,
        left_out={name: reason for name, reason in reasons.items() if reason},
        notes=tuple(_notes(results, finished, every_point_counts)),
    )


def best_probabilities(values: Array) -> Array:
    """Return how often each group is the best of draws (N, G), ties shared: (G,).

    Example:
        >>> best_probabilities(np.array([[0.5, 0.6], [0.7, 0.6], [0.7, 0.8], [0.9, 0.9]])).tolist()
        [0.375, 0.625]
    """
    best = values == values.max(axis=1, keepdims=True)
    shares: Array = np.mean(best / best.sum(axis=1, keepdims=True), axis=0)
    return shares


def frontier_probabilities(values: Array) -> Array:
    """Return how often each group is above all that came before, at some time: (G,).

    Args:
        values: (N, G, T) draws of groups at rising times; -inf where a group has no value yet.

    Example:
        >>> early, late, never = [0.5, 0.6, 0.6], [0.3, 0.6, 0.8], [0.2, 0.4, 0.5]
        >>> frontier_probabilities(np.array([[early, late, never]])).tolist()
        [1.0, 1.0, 0.0]
    """
    top = values.max(axis=1, keepdims=True)
    before = np.maximum.accumulate(top, axis=-1)[..., :-1]
    before = np.concatenate([np.full_like(top[..., :1], -np.inf), before], axis=-1)
    shares: Array = np.mean(np.any((values == top) & (top > before), axis=-1), axis=0)
    return shares


def _final_value(curve: GroupCurve, times: Array) -> Array:
    """Return the value at the end of a curve from then on, and -inf before: a run has to end."""
    end = min(curve.times[-1], times[-1])
    return np.where(times >= end, curve.mean[-1], -np.inf)


def _times(curves: Sequence[GroupCurve], budget: float, every_point_counts: bool) -> Array:
    """Return the times of the frontier, rising; the last one is the budget."""
    if every_point_counts:
        start = max(curve.times[0] for curve in curves)
        return np.append(np.geomspace(start, budget, _NUM_TIMES)[:-1], budget)
    ends = {min(float(curve.times[-1]), budget) for curve in curves}
    return np.array(sorted({*ends, budget}))


def _spread_of_seeds(
    curves: Sequence[GroupCurve], budget: float, every_point_counts: bool
) -> tuple[float | None, float, bool]:
    """Return a standard deviation of runs, its degrees of freedom, and whether it is of seeds."""
    squares, degrees = 0.0, 0.0
    for curve in curves:
        place = max(0, int(np.searchsorted(curve.times, budget, side="right")) - 1)
        at_place = curve.values[:, place if every_point_counts else -1]
        squares += float(np.sum((at_place - at_place.mean()) ** 2))
        degrees += curve.num_runs - 1
    if degrees:
        return math.sqrt(squares / degrees), degrees, True
    laws = [c.fit() for c in curves if every_point_counts and len(c.times) >= MIN_POINTS]
    degrees = sum(law.degrees for law in laws)
    squares = sum(law.degrees * law.residual_deviation**2 for law in laws)
    return (math.sqrt(squares / degrees) if laws else None), degrees, False


def _check_numbers(budget_seconds: float, confidence: float) -> None:
    if not (budget_seconds > 0 and math.isfinite(budget_seconds)):
        raise ValueError(
            f"the budget must be above 0; got {budget_seconds} seconds. Give the minutes of "
            "training that one run may take."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence}. 0.95 is usual.")


def _check_metric(finished: Sequence[RunResult], metric: str) -> None:
    if not finished:
        raise ValueError(
            "at least one run of a study must have finished; none has. Read the log.txt of a run."
        )
    known = sorted({name for run in finished for name in run.curve if is_accuracy(name)})
    if metric not in known:
        raise ValueError(
            "a plan is for an accuracy that was evaluated during training; got "
            f"{metric!r}.{did_you_mean(metric, known)} Runs have {', '.join(known) or 'none'}."
        )


def _notes(
    results: Sequence[RunResult], finished: Sequence[RunResult], every_point_counts: bool
) -> list[str]:
    notes = []
    if len(finished) < len(results):
        notes.append(f"left out, as failed: {len(results) - len(finished)} runs")
    keys = ("kind", "device", "num_devices", "processes")
    machines = {tuple(str(run.hardware.get(key)) for key in keys) for run in finished}
    if len(machines) > 1:
        notes.append("runs were timed on different hardware, so their times cannot be compared")
    if not every_point_counts:
        notes.append(
            "final values only, nothing is extrapolated: the learning rate depends on the length "
            "of a run, so no point before its end is what a shorter run would reach"
        )
    return notes
