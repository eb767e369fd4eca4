"""Training runs that are killed, cheaply: about half a second each.

A server process imports torch once, never computes, and forks a child for every process of every
run. A child trains with SSLViewsTrainer, writes down what it trains on, and meets one `Fault`. What
is judged is what a user does next: the same arguments again, resume_from_checkpoint="auto".

    whole = launch(Run(folder / "whole"))
    counts = survive(Run(folder / "killed"), [(Fault("kill", step=4, moment="backward"),)])
    assert not counts.failures, counts

No process of a run uses the network; several of them meet on the loopback.
"""

import atexit
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

MOMENTS = (
    "load", "step_begin", "forward", "backward", "before_optimizer", "after_optimizer", "step_end",
    "log", "epoch_begin", "epoch_end", "saved",
)  # fmt: skip
DISK_FULL = "No space left on device"
NEEDS_NO_SPACE = ("remove", "rmdir", "rmtree", "barrier")
LOADERS = {
    "one thread": {"view_threads": 1},
    "two threads": {"view_threads": 2},
    "no threads": {"view_threads": 0},
    "workers": {"dataloader_num_workers": 2},
    "persistent workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
}
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Run:
    """A training run of 12 steps of 8 images, in 2 epochs; a checkpoint every 3 steps.

    Attributes:
        output: its folder; the records of its processes go beside it.
        args: of SSLViewsTrainingArguments, instead of the default.
        config: of SSLViewsConfig, instead of the default.
        processes: started together.
        images_per_step: of all processes.
        num_images: in the data set; by default two are left over in an epoch.
        changed_image: index of an image with other bytes; None for none.
        recipe_seed: of the collator.
        evaluated: evaluate on the same images.
        resume: as in SSLViewsTrainer.train.
        float64: weights and sums in float64.
        keep_weights: write the weights at the end to a file, see `Outcome.weights`.
        save_at_end: call `save_model` after training.
    """

    output: Path
    args: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    processes: int = 1
    images_per_step: int = 8
    num_images: int = 50
    changed_image: "int | None" = None
    recipe_seed: int = 0
    evaluated: bool = False
    resume: "str | bool | None" = "auto"
    float64: bool = False
    keep_weights: bool = False
    save_at_end: bool = False

    def but(self, **values) -> "Run":
        """Return the run with other values; those of `args` and `config` are added."""
        for name in ("args", "config"):
            if name in values:
                values[name] = {**getattr(self, name), **values[name]}
        return replace(self, **values)


