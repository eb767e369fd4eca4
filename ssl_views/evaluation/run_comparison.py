"""The numbers that compare runs: what they end with, at what cost, and how soon."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ssl_views.evaluation.history import RunHistory
from ssl_views.evaluation.intervals import Interval, interval_of_mean
from ssl_views.evaluation.run_groups import MeanCurve, RunGroup, group_runs
from ssl_views.naming import did_you_mean, printable

_SMALL_IS_GOOD = (
    "loss", "invariance", "redundancy", "orthogonality", "variance", "covariance",  # its terms
    "alpha", "runtime",
)  # fmt: skip
_ACCURACIES = ("knn", "linear_probe")
_FEW_LABELS = "few_labels_"
_NO_METRICS = ("num_train", "num_test", "feature_dim", "linear_probe_weight_decay")
_NAMED = 3  # runs, in a sentence
_TITLES = {"knn": "kNN"}


@dataclass(frozen=True)
class GroupSummary:
    """The numbers of one group of runs; None where they are not known.

    Attributes:
        group: the runs.
        metrics: last values, means over the runs with their 95 % intervals.
        best: best value of the metric in training, each run's own, then their mean.
        epochs: passes over the images, mean.
        images_seen: images, counted again in every epoch, mean.
        train_seconds: of training, without evaluations, mean.
        curve: mean of the metric in training.
        seconds_to_target: of training until the curve reaches the target.
        times_faster: than the first group, until the target.
    """

    group: RunGroup
    metrics: Mapping[str, Interval]
    best: float | None
    epochs: float | None
    images_seen: float | None
    train_seconds: float | None
    curve: MeanCurve | None
    seconds_to_target: float | None
    times_faster: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, as JSON values."""
        return {
            "name": self.group.name,
            "runs": [str(run.folder) for run in self.group.runs],
            "counted": [str(run.folder) for run in self.group.counted],
            "seeds": [run.seed for run in self.group.runs],
            "metrics": {name: value._asdict() for name, value in self.metrics.items()},
            "best": self.best,
            "epochs": self.epochs,
            "images_seen": self.images_seen,
            "train_seconds": self.train_seconds,
            "seconds_to_target": self.seconds_to_target,
            "times_faster": self.times_faster,
        }


