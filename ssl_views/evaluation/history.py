"""What a run folder says of a run: its logs, its record, and what it was worth."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ssl_views.checkpoints import MANIFEST, CheckpointError, checkpoints_by_step, read_manifest
from ssl_views.naming import did_you_mean, printable

_STATE = "trainer_state.json"
_RECORD, _EVALUATION, _HARDWARE = "run.json", "evaluation.json", "hardware.json"
_AXES = ("step", "epoch", "images_seen", "train_seconds")
_EVALUATIONS = re.compile(
    r"evaluation(_mean_of_[0-9]+_views)?\.json|report(_mean_of_[0-9]+_views)?\.html"
)
_RECORDS = re.compile(r"(trainer_state|run|hardware|summary)\.json")
_FEATURES = re.compile(r"[0-9a-f]{32}\.safetensors")  # of a feature cache


@dataclass(frozen=True)
class Series:
    """A number that a run has logged again and again; all tuples have the same length.

    Attributes:
        name: as in the log.
        steps: at which it was logged, ascending.
        epochs: passes over the images by then; NaN where that was not logged.
        images_seen: by then, counted again in every epoch; NaN where that was not logged.
        seconds: of training by then, without evaluations; NaN where that was not logged.
        values: finite.
    """

    name: str
    steps: tuple[int, ...]
    epochs: tuple[float, ...]
    images_seen: tuple[float, ...]
    seconds: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class RunHistory:
    """A run, finished or not, as its folder has it.

    Attributes:
        folder: of the run.
        state: content of its newest trainer_state.json.
        record: what makes two runs the same, see `run_record`; None where it was not written.
        evaluation: what `ssl-views evaluate` wrote; None where it has not run, or where training
            went on since.
        hardware: what its last part was computed on, see `describe_hardware`; None where it was
            not written.
        weights_step: of the weights in the folder, where they are not the newest: the best ones
            of a run with load_best_model_at_end; else None.
    """

    folder: Path
    state: Mapping[str, Any]
    record: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None
    hardware: Mapping[str, Any] | None = None
    weights_step: int | None = None

    @classmethod
    def read(cls, folder: str | Path) -> "RunHistory":
        """Read a run folder, or a checkpoint.

        A run that goes on, or was killed, has trainer_state.json in its checkpoints only: the
        newest counts.

        Raises:
            ValueError: if there is no run, or a file of it is damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(
                f"a run must be a folder; there is no folder {str(folder)!r}. Give the "
                "--output_dir of ssl-views pretrain."
            )
        checkpoints = [
            path for path in checkpoints_by_step(folder) if (path / _STATE).is_file()
        ]  # the oldest first
        places = [folder] if (folder / _STATE).is_file() else []
        states = {place: _read_state(place / _STATE) for place in places + checkpoints[-1:]}
        if not states:
            raise ValueError(
                f"a run must hold {_STATE}, in its folder or in a checkpoint; {str(folder)!r} "
                "holds none. Give the --output_dir of ssl-views pretrain, after its first "
                "checkpoint or its end."
            )
        newest = max(states, key=lambda place: states[place]["global_step"])  # of equals the first
        went_on = newest in checkpoints and folder in states

        def found(name: str, key: str) -> dict[str, Any] | None:
            value = _in_manifests([newest], key) if newest in checkpoints else None
            if value is None:
                value = _read_object(folder / name)
            return value if value is not None else _in_manifests([newest, *checkpoints[::-1]], key)

        evaluation = None if went_on else _read_object(folder / _EVALUATION)
        record, hardware = found(_RECORD, "run"), found(_HARDWARE, "hardware")
        best = None
        if newest == folder and not (folder / MANIFEST).exists():
            arguments = _read_object(folder / "training_args.json") or {}
            if arguments.get("load_best_model_at_end"):
                best = states[newest].get("best_global_step")
        return cls(folder, states[newest], record, evaluation, hardware, best)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of what was logged, beside what `series` counts by."""
        entries = self.state["log_history"]
        found = {name for entry in entries for name in entry if _is_finite(entry[name])}
        return tuple(sorted(found.difference(_AXES)))

    @property
    def finished(self) -> bool:
        """Whether the last step was taken."""
        last = self.state.get("max_steps")
        return _is_finite(last) and bool(self.state["global_step"] >= last)

    @property
    def seed(self) -> int | None:
        """Seed of the run; None where there is no record."""
        return None if self.record is None else self.record.get("seed")

    def series(self, name: str) -> Series:
        """Return what was logged under a name; of equal steps the last, and nothing that is NaN.

        Raises:
            ValueError: if nothing was; the nearest names are proposed.
        """
        if name not in self.names:
            raise ValueError(
                f"a series must be one of the log; {str(self.folder)!r} has no {name!r}."
                f"{did_you_mean(name, self.names)} It has "
                f"{printable(', '.join(self.names)) or 'nothing'}."
            )
        logged = [e for e in self.state["log_history"] if _is_finite(e.get(name))]
        by_step = {int(entry["step"]): entry for entry in logged}
        steps = sorted(by_step)

        def column(key: str) -> tuple[float, ...]:
            found = [by_step[step].get(key) for step in steps]
            return tuple(float(x) if _is_finite(x) else math.nan for x in found)

        return Series(
            name=name,
            steps=tuple(steps),
            epochs=column("epoch"),
            images_seen=column("images_seen"),
            seconds=column("train_seconds"),
            values=column(name),
        )

    def total(self, axis: str) -> float | None:
        """Return the last value of "step", "epoch", "images_seen" or "train_seconds", or None."""
        found = [e[axis] for e in self.state["log_history"] if _is_finite(e.get(axis))]
        return float(max(found)) if found else None


def forget_results(folder: Path) -> None:
    """Delete the files of a run folder that describe earlier weights, for a new run starts there.

    Args:
        folder: of the run; it may be missing. Other files stay, kept features are deleted.
    """
    _delete(folder, _RECORDS)
    forget_evaluations(folder)
    _delete(folder / "features", _FEATURES)


def forget_evaluations(folder: Path) -> None:
    """Delete the evaluations in a run folder, whose weights are about to change."""
    _delete(folder, _EVALUATIONS)


def _delete(folder: Path, names: re.Pattern[str]) -> None:
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if names.fullmatch(path.name) and path.is_file():
            path.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a text file, UTF-8; it appears whole, or an earlier one stays."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _is_finite(value: Any) -> bool:
    """Return whether it is a number; JSON of Python may hold NaN, and null stands for no value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_object(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is no file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it holds {type(content).__name__}, not an object")
    return content


def _read_state(path: Path) -> dict[str, Any]:
    state = _read_object(path) or {}
    entries = state.get("log_history")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _damaged(path, "its log_history is no list of objects")
    if not all(_is_finite(entry.get("step")) for entry in entries):
        raise _damaged(path, "an entry of its log_history has no step")
    if not _is_finite(state.get("global_step")):
        raise _damaged(path, "it has no global_step")
    return state


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"a file of a run must be whole; {str(path)!r} cannot be read: {reason}. Leave the run "
        "out, or write the file again."
    )


def _in_manifests(checkpoints: list[Path], key: str) -> dict[str, Any] | None:
    """Return what the manifest of the first checkpoint that has it holds under a key."""
    for folder in checkpoints:
        try:
            value = read_manifest(folder).get(key)
        except CheckpointError:
            continue  # of another program, or damaged: the log alone is used
        if isinstance(value, dict):
            return value
    return None