@dataclass(frozen=True)
class Fault:
    """What happens to one process of a run.

    Attributes:
        kind: "kill", "terminate" or "freeze" (signals), "full" (the disk is, from this file
            operation on until the run's end), "file_size" (no file may be longer than `num_bytes`),
            "free_space" (the disk says it has `num_bytes` left).
        rank: of the process; None for all.
        step: of the moment at which it happens, counted from 1; with moment "load", the number of
            the batch in the process that makes it.
        moment: of the step, see MOMENTS.
        operation: number of the file operation at which it happens, from 1, see `operations`.
        share: of the bytes that a native write has written by then.
        num_bytes: see `kind`.
    """

    kind: str
    rank: "int | None" = 0
    step: int = 0
    moment: str = ""
    operation: int = 0
    share: float = 0.0
    num_bytes: int = 0


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        codes: exit code of each process; negative for the signal that ended it.
        errors: "Type: message" of each process that raised.
        starts: step that each process began at; None where it trained nothing.
        steps: by rank, [{"step", "indices", "pixels" (a hash for each image)}].
        finals: by rank, hashes of weights, buffers, optimizer and scheduler; None where unfinished.
        logs: standard error and output of each process.
        seconds: that it took.
        operations: by rank, [(name, path, step)], where asked for.
        folder: of the records.
    """

    codes: list
    errors: list
    starts: list
    steps: list
    finals: list
    logs: list
    seconds: float
    operations: list
    folder: str

    @property
    def log(self) -> str:
        """All that the processes have said."""
        return "\n".join(self.logs)

    @property
    def steps_done(self) -> int:
        """Steps that were begun, by the process that came furthest."""
        return max((line["step"] for lines in self.steps for line in lines), default=0)

    def weights(self) -> dict:
        """The weights at the end, of a run with `keep_weights`."""
        import torch

        return torch.load(Path(self.folder) / "weights-0.pt")


@dataclass
class Counts:
    """How many runs were tried, and how many survived.

    Attributes:
        tried: runs.
        killed: runs that the fault has really ended.
        survived: runs that resumed by themselves, and ended like the run without a fault: indices,
            pixels, weights, buffers, optimizer and scheduler to the bit.
        lost: all others.
        most_steps_lost: steps that had to be taken again.
        failures: one message for each run that was lost.
    """

    tried: int = 0
    killed: int = 0
    survived: int = 0
    lost: int = 0
    most_steps_lost: int = 0
    failures: list = field(default_factory=list)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.tried + other.tried,
            self.killed + other.killed,
            self.survived + other.survived,
            self.lost + other.lost,
            max(self.most_steps_lost, other.most_steps_lost),
            self.failures + other.failures,
        )


# ------------------------------------------------------------------------- what benchmarks call


def launch(run: Run, fault: "Fault | None" = None, *, count_operations: bool = False) -> Outcome:
    """Start all processes of a run, and wait for their end."""
    job = {
        **asdict(run),
        "output": str(run.output),
        "fault": fault and asdict(fault),
        "count_operations": count_operations,
    }
    return Outcome(**_server().ask(job))


def fresh(run: Run) -> Run:
    """Return the run, with an empty folder."""
    shutil.rmtree(run.output, ignore_errors=True)
    return run


def finish(run: Run) -> Outcome:
    """Return the outcome of a run without a fault; it must end well."""
    outcome = launch(fresh(run))
    if any(outcome.codes):
        raise RuntimeError(f"a run without a fault must end well:\n{outcome.log}")
    return outcome


def operations(run: Run) -> list:
    """Return what a run does to files, by rank: [(name, path, step of the run)].

    Opening to write, rename, remove, mkdir, rmdir, rmtree, fsync, whole native writes (safetensors
    and torch.save), and the barriers of a save.
    """
    outcome = launch(fresh(run), count_operations=True)
    if any(outcome.codes):
        raise RuntimeError(f"a run without a fault must end well:\n{outcome.log}")
    return outcome.operations


def differences(whole: Outcome, parts: Sequence[Outcome]) -> list:
    """Return in what a run that was interrupted differs from one that was not."""
    found = []
    expected = [{line["step"]: line for line in lines} for lines in whole.steps]
    for number, part in enumerate(parts):
        for rank, lines in enumerate(part.steps):
            for line in lines:
                for name in ("indices", "pixels"):
                    if line[name] != expected[rank].get(line["step"], {}).get(name):
                        found.append(f"start {number}, rank {rank}: {name} of step {line['step']}")
    last = parts[-1]
    for rank, final in enumerate(last.finals):
        if last.starts[rank] is None and final is not None:  # it had finished: no optimizer
            names = ("step", "weights", "buffers")
        else:
            names = tuple(whole.finals[rank])
        for name in names:
            if final is None or final[name] != whole.finals[rank][name]:
                found.append(f"rank {rank}: {name} at the end")
    return found


def survive(
    run: Run,
    faults: Iterable[Sequence[Fault]],
    *,
    whole: "Outcome | None" = None,
    most_steps_lost: int = 3,
    again: "Run | None" = None,
    says: str = "",
) -> Counts:
    """Break runs, start each again with the same arguments, and compare with a run in peace.

    Args:
        run: what is run; its folder is emptied for each trial.
        faults: for each trial, the fault of the first start, of the second, ...; one more start is
            without.
        whole: the run without a fault, where it is known.
        most_steps_lost: more is a failure: the steps between two checkpoints.
        again: what is started afterwards, where it is not the same.
        says: regular expression for the error of the process that meets a fault.
    """
    again = again or run
    whole = whole or finish(run.but(output=run.output.with_name("whole")))
    counts = Counts()
    for trial in faults:
        fresh(run)
        parts = []
        half = []
        for number, fault in enumerate(trial):
            parts.append(launch(again if number else run, fault))
            half += _half_written(run.output)
        parts.append(launch(again))
        problems = _problems(whole, parts, trial, most_steps_lost, says)
        if half:
            problems.append(f"what looked like a checkpoint was none: {half}")
        if left := [x.name for x in run.output.iterdir() if x.name in ("_staging", "_trash")]:
            problems.append(f"it left {left}")
        counts.tried += 1
        counts.killed += any(parts[0].codes)
        counts.most_steps_lost = max(counts.most_steps_lost, _steps_lost(parts))
        if problems:
            counts.lost += 1
            lines = parts[-1].log.strip().splitlines()
            said = "\n".join([line for line in lines if not line.startswith("{'")][-6:])
            counts.failures.append(f"{trial}: {'; '.join(problems)}\n{said}")
        else:
            counts.survived += 1
    return counts


def _half_written(folder: Path) -> list:
    """Return what is named like a checkpoint and does not verify: a fault must never leave it."""
    from ssl_views import checkpoints

    found = []
    for path in checkpoints.checkpoints_by_step(folder):
        try:
            checkpoints.verify(path)
        except checkpoints.CheckpointError as error:
            found.append(f"{path.name}: {error}")
    return found


def _problems(
    whole: Outcome,
    parts: Sequence[Outcome],
    trial: Sequence[Fault],
    most_steps_lost: int,
    says: str,
) -> list:
    last = parts[-1]
    for fault, part in zip(trial, parts, strict=False):
        if fault.kind == "kill" and -signal.SIGKILL not in part.codes:
            return [f"{fault} was never reached (exit codes {part.codes})"]
        if fault.kind != "kill" and not all(part.codes):
            return [f"{fault} was not noticed (exit codes {part.codes})"]
        if fault.kind == "terminate" and set(part.codes) != {75}:
            return [f"{fault} must end with exit code 75, not {part.codes}"]
        if says and not re.search(says, part.errors[fault.rank or 0] or "", re.DOTALL):
            return [f"it said {part.errors[fault.rank or 0]!r}"]
    if any(last.codes):
        return [f"it did not end well (exit codes {last.codes}): {last.errors}"]
    if (lost := _steps_lost(parts)) > most_steps_lost:
        return [f"{lost} steps were lost"]
    return differences(whole, parts)


def _steps_lost(parts: Sequence[Outcome]) -> int:
    """Return how many steps were taken, and taken again."""
    lost = 0
    for before, after in pairwise(parts):
        start = after.starts[0]
        if start is not None and before.steps_done:
            lost = max(lost, before.steps_done - start)
    return lost


def kills_at_steps(steps: Sequence[int], moments: Sequence[str] = MOMENTS) -> list:
    """Return trials: a SIGKILL at each of these moments of each of these steps, where they exist.

    Epochs begin and end every 6 steps, and every 3 steps a checkpoint is saved.
    """
    every = {"epoch_begin": 6, "epoch_end": 6, "saved": 3}
    return [
        (Fault("kill", step=step, moment=moment),)
        for step in steps
        for moment in moments
        if step % every.get(moment, 1) == 0 and (moment, step) != ("epoch_begin", 12)
    ]


def of_steps(found: Sequence[tuple], steps: Sequence[int]) -> list:
    """Return the file operations of the saves at some steps, each with its number."""
    return [(number, made) for number, made in enumerate(found, 1) if made[2] in steps]


def full_disks(found: Sequence[tuple]) -> list:
    """Return trials: no space is left from each of these numbered operations on."""
    return [
        (Fault("full", operation=number, share=0.6 if name == "write" else 0.0),)
        for number, (name, _, _) in found
        if name not in NEEDS_NO_SPACE
    ]


def kills_at_operations(
    found: Sequence[tuple], *, rank: int = 0, shares: Sequence[float] = (0.0, 0.37)
) -> list:
    """Return trials: a SIGKILL at each of these numbered operations of a process.

    Args:
        found: [(number, (name, path, step))].
        rank: of the process.
        shares: of native writes, that are written by then.
    """
    return [
        (Fault("kill", rank=rank, operation=number, share=share),)
        for number, (name, _, _) in found
        for share in (shares if name == "write" else (0.0,))
    ]


def save_overhead(folder: Path, *, backbone: str = "resnet50", repeats: int = 5) -> dict:
    """Measure what our way of saving costs beside the stock Trainer's.

    Returns:
        {"stock_seconds", "our_seconds" (medians of a save), "extra_seconds" (median of the
        differences), "megabytes" (of a checkpoint)}.
    """
    return _server().ask({"measure_save": str(folder), "backbone": backbone, "repeats": repeats})


# --------------------------------------------------------------------------------------- client


class _Server:
    """The process that forks, and a line of JSON each way."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="killed_runs-"))
        self._log = (self._folder / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed_run_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
            cwd=self._folder,  # not where a package of this name lies
        )

    def ask(self, job: dict) -> dict:
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the server has died:\n{self._log.read()[-4000:]}")
        answer = json.loads(line)
        if "server_error" in answer:
            raise RuntimeError(answer["server_error"])
        return answer

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@functools.cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


def free_port() -> int:
    """Return a port of the loopback that nobody uses."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
