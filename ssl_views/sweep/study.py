"""What a study is: a grid of runs that share most of their settings."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ssl_views.naming import did_you_mean

SEED = "seed"
_OWN_FLAGS = {"output_dir", "resume_from_checkpoint", "overwrite_output_dir"}
_LONGEST = 80  # characters of a folder's name, without its key
_KEY_LENGTH = 8


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        name: of its folder: the settings that vary, and the key.
        key: a hash of all flags: runs with the same key are the same run.
        settings: flags that vary in the study, with the seed.
        flags: all flags of `ssl-views pretrain`, but for the output folder.
    """

    name: str
    key: str
    settings: Mapping[str, Any]
    flags: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A grid of runs, as a YAML file describes it.

    Attributes:
        name: of the file.
        about: what it asks, in a sentence.
        runs: in the order in which they are run: all settings of the first seed come first.
        evaluate: flags of `ssl-views evaluate` after each run; None for no evaluation.
        metric: what runs are compared by, as the log has it after "eval_".
        reference: settings that the others are compared with; empty for the first.
        targets: values of the metric whose cost is asked for, beside the reference's last.
        every_point_counts: whether a point of a curve is what a shorter run would have reached:
            it is where the learning rate does not depend on the length of the run.
    """

    name: str
    about: str
    runs: tuple[StudyRun, ...]
    evaluate: Mapping[str, Any] | None = None
    metric: str = "knn"
    reference: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[float, ...] = ()
    every_point_counts: bool = False

    @classmethod
    def read(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "Study":
        """Read a YAML file.

        Its keys: `base`, flags of `ssl-views pretrain` that all runs share; `grid`, lists of values
        by flag, or several such grids, where a flag with one value is for the runs of that grid and
        does not name them; and optionally `about`, `evaluate` (true, or flags of
        `ssl-views evaluate`), `metric`, `reference` and `targets`. `dataset` may be a list of
        places: the first that exists is taken, or else the last, a Hub id.

        Args:
            path: of the file.
            overrides: flags that replace those of `base`.

        Raises:
            ValueError: if a key is unknown, a grid is empty, or a run comes twice.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"a study is a YAML file; there is no file {str(path)!r}. There are some "
                "in examples/studies."
            )
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(
                f"a study must be YAML; {path} is not: {error}. Indent lists and keys evenly."
            ) from error
        _check_keys(path, content)
        base = {**_mapping(path, content, "base"), **(overrides or {})}
        grids = content["grid"] if isinstance(content["grid"], list) else [content["grid"]]
        for grid in grids:
            _check_grid(path, grid)
        _check_flags(path, [*base, *(name for grid in grids for name in grid)])
        runs = _runs(path, base, grids)
        reference = _mapping(path, content, "reference")
        if not any(has_settings(run.settings, reference) for run in runs):
            raise ValueError(
                f"the reference of {path} must be settings that vary in its grid; got {reference}, "
                "which no run has. Correct it, or leave it out for the first."
            )
        return cls(
            name=path.stem,
            about=content.get("about", ""),
            runs=runs,
            evaluate=_evaluation(path, content),
            metric=content.get("metric", "knn"),
            reference=reference,
            targets=_check_targets(path, content.get("targets") or []),
            every_point_counts=all(_is_constant(run.flags) for run in runs),
        )


def _is_constant(flags: Mapping[str, Any]) -> bool:
    """Return whether the learning rate at a step is the same in a longer run."""
    schedule = flags.get("lr_scheduler_type")
    steps = flags.get("warmup_steps")
    in_steps = isinstance(steps, int | float) and steps >= 1  # and no share of the run
    return schedule == "constant" or (schedule == "constant_with_warmup" and in_steps)


