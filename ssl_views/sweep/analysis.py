"""What the runs of a study say: accuracy at equal cost, cost of equal accuracy, the frontier."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from ssl_views.evaluation.intervals import Interval, interval_of_mean
from ssl_views.naming import did_you_mean
from ssl_views.sweep.comparing import difference, times_faster
from ssl_views.sweep.curves import (
    EPOCHS,
    IMAGES,
    SECONDS,
    Curves,
    frontier_of,
    group_results,
)
from ssl_views.sweep.results import RunResult
from ssl_views.sweep.study import SEED, has_settings


@dataclass(frozen=True)
class TimeTo:
    """Seconds of training until a group reaches a target, see `times_faster`.

    Attributes:
        target: of the metric.
        seconds: of the smooth mean; None if it does not reach it.
        times_faster: than the reference; None for the reference itself.
    """

    target: float
    seconds: float | None
    times_faster: Interval | None


@dataclass(frozen=True)
class GroupResult:
    """The runs of a study that differ in their seed only.

    Attributes:
        name: the settings that vary.
        settings: the same, as values.
        num_runs: finished runs.
        num_failed: failed runs.
        last: metric at the end.
        seconds: of training, mean.
        epochs: passes over the images, mean.
        images_seen: images, counted again in every epoch, mean.
        num_images: distinct training images, mean.
        at_equal_seconds: metric when the shortest run of the study ends.
        at_equal_epochs: metric after as many epochs as every run has.
        difference: to the reference at equal seconds, of runs with the same seed; its spread is
            pooled over groups, see `difference`.
        difference_at_equal_epochs: the same at equal epochs.
        on_frontier: whether the group's mean is the best at some time.
        time_to: by target.
        evaluation: numbers of `ssl-views evaluate`, where all runs have them.
    """

    name: str
    settings: Mapping[str, Any]
    num_runs: int
    num_failed: int
    last: Interval
    seconds: float
    epochs: float
    images_seen: float
    num_images: float | None
    at_equal_seconds: Interval | None
    at_equal_epochs: Interval | None
    difference: Interval | None
    difference_at_equal_epochs: Interval | None
    on_frontier: bool
    time_to: Sequence[TimeTo] = ()
    evaluation: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResult:
    """A study, analysed.

    Attributes:
        metric: that runs are compared by.
        reference: name of the group that the others are compared with; None while it has no
            finished run.
        equal_seconds: at which groups are compared; None where a point of a curve is not what a
            shorter run would have reached.
        equal_epochs: the same in epochs.
        groups: in the order of the study.
        failed: names of failed runs, with the last line of their error.
    """

    metric: str
    reference: str | None
    equal_seconds: float | None
    equal_epochs: float | None
    groups: tuple[GroupResult, ...]
    failed: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, as JSON values; an interval is [mean, low, high, n]."""
        return asdict(self)


def analyse(
    results: Sequence[RunResult],
    *,
    metric: str = "knn",
    reference: Mapping[str, Any] | None = None,
    targets: Sequence[float] = (),
    every_point_counts: bool = False,
) -> StudyResult:
    """Analyse the results of a study.

    Times are of training alone, without evaluations, at the median speed of a group; they are
    comparable on the same hardware with the same number of runs at once. Between evaluations curves
    are linear. The first target is what the smooth mean of the reference ends with. Without a
    finished run of the reference nothing is compared with it.

    Args:
        results: of one study.
        metric: name of a column of the curves; larger is better.
        reference: settings of the group that others are compared with; by default the first.
        targets: further values of the metric.
        every_point_counts: see `Study`.

    Raises:
        ValueError: if no run has finished, or one has not evaluated the metric.
    """
    finished = [result for result in results if result.finished]
    if not finished:
        raise ValueError(
            "at least one run of a study must have finished; none has. Read the log.txt of a run."
        )
    for result in finished:
        if metric not in result.curve:
            known = sorted(set(result.curve) - {"step", SECONDS, EPOCHS, IMAGES})
            raise ValueError(
                f"every run must have evaluated {metric!r} during training; {result.name!r} has "
                f"not.{did_you_mean(metric, known)} It has {', '.join(known) or 'nothing'}."
            )
    groups = group_results(results)
    base = next((g for g in groups if has_settings(g[0].settings, reference or {})), [])
    compared = Curves(_finished(base), metric) if _finished(base) else None
    curves = [Curves(_finished(group), metric) for group in groups if _finished(group)]
    equal = {
        axis: min(c.end(axis) for c in curves) if every_point_counts else None
        for axis in (SECONDS, EPOCHS)
    }
    ends = [compared.smooth()[1][-1]] if compared else []
    frontier = frontier_of(curves, every_point_counts)
    summaries = []
    for group in groups:
        if runs := _finished(group):
            own = Curves(runs, metric)
            summaries.append(
                _summary(
                    group, own, compared, curves, equal, [*ends, *targets], own.name in frontier
                )
            )
    failed = {r.name: (r.error.strip() or "?").splitlines()[-1] for r in results if not r.finished}
    name = compared.name if compared else None
    return StudyResult(metric, name, equal[SECONDS], equal[EPOCHS], tuple(summaries), failed)


def _finished(group: Sequence[RunResult]) -> list[RunResult]:
    return [result for result in group if result.finished]


def _summary(
    group: Sequence[RunResult],
    own: Curves,
    reference: Curves | None,
    among: Sequence[Curves],
    equal: Mapping[str, float | None],
    targets: Sequence[float],
    on_frontier: bool,
) -> GroupResult:
    runs = own.runs

    def mean(column: str) -> float:
        return fmean(run.curve[column][-1] for run in runs)

    def at(axis: str) -> tuple[Interval | None, Interval | None]:
        place = equal[axis]
        if place is None:
            return None, None
        values = list(own.at(axis, place).values())
        found = interval_of_mean(values) if values else None
        if reference is None or own.name == reference.name:
            return found, None
        return found, difference(own, reference, axis, place, among=among)

    at_seconds, less_reference = at(SECONDS)
    at_epochs, less_reference_at_epochs = at(EPOCHS)
    counts = [run.num_images for run in runs if run.num_images is not None]
    return GroupResult(
        name=own.name,
        settings={k: v for k, v in runs[0].settings.items() if k != SEED},
        num_runs=len(runs),
        num_failed=len(group) - len(runs),
        last=interval_of_mean([run.curve[own.metric][-1] for run in runs]),
        seconds=mean(SECONDS),
        epochs=mean(EPOCHS),
        images_seen=mean(IMAGES),
        num_images=fmean(counts) if len(counts) == len(runs) else None,
        at_equal_seconds=at_seconds,
        at_equal_epochs=at_epochs,
        difference=less_reference,
        difference_at_equal_epochs=less_reference_at_epochs,
        on_frontier=on_frontier,
        time_to=tuple(_time_to(target, own, reference) for target in targets),
        evaluation={
            name: interval_of_mean([run.evaluation[name] for run in runs])
            for name in runs[0].evaluation
            if all(name in run.evaluation for run in runs)
        },
    )


def _time_to(target: float, own: Curves, reference: Curves | None) -> TimeTo:
    compared = reference is not None and own.name != reference.name
    faster = times_faster(own, reference, target) if compared and reference else None
    return TimeTo(target, own.seconds_to(target), faster)
