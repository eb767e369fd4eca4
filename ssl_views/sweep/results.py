"""The results of a study: a file of JSON lines that grows by one line per finished run."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssl_views.evaluation.history import RunHistory
from ssl_views.naming import did_you_mean

RESULTS = "results.jsonl"
FINISHED, FAILED = "finished", "failed"
_AXES = ("step", "epoch", "images_seen", "train_seconds")
_DIGITS = 6


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        key: of the run, see `StudyRun`.
        name: of its folder.
        settings: flags that vary in the study.
        status: "finished" or "failed".
        error: the last lines that a failed run wrote.
        seconds: wall clock of the last process that the run took.
        attempts: processes that were started for it.
        num_images: distinct training images; None where that is not known.
        curve: columns of equal length: "step", "epoch", "images_seen", "train_seconds", and the
            metrics of evaluations during training, without "eval_"; None where one has no value.
        evaluation: numbers of `ssl-views evaluate`.
        hardware: what it was computed on.
    """

    key: str
    name: str
    settings: Mapping[str, Any]
    status: str
    error: str = ""
    seconds: float = 0.0
    attempts: int = 1
    num_images: int | None = None
    curve: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == FINISHED


def read_results(path: str | Path) -> list[RunResult]:
    """Read results; the last line of a run counts, and a line that was cut short is left out.

    Args:
        path: of a results.jsonl, or of the folder that holds it.

    Raises:
        ValueError: if it is no such file, or a line but the last is damaged.
    """
    path = Path(path)
    path = path / RESULTS if path.is_dir() else path
    if not path.is_file() or path.suffix != Path(RESULTS).suffix:
        raise ValueError(
            f"results of a study must be its {RESULTS}; got {str(path)!r}, which is none. Give the "
            "folder that ssl-views sweep has written."
        )
    lines = path.read_text(encoding="utf-8").split("\n")
    results: dict[str, RunResult] = {}
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            result = RunResult(**json.loads(line))
        except (ValueError, TypeError) as error:
            if number == len(lines) - 1:
                break  # cut short: the run is repeated
            raise ValueError(
                f"each line of {path} must be a result; line {number + 1} is not: {error}. Take "
                "the line out, and the run is repeated."
            ) from error
        results.pop(result.key, None)
        results[result.key] = result
    return list(results.values())


def append_result(folder: Path, result: RunResult) -> None:
    """Add a line, whole and on the disk when this returns; a line cut short before it is ended."""
    path = folder / RESULTS
    line = json.dumps(asdict(result)) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.truncate(_end_of_whole_lines(path))
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _end_of_whole_lines(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1


def collect(folder: Path, metric: str, **known: Any) -> RunResult:
    """Return the result of a finished run from its folder; failed if it lacks the metric.

    Args:
        folder: of the run.
        metric: that runs of the study are compared by.
        known: the fields that the folder does not tell.
    """
    history = RunHistory.read(folder)
    data = (history.record or {}).get("data") or {}
    numbers = history.evaluation or {}
    logged = [name.removeprefix("eval_") for name in history.names if name.startswith("eval_")]
    lacking = (
        f"runs are compared by {metric!r}, which this one has not evaluated during training."
        f"{did_you_mean(metric, logged)} "
        + (
            f"It has {', '.join(logged)}: set the study's metric to one of them. kNN needs labels."
            if logged
            else "It has nothing: set eval_steps."
        )
    )
    return RunResult(
        **known,
        status=FINISHED if metric in logged else FAILED,
        error="" if metric in logged else lacking,
        num_images=data.get("images"),
        curve=_curve(history, metric) if metric in logged else {},
        evaluation={k: _round(v) for k, v in numbers.items() if isinstance(v, int | float)},
        hardware=history.hardware or {},
    )


def _curve(history: RunHistory, metric: str) -> dict[str, list[Any]]:
    """Return what evaluations found, at the steps of a metric; None where others have no value."""
    main = history.series(f"eval_{metric}")
    columns = (main.steps, main.epochs, main.images_seen, main.seconds)
    curve: dict[str, list[Any]] = {
        axis: [_round(value) for value in column]
        for axis, column in zip(_AXES, columns, strict=True)
    }
    for name in history.names:
        if name.startswith("eval_"):
            series = history.series(name)
            by_step = dict(zip(series.steps, map(_round, series.values), strict=True))
            curve[name.removeprefix("eval_")] = [by_step.get(step) for step in main.steps]
    return curve


def _round(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")
