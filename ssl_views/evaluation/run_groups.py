"""Which runs are one run with several seeds, and what tells groups of runs apart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ssl_views.evaluation.history import RunHistory, Series
from ssl_views.evaluation.intervals import Interval, interval_of_mean
from ssl_views.naming import printable

_SEEDS = ("seed", "views.seed")
_MOST_IN_NAME = 3
_LONGEST_VALUE, _LONGEST_NAME = 24, 54
# What the views of a record repeat.
_VIEW_FIELDS = ("model.image_size", "model.num_channels", "model.num_views", "model.recipe")


class MeanCurve(NamedTuple):
    """A mean over runs, at the steps that all of them have; and its interval at each step."""

    mean: Series
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed only.

    Attributes:
        name: what tells them from the other groups, or the names of their folders.
        runs: at least one.
    """

    name: str
    runs: tuple[RunHistory, ...]

    @property
    def counted(self) -> tuple[RunHistory, ...]:
        """The runs that means are over: those that are finished, or all if none is."""
        return tuple(run for run in self.runs if run.finished) or self.runs

    def series(self, name: str) -> list[Series]:
        """Return a series of each counted run that has it."""
        return [run.series(name) for run in self.counted if name in run.names]

    def mean_curve(self, name: str) -> MeanCurve | None:
        """Return the mean over the counted runs, or None where they share no step."""
        parts = self.series(name)
        shared = set.intersection(*(set(part.steps) for part in parts)) if parts else set()
        if not shared:
            return None
        steps = sorted(shared)

        def columns(key: str) -> list[list[float]]:
            by_step = [dict(zip(p.steps, getattr(p, key), strict=True)) for p in parts]
            return [[values[step] for values in by_step] for step in steps]

        def means(key: str) -> tuple[float, ...]:
            return tuple(sum(values) / len(values) for values in columns(key))

        intervals = tuple(interval_of_mean(values) for values in columns("values"))
        mean = Series(
            name=name,
            steps=tuple(steps),
            epochs=means("epochs"),
            images_seen=means("images_seen"),
            seconds=means("seconds"),
            values=tuple(interval.mean for interval in intervals),
        )
        return MeanCurve(mean, intervals)


def group_runs(histories: Sequence[RunHistory]) -> list[RunGroup]:
    """Group runs whose records differ in the seed only, in the order in which they come.

    A run without a record is a group of its own. A group is named by the up to three values that
    tell groups apart, those of the model first; otherwise by its folders.

    Raises:
        ValueError: if a run comes twice.
    """
    groups: dict[str, list[RunHistory]] = {}
    seen = set()
    for history in histories:
        folder = history.folder.resolve()
        if folder in seen:
            raise ValueError(
                f"every run must come once; {str(history.folder)!r} comes twice. Leave one out."
            )
        seen.add(folder)
        key = str(folder) if history.record is None else json.dumps(_values(history.record))
        groups.setdefault(key, []).append(history)
    return [
        RunGroup(name, tuple(runs))
        for name, runs in zip(_names(list(groups.values())), groups.values(), strict=True)
    ]


def _values(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a record by dotted name, sorted, without the seeds."""
    values: dict[str, Any] = {}
    for key in sorted(record):
        name = f"{prefix}{key}"
        if isinstance(record[key], Mapping):
            values.update(_values(record[key], f"{name}."))
        elif name not in _SEEDS:
            values[name] = record[key]
    return values


def _names(groups: list[list[RunHistory]]) -> list[str]:
    """Return a name for each group."""
    folders = [run.folder.resolve().name for runs in groups for run in runs]
    names = []
    for first, *others in groups:
        name = first.folder.resolve().name
        name = name if folders.count(name) == 1 else str(first.folder)
        more = f" and {len(others)} more" if others else ""
        names.append(_end_of(printable(name), _LONGEST_NAME - len(more)) + more)
    recorded = [place for place, (first, *_) in enumerate(groups) if first.record is not None]
    told_apart = _differences([_values(groups[place][0].record or {}) for place in recorded])
    for place, name in zip(recorded, told_apart, strict=False):
        names[place] = name
    return [
        name if names.count(name) == 1 else f"{name} ({place + 1})"
        for place, name in enumerate(names)
    ]


def _differences(groups: list[dict[str, Any]]) -> list[str]:
    """Return what tells each group from the others, or nothing where that would not be short."""
    known = sorted({key for values in groups for key in values})
    keys = [key for key in known if len({json.dumps(values.get(key)) for values in groups}) > 1]
    keys = [key for key in keys if not _follows(key, keys, groups)]
    keys.sort(key=lambda key: not key.startswith("model."))
    if not keys or len(keys) > _MOST_IN_NAME or "data.sha256" in keys:
        return []
    short = [key.rpartition(".")[2] for key in keys]
    titles = [s if short.count(s) == 1 else key for s, key in zip(short, keys, strict=True)]
    names = [
        ", ".join(
            f"{printable(t)}={_short(values.get(k))}" for t, k in zip(titles, keys, strict=True)
        )
        for values in groups
    ]
    short_enough = all(len(name) <= _LONGEST_NAME for name in names)
    return names if short_enough and len(set(names)) == len(groups) else []


def _follows(key: str, keys: Sequence[str], groups: list[dict[str, Any]]) -> bool:
    """Return whether a value says nothing that another one of `keys` does not."""
    if key == "model.projector_hidden_dims":
        return all(values.get(key) == [values.get("model.projector_dim")] for values in groups)
    if key == "data.sha256":
        return "data.images" in keys
    if key == "images_per_step":
        sources = [k for k in keys if k == "training.gradient_accumulation_steps"]
    elif key.startswith("views."):
        sources = [k for k in keys if k.startswith(_VIEW_FIELDS)]
    else:
        return False
    found: dict[str, Any] = {}
    return all(
        found.setdefault(json.dumps([v.get(s) for s in sources]), v.get(key)) == v.get(key)
        for v in groups
    )


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = printable(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _end_of(path: str, most: int) -> str:
    """Return the end of a path, where paths of runs differ."""
    return path if len(path) <= most else f"...{path[3 - most :]}"