def _check_keys(path: Path, content: Any) -> None:
    known = ["about", "base", "grid", "evaluate", "metric", "reference", "targets"]
    if not isinstance(content, dict) or "grid" not in content:
        raise ValueError(
            f"a study must hold a grid of settings; {path} holds none. Add `grid:` with lists of "
            "values, such as projector_dim: [64, 256]."
        )
    for key in content:
        if key not in known:
            raise ValueError(
                f"{path} has an unknown key {key!r}.{did_you_mean(str(key), known)} Keys are "
                f"{', '.join(known)}; flags of all runs stand under base."
            )


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the flags under a key; empty where there are none."""
    flags = content.get(key) or {}
    if not isinstance(flags, dict):
        raise ValueError(
            f"{key} of {path} must hold flags and their values; got {flags!r}. Write a line for "
            "each, such as num_views: 4."
        )
    return flags


def _evaluation(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the flags of the evaluation after each run; None for no evaluation."""
    if content.get("evaluate") in (None, False):
        return None
    return {} if content["evaluate"] is True else _mapping(path, content, "evaluate")


def _check_targets(path: Path, targets: Any) -> tuple[float, ...]:
    if not isinstance(targets, list) or not all(isinstance(t, int | float) for t in targets):
        raise ValueError(
            f"the targets of {path} must be a list of numbers; got {targets!r}. [0.8] is one."
        )
    return tuple(targets)


def _check_grid(path: Path, grid: Any) -> None:
    lists = [v for v in grid.values() if isinstance(v, list)] if isinstance(grid, dict) else []
    if not lists or not all(lists):
        raise ValueError(
            f"the grid of {path} must hold lists of values by flag, none of them empty; got "
            f"{grid!r}. One value for all runs stands under base."
        )


def _check_flags(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if name in _OWN_FLAGS:
            raise ValueError(
                f"{path} must not set {name!r}, which the sweep sets for each run. Leave it out."
            )


def _runs(
    path: Path, base: Mapping[str, Any], grids: Sequence[Mapping[str, list[Any]]]
) -> tuple[StudyRun, ...]:
    axes = [name for grid in grids for name, values in grid.items() if isinstance(values, list)]
    varying = list(dict.fromkeys(axes))
    runs: dict[str, StudyRun] = {}
    for grid in grids:
        lists = [values if isinstance(values, list) else [values] for values in grid.values()]
        for values in product(*lists):
            chosen = dict(zip(grid, values, strict=True))
            flags = {"dataset": "digits", **base, **chosen}
            key = _key(flags)  # of all places of the images: they are the same images
            flags["dataset"] = _place(flags["dataset"])
            settings = {name: flags[name] for name in varying if name in flags}
            if key in runs:
                raise ValueError(
                    f"every run of {path} must come once; {settings} comes twice. Leave it out of "
                    "one grid."
                )
            runs[key] = StudyRun(_name(settings, key), key, settings, flags)
    return tuple(sorted(runs.values(), key=lambda run: _seed_order(run, grids)))


def _seed_order(run: StudyRun, grids: Sequence[Mapping[str, list[Any]]]) -> int:
    """Return the place of a run's seed, so that a sweep that is cut short has whole grids."""
    lists = [grid[SEED] for grid in grids if isinstance(grid.get(SEED), list)]
    seeds = list(dict.fromkeys(seed for values in lists for seed in values))
    return seeds.index(run.settings[SEED]) if run.settings.get(SEED) in seeds else 0


def _place(dataset: Any) -> Any:
    """Return the first place of images that exists, or else the last."""
    if not isinstance(dataset, list):
        return dataset
    return next((place for place in dataset if Path(place).exists()), dataset[-1])


def _key(flags: Mapping[str, Any]) -> str:
    content = json.dumps(flags, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:_KEY_LENGTH]


def _name(settings: Mapping[str, Any], key: str) -> str:
    parts = [f"{name}={_short(value)}" for name, value in settings.items()]
    text = re.sub(r"[^A-Za-z0-9=.,_+-]+", "-", ",".join(parts))[:_LONGEST].rstrip("-,.=")
    return f"{text}-{key}" if text else key


def _short(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def has_settings(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether settings are as wanted, whatever else they are."""
    return all(settings.get(name) == value for name, value in wanted.items())


def group_name(settings: Mapping[str, Any]) -> str:
    """Return how runs that differ in the seed only are called.

    Example:
        >>> group_name({"num_views": 4, "fraction": 0.5, "seed": 1})
        'num_views 4, fraction 0.5'
    """
    parts = [f"{name} {_short(value)}" for name, value in settings.items() if name != SEED]
    return ", ".join(parts) or "all runs"
