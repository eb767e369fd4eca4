"""Comparisons of groups of runs, with intervals over seeds."""

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from ssl_views.evaluation.intervals import Interval, half_interval, interval_of_mean
from ssl_views.sweep.curves import Curves
from ssl_views.sweep.study import SEED


def difference(
    group: Curves,
    reference: Curves,
    axis: str,
    place: float | None = None,
    *,
    among: Sequence[Curves] = (),
) -> Interval | None:
    """Return the mean difference between runs with the same seed, and its 95 % interval.

    Seeds are blocks: one draws the same images and views in all groups. The spread is what is left
    of the metric when means of groups and of seeds are taken off, pooled over groups, for a few
    seeds of two groups alone say little of it: Student's t with (groups - 1)(seeds - 1) degrees.
    With two groups it is the paired t-test.

    Args:
        group: whose metric counts.
        reference: whose metric is taken off.
        axis: "train_seconds", "epoch" or "images_seen".
        place: on the axis; by default where the shorter of the two ends.
        among: groups of the study, these two or more; those that do not come so far, or lack a
            seed of the two, do not count.

    Returns:
        None where the two share no seed; without ends where they share one.
    """
    place = min(group.end(axis), reference.end(axis)) if place is None else place
    values, against = group.at(axis, place), reference.at(axis, place)
    seeds = [seed for seed in values if seed in against]
    if not seeds:
        return None
    mean = fmean(values[seed] - against[seed] for seed in seeds)
    if len(seeds) == 1:
        return Interval(mean, None, None, 1)
    rows = [other.at(axis, place) for other in among]
    complete = [row for row in rows if all(seed in row for seed in seeds)]
    if len(complete) < 2:
        complete = [values, against]
    table = np.array([[row[seed] for seed in seeds] for row in complete])
    left = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    degrees = (len(complete) - 1) * (len(seeds) - 1)
    deviation = math.sqrt(float(np.sum(left**2)) / degrees)
    half = half_interval(deviation * math.sqrt(2 / len(seeds)), degrees)
    return Interval(mean, mean - half, mean + half, len(seeds))


def times_faster(group: Curves, reference: Curves, target: float | None = None) -> Interval | None:
    """Return how many times sooner a group reaches a target than the reference.

    Both times are those of the smooth mean curves. The interval is the jackknife's, on a
    logarithmic scale: seeds that both have are left out in turn, of both.

    Args:
        group: that is compared.
        reference: with this one.
        target: of the metric; by default what the smooth curve of the reference ends with.

    Returns:
        None where one of the two does not reach the target; without ends where that happens when
        a seed is left out, or there is one seed only.
    """
    found = _log_ratio(group, reference, target)
    if found is None:
        return None
    seeds = [run.settings.get(SEED) for run in group.runs]
    shared = [seed for seed in seeds if seed in {r.settings.get(SEED) for r in reference.runs}]
    left_out = []
    for seed in shared:
        one, other = group.without(seed), reference.without(seed)
        ratio = None if one is None or other is None else _log_ratio(one, other, target)
        if ratio is None:
            return Interval(math.exp(found), None, None, len(shared))
        left_out.append(ratio)
    n = len(shared)
    spread = (
        interval_of_mean([n * found - (n - 1) * ratio for ratio in left_out]) if n > 1 else None
    )
    if spread is None or spread.high is None:
        return Interval(math.exp(found), None, None, n)
    half = spread.high - spread.mean
    return Interval(math.exp(found), math.exp(found - half), math.exp(found + half), n)


def _log_ratio(group: Curves, reference: Curves, target: float | None) -> float | None:
    target = reference.smooth()[1][-1] if target is None else target
    times = reference.seconds_to(target), group.seconds_to(target)
    if times[0] is None or times[1] is None or min(times[0], times[1]) <= 0:
        return None
    return math.log(times[0] / times[1])
