"""Runs the runs of a study: a process each, some at once, and never one twice."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from ssl_views.checkpoints import checkpoints_by_step
from ssl_views.naming import printable
from ssl_views.sweep.locks import locked
from ssl_views.sweep.results import (
    FAILED,
    RESULTS,
    RunResult,
    append_result,
    collect,
    read_results,
)
from ssl_views.sweep.room import Room
from ssl_views.sweep.study import Study, StudyRun
from ssl_views.termination import TERMINATED

RUNS, LOG = "runs", "log.txt"
PRETRAIN, EVALUATE = "pretrain.yaml", "evaluate.yaml"
_POLL_SECONDS, _GRACE_SECONDS = 0.1, 120.0
_WRONG_INPUT = 2  # exit code
_ERROR_LINES, _ERROR_LENGTH = 12, 2000
_HOPELESS = 3  # failures before any run has finished, that end the sweep


class SweepError(RuntimeError):
    """The sweep cannot go on."""


@dataclass
class _Child:
    run: StudyRun
    process: "subprocess.Popen[bytes]"
    slot: int
    attempt: int
    started: float


@dataclass(frozen=True)
class Progress:
    """What has just happened in a sweep.

    Attributes:
        result: of the run that has ended.
        num_done: runs of the study that have ended by now, in earlier sweeps too.
        num_runs: runs of the study.
        seconds_left: about how long the rest takes; None while that is not known.
    """

    result: RunResult
    num_done: int
    num_runs: int
    seconds_left: float | None


class Sweep:
    """Runs what is left of a study.

    Args:
        study: the runs.
        folder: results.jsonl and the folders of runs are there; a sweep that was stopped or killed
            goes on where it was, runs in flight at their last checkpoint.
        command: words that start one run; the folder of the run follows.
        room: how many runs at once, and where.
        max_attempts: processes that are started for a run that keeps failing; one whose input is
            refused is not repeated.
        retry_failed: give runs that have failed in earlier sweeps their attempts again; where no
            run has ever finished, they get them in any case.
        max_seconds: stop after so long, with a checkpoint of each run in flight.
        on_start: called when no other sweep works in the folder.
        on_end: called when a run has ended.

    Attributes:
        num_left: how many runs were left when `run` ended.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        command: Sequence[str],
        *,
        room: Room,
        max_attempts: int = 2,
        retry_failed: bool = False,
        max_seconds: float | None = None,
        on_start: Callable[[], None] = lambda: None,
        on_end: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1; got {max_attempts}. 2 is usual.")
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(
                f"max_seconds must be above 0; got {max_seconds}. Leave it out for no limit."
            )
        self.study, self.folder, self.command, self.room = study, folder, list(command), room
        self.max_attempts, self.retry_failed = max_attempts, retry_failed
        self.max_seconds, self.on_start, self.on_end = max_seconds, on_start, on_end
        self.num_left = len(study.runs)
        self._children: list[_Child] = []
        self._stopping = False

    def run(self) -> list[RunResult]:
        """Run what is left; return the results of the study's runs so far, in its order.

        SIGTERM and SIGINT end it as `max_seconds` does.

        Raises:
            SweepError: if another sweep runs in the folder, or the first runs all fail.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", what="sweep"), self._listening():
            self.on_start()
            try:
                self._loop()
            finally:
                self._end_children()
        return self.results()

    def results(self) -> list[RunResult]:
        """Return the results of the study's runs so far, in its order."""
        return results_of(self.study, self.folder)

    def _left(self) -> list[tuple[StudyRun, int]]:
        """Return the runs that are left, and how many attempts were made."""
        known = {result.key: result for result in self.results()}
        again = self.retry_failed or not self._some_finished()  # what was wrong may be mended
        left = []
        for run in self.study.runs:
            result = known.get(run.key)
            if result is None:
                left.append((run, 0))
            elif not result.finished and (again or result.attempts < self.max_attempts):
                left.append((run, 0 if again else result.attempts))
        return left

    def _loop(self) -> None:
        waiting = self._left()
        self.num_left = len(waiting)
        begun = time.monotonic()
        ended = failed = 0
        spent = 0.0
        while waiting or self._children:
            over = self.max_seconds is not None and time.monotonic() - begun > self.max_seconds
            if over or self._stopping:
                return
            while waiting and (slot := self.room.free(self._slots())) is not None:
                self._children.append(self._start(*waiting.pop(0), slot))
            time.sleep(_POLL_SECONDS)
            for child in [c for c in self._children if c.process.poll() is not None]:
                self._children.remove(child)
                result = self._result(child)
                if result is None:  # it was told to stop, not by us: the sweep stops too
                    return
                append_result(self.folder, result)
                if result.finished or result.attempts >= self.max_attempts:
                    self.num_left -= 1
                if result.finished:
                    ended += 1
                    spent += result.seconds
                    _delete_checkpoints(self._folder_of(child.run))
                else:
                    failed += 1
                    if result.attempts < self.max_attempts:
                        waiting.append((child.run, result.attempts))
                self._report(result, spent / ended if ended else None)
                if failed >= _HOPELESS and not ended and not self._some_finished():
                    raise SweepError(
                        f"the first runs of a study must not all fail; {failed} did. The last "
                        f"one: {result.error.strip().splitlines()[-1] if result.error else '?'} "
                        f"Its log is {str(self._folder_of(child.run) / LOG)!r}."
                    )

    def _some_finished(self) -> bool:
        return any(result.finished for result in self.results())

    def _slots(self) -> list[int]:
        return [child.slot for child in self._children]

    def _folder_of(self, run: StudyRun) -> Path:
        """Return the folder of a run; its name may be of a time when the study varied less."""
        named = (self.folder / RUNS).glob(f"*{run.key}")
        return next(named, self.folder / RUNS / run.name)

    def _start(self, run: StudyRun, attempts: int, slot: int) -> _Child:
        folder = self._folder_of(run)
        folder.mkdir(parents=True, exist_ok=True)
        flags = {**run.flags, "output_dir": str(folder), "disable_tqdm": True}
        _write_flags(folder / PRETRAIN, flags)
        if self.study.evaluate is not None:
            _write_flags(folder / EVALUATE, dict(self.study.evaluate))
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [*self.command, str(folder)],
                stdin=subprocess.PIPE,  # it ends when this process does, and the child notices
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.room.environment(slot)},
            )
        return _Child(run, process, slot, attempts + 1, time.monotonic())

    def _result(self, child: _Child) -> RunResult | None:
        """Return what a child that has ended came to; None if it was told to stop."""
        code = child.process.returncode
        if code in (TERMINATED, -signal.SIGTERM, -signal.SIGINT):
            return None
        known: dict[str, Any] = {
            "key": child.run.key,
            "name": child.run.name,
            "settings": dict(child.run.settings),
            "seconds": round(time.monotonic() - child.started, 1),
            "attempts": self.max_attempts if code == _WRONG_INPUT else child.attempt,
        }
        if code == 0:
            return collect(self._folder_of(child.run), self.study.metric, **known)
        log = (self._folder_of(child.run) / LOG).read_text(encoding="utf-8", errors="replace")
        lines = [printable(line) for line in log.splitlines()[-_ERROR_LINES:]]
        error = "\n".join(lines)[-_ERROR_LENGTH:] or f"it ended with exit code {code}"
        return RunResult(**known, status=FAILED, error=error)

    def _report(self, result: RunResult, mean_seconds: float | None) -> None:
        left, total = self.num_left, len(self.study.runs)
        seconds = None if mean_seconds is None else mean_seconds * left / self.room.jobs
        self.on_end(Progress(result, total - left, total, seconds))

    def _end_children(self) -> None:
        """Tell the runs in flight to save a checkpoint, and wait until they have."""
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for child in self._children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self._children.clear()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def results_of(study: Study, folder: Path) -> list[RunResult]:
    """Return the results of a study's runs so far, in its order and by its settings."""
    stored = folder / RESULTS
    found = {result.key: result for result in read_results(stored)} if stored.exists() else {}
    return [
        replace(found[run.key], settings=dict(run.settings), name=run.name)
        for run in study.runs
        if run.key in found
    ]


def _write_flags(path: Path, flags: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(flags, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _delete_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that has ended: its weights are in its folder."""
    for checkpoint in checkpoints_by_step(folder):
        shutil.rmtree(checkpoint)