@dataclass(frozen=True)
class RunComparison:
    """Groups of runs beside each other.

    Attributes:
        metric: that is compared.
        from_evaluation: whether the last values are of evaluation.json; otherwise of the log.
        target: last value of the first group's curve; None where it has none.
        groups: in the order of the runs.
        notes: sentences on what must be known to read the numbers.
    """

    metric: str
    from_evaluation: bool
    target: float | None
    groups: tuple[GroupSummary, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, as JSON values."""
        source = "evaluation.json" if self.from_evaluation else "trainer_state.json"
        groups = [group.as_dict() for group in self.groups]
        return {
            "metric": self.metric, "source": source, "target": self.target,
            "notes": list(self.notes), "groups": groups,
        }  # fmt: skip


def compare_runs(histories: Sequence[RunHistory], metric: str = "knn") -> RunComparison:
    """Compare runs; those that differ in their seed only are one group.

    Last values are those of evaluation.json where all runs have one of the same protocol, and
    otherwise the last of training; the two are never mixed. The target of "times faster" is the
    last value of the first group's mean curve; a group reaches it at its first evaluation in
    training that is as good, without interpolation.

    Args:
        histories: at least one run.
        metric: a name that the log has after "eval_", or one of evaluation.json.

    Raises:
        ValueError: if no run has the metric, a run comes twice, or protocols differ and training
            has not evaluated the metric.
    """
    groups = group_runs(histories)
    runs = [run for group in groups for run in group.counted]
    from_evaluation, notes = _choose_source(runs, metric)
    target: float | None = None
    baseline: float | None = None
    summaries = []
    for group in groups:
        curve = group.mean_curve(f"eval_{metric}")
        if group is groups[0] and curve is not None:
            target = curve.mean.values[-1]
        reached = _seconds_to(target, curve, metric)
        if group is groups[0]:
            baseline = reached
        summaries.append(_summarize(group, metric, from_evaluation, curve, reached, baseline))
        notes += _notes_on(group, metric, curve)
    return RunComparison(metric, from_evaluation, target, tuple(summaries), tuple(notes))


def is_accuracy(metric: str) -> bool:
    """Return whether a metric is a fraction of images, shown as a percentage."""
    return metric in _ACCURACIES or metric.startswith(_FEW_LABELS)


def title_of(metric: str) -> str:
    """Return how a metric is called in tables and pictures."""
    return _TITLES.get(metric, metric.replace("_", " "))


def _summarize(
    group: RunGroup,
    metric: str,
    from_evaluation: bool,
    curve: MeanCurve | None,
    reached: float | None,
    baseline: float | None,
) -> GroupSummary:
    last = [_evaluated(run) if from_evaluation else _logged(run) for run in group.counted]
    names = {name for values in last for name in values}
    best = min if metric in _SMALL_IS_GOOD else max
    return GroupSummary(
        group=group,
        metrics={
            name: interval_of_mean([values[name] for values in last if name in values])
            for name in sorted(names)
        },
        best=_mean([best(part.values) for part in group.series(f"eval_{metric}")]),
        epochs=_mean([run.total("epoch") for run in group.counted]),
        images_seen=_mean([run.total("images_seen") for run in group.counted]),
        train_seconds=_mean([run.total("train_seconds") for run in group.counted]),
        curve=curve,
        seconds_to_target=reached,
        times_faster=baseline / reached if baseline and reached else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None unless all values are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _seconds_to(target: float | None, curve: MeanCurve | None, metric: str) -> float | None:
    """Return the seconds of training at the first evaluation that is as good as the target."""
    if target is None or curve is None:
        return None
    sign = -1 if metric in _SMALL_IS_GOOD else 1
    for value, seconds in zip(curve.mean.values, curve.mean.seconds, strict=True):
        if sign * value >= sign * target:
            return None if math.isnan(seconds) else seconds
    return None


def _logged(run: RunHistory) -> dict[str, float]:
    """Return the last value of each metric that training has evaluated."""
    names = [name for name in run.names if name.startswith("eval_")]
    return {name.removeprefix("eval_"): run.series(name).values[-1] for name in names}


def _evaluated(run: RunHistory) -> dict[str, float]:
    """Return the metrics of evaluation.json; few_labels_0.01 is the mean at a share of 0.01."""
    stored = dict(run.evaluation or {})
    few = stored.get("few_labels")
    if isinstance(few, Mapping):
        for share, draws in few.items():
            stored[f"{_FEW_LABELS}{share}"] = draws["mean"]
    return {
        name: float(value)
        for name, value in stored.items()
        if isinstance(value, int | float) and math.isfinite(value) and name not in _NO_METRICS
    }


def _protocol(run: RunHistory) -> dict[str, Any]:
    """Return what makes numbers of two evaluation.json comparable.

    That is not the name of the data set, which may be a path with many spellings.
    """
    stored = run.evaluation or {}
    sizes = {name: stored.get(name) for name in ("num_train", "num_test")}
    protocol = stored.get("protocol")
    named = protocol if isinstance(protocol, Mapping) else {}
    return {**sizes, **{name: value for name, value in named.items() if name != "dataset"}}


def _choose_source(runs: Sequence[RunHistory], metric: str) -> tuple[bool, list[str]]:
    """Return whether last values are those of evaluation.json, and why, in sentences."""
    without = [run for run in runs if metric not in _evaluated(run)]
    protocols = [_protocol(run) for run in runs]
    differing = sorted(
        name
        for name in {name for protocol in protocols for name in protocol}
        if any(protocol.get(name) != protocols[0].get(name) for protocol in protocols)
    )
    if not without and not differing:
        return True, [
            "last values are of evaluation.json, all of one protocol; best and faster are of "
            "evaluations in training"
        ]
    logged = any(f"eval_{metric}" in run.names for run in runs)
    if not without:
        listed = printable(
            "; ".join(
                f"{name}: " + ", ".join(dict.fromkeys(str(p.get(name)) for p in protocols))
                for name in differing
            )
        )
        if not logged:
            raise ValueError(
                f"evaluations must have one protocol to be compared; they differ in {listed}. Run "
                "ssl-views evaluate for all runs in the same way."
            )
        reason = f"evaluation.json differs in protocol ({listed})"
    elif logged:
        reason = f"there is no evaluation.json with {metric} in {_folders(without)}"
    else:
        raise _unknown_metric(runs, metric, without)
    return False, [f"last values are of evaluations in training: {reason}"]


def _unknown_metric(
    runs: Sequence[RunHistory], metric: str, without: Sequence[RunHistory]
) -> ValueError:
    known = sorted({name for run in runs for name in (*_logged(run), *_evaluated(run))})
    if metric in known:
        return ValueError(
            f"all runs must have the metric {metric!r}, which is of evaluation.json only; there "
            f"is none in {_folders(without)}. Run ssl-views evaluate for them too."
        )
    return ValueError(
        "only what runs log after eval_, or have in evaluation.json, can be compared; got "
        f"{metric!r}.{did_you_mean(metric, known)} They have "
        f"{printable(', '.join(known)) or 'none: train with --eval_strategy epoch'}."
    )


def _notes_on(group: RunGroup, metric: str, curve: MeanCurve | None) -> list[str]:
    notes = []
    unfinished = [run for run in group.runs if not run.finished]
    if unfinished and len(unfinished) < len(group.runs):
        notes.append(f"left out of means, as not finished: {_folders(unfinished)}")
    else:
        notes += [f"not finished: {_folders([r])}, at {_progress(r)}" for r in unfinished]
    lacking = [run for run in group.counted if f"eval_{metric}" not in run.names]
    if lacking:
        notes.append(f"without {metric} in training: {_folders(lacking)}")
    elif curve is None:
        notes.append(f"{group.name}: its runs share no step of evaluation, so there is no mean")
    seeds = [run.seed for run in group.runs]
    if len(set(seeds)) < len(seeds):
        notes.append(f"{group.name}: a seed occurs twice, so the interval is too narrow")
    return notes


def _progress(run: RunHistory) -> str:
    last = run.state.get("max_steps")
    return f"step {run.state['global_step']}" + (f" of {last}" if last else "")


def _folders(runs: Sequence[RunHistory]) -> str:
    named = [printable(str(run.folder)) for run in runs[:_NAMED]]
    more = [f"{len(runs) - _NAMED} more"] if len(runs) > _NAMED else []
    return ", ".join(named + more)
