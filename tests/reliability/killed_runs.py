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
import contextlib
import copy
import functools
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

MOMENTS = (
    "load", "step_begin", "forward", "backward", "before_optimizer", "after_optimizer", "step_end",
    "log", "epoch_begin", "epoch_end", "saved",
)  # fmt: skip
DISK_FULL = "No space left on device"
_SECONDS = 60.0  # that a run may take
_GRACE = 20.0  # that the others of a process that has died may take
_SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "freeze": signal.SIGSTOP}
_AUDITED = {"os.rename": 0, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1, "shutil.rmtree": 0}
_NEEDS_NO_SPACE = ("remove", "rmdir", "rmtree", "barrier")
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
            [sys.executable, __file__],
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


# --------------------------------------------------------------------------------------- server


def _serve() -> None:
    """Answer jobs until the client closes its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    _import_all()
    for line in sys.stdin:
        try:
            job = json.loads(line)
            answer = _measure(job) if "measure_save" in job else _run_processes(job)
        except BaseException:  # noqa: BLE001
            answer = {"server_error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def _import_all() -> None:
    """Import what every child needs, and start no thread."""
    import torch

    torch.set_num_threads(1)
    import PIL.Image

    import ssl_views.trainer  # noqa: F401

    PIL.Image.init()
    gc.collect()
    gc.freeze()  # so that children share its memory


def _run_processes(job: dict) -> dict:
    output = Path(job["output"])
    records = output.with_name(output.name + ".records")
    shutil.rmtree(records, ignore_errors=True)
    records.mkdir(parents=True)
    port = free_port() if job["processes"] > 1 else 0
    start = time.monotonic()
    children = {}
    for rank in range(job["processes"]):
        pid = os.fork()
        if pid == 0:
            _child(job, rank, port, records)
        children[pid] = rank
    frozen = bool(job["fault"]) and job["fault"]["kind"] == "freeze"
    codes = _wait(children, start, _GRACE if not frozen else 1.0)
    outcome = {name: [] for name in ("errors", "starts", "steps", "finals", "logs", "operations")}
    for rank in range(job["processes"]):
        result = {"error": None, "final": None}
        with contextlib.suppress(FileNotFoundError, ValueError):
            result = json.loads((records / f"result-{rank}.json").read_text())
        lines = _lines(records / f"steps-{rank}.jsonl")
        outcome["errors"].append(result["error"])
        outcome["finals"].append(result["final"])
        outcome["starts"].append(next((x["start"] for x in lines if "start" in x), None))
        outcome["steps"].append([x for x in lines if "step" in x])
        outcome["logs"].append((records / f"log-{rank}").read_text(errors="replace"))
        outcome["operations"].append(
            [x["operation"] for x in _lines(records / f"operations-{rank}.jsonl")]
        )
    seconds = time.monotonic() - start
    return {**outcome, "codes": codes, "seconds": seconds, "folder": str(records)}


def _wait(children: dict, start: float, grace: float) -> list:
    """Wait for all children; end the others some time after the first that ended badly."""
    codes: list = [None] * len(children)
    left = dict(children)
    deadline = start + _SECONDS
    while left:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[left.pop(pid)] = os.waitstatus_to_exitcode(status)
                if status:
                    deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    for pid in children:  # worker processes
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    return codes


def _lines(path: Path) -> list:
    """Return the lines of JSON in a file, without a last one that a kill has cut."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


# ---------------------------------------------------------------------------------------- child


def _child(job: dict, rank: int, port: int, records: Path) -> None:
    """Be one process of a run; does not return."""
    code, result = 1, {"error": None, "final": None}
    try:
        os.setpgid(0, 0)
        log = os.open(records / f"log-{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if job["processes"] > 1:
            places = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
            sizes = {"WORLD_SIZE": job["processes"], "LOCAL_WORLD_SIZE": job["processes"]}
            os.environ.update({k: str(v) for k, v in {**places, **sizes}.items()})
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        result["final"] = _train(job, rank, records)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"
    finally:
        try:
            (records / f"result-{rank}.json").write_text(json.dumps(result))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _train(job: dict, rank: int, records: Path) -> dict:
    fault = job["fault"] and Fault(**job["fault"])
    if fault and fault.rank is not None and fault.rank != rank:
        fault = None
    faults = _Faults(fault, Path(job["output"]), records, rank, job["count_operations"])
    trainer = _trainer(job, faults, records / f"steps-{rank}.jsonl")
    faults.trainer = trainer
    faults.arm()
    trainer.train(resume_from_checkpoint=job["resume"])
    if job["save_at_end"]:
        trainer.save_model()
    faults.disarm()
    if job["keep_weights"]:
        import torch

        torch.save(trainer.model.state_dict(), records / f"weights-{rank}.pt")
    return _final(trainer)


def _images(job: dict) -> list:
    """Return encoded images of several sizes."""
    import io

    import numpy as np
    from PIL import Image

    images = []
    for index in range(job["num_images"]):
        seed = index if index != job["changed_image"] else index + 10**6
        rng = np.random.default_rng(seed)
        sides = np.random.default_rng(index).integers(16, 33, 2)
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (*sides, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG", compress_level=0)  # of one length, whatever is in
        images.append({"bytes": file.getvalue(), "path": None})
    return images


def _parts(job: dict) -> tuple:
    """Return model, arguments and data of a run."""
    import datasets
    import torch
    from transformers import set_seed

    from ssl_views import MultiViewDataset, SSLViewsConfig, SSLViewsForPreTraining
    from ssl_views.training_args import SSLViewsTrainingArguments

    set_seed(0)
    config = {
        "backbone": "test_resnet",
        "model_args": {"drop_path_rate": 0.5},  # so that the state of torch's generator matters
        "image_size": 32,
        "num_views": 2,
        "projector_dim": 16,
        "recipe": "cifar",
        **job["config"],
    }
    model = SSLViewsForPreTraining(SSLViewsConfig(**config))
    if job["float64"]:
        model = model.to(torch.float64)
    args = {
        "per_device_train_batch_size": job["images_per_step"] // job["processes"],
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-2,
        "max_steps": 12,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 3,
        "view_threads": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "ddp_backend": "gloo" if job["processes"] > 1 else None,
        "ddp_timeout": 15,
        **job["args"],
    }
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict({"image": _images(job)}, features=features)
    return (
        model,
        SSLViewsTrainingArguments(job["output"], **args),
        MultiViewDataset(rows),
        MultiViewDataset(rows, epoch=0),
    )


def _trainer(job: dict, faults: "_Faults", steps: Path):
    """Return a trainer that writes down its steps, and tells the faults the moment."""
    import torch
    from transformers import TrainerCallback

    from ssl_views import MultiViewCollator, ViewRecipe
    from ssl_views.trainer import SSLViewsTrainer

    def write(line: dict) -> None:
        with steps.open("a") as file:
            file.write(json.dumps(line) + "\n")

    class Told(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            write({"start": state.global_step})

        def on_step_begin(self, args, state, control, **kwargs):
            faults.at(state.global_step + 1, "step_begin")

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            faults.at(state.global_step + 1, "before_optimizer")

        def on_optimizer_step(self, args, state, control, **kwargs):
            faults.at(state.global_step + 1, "after_optimizer")

        def on_step_end(self, args, state, control, **kwargs):
            faults.at(state.global_step, "step_end")

        def on_log(self, args, state, control, **kwargs):
            faults.at(state.global_step, "log")

        def on_save(self, args, state, control, **kwargs):
            faults.at(state.global_step, "saved")

        def on_epoch_begin(self, args, state, control, **kwargs):
            faults.at(state.global_step, "epoch_begin")

        def on_epoch_end(self, args, state, control, **kwargs):
            faults.at(state.global_step, "epoch_end")

    class Written(SSLViewsTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            step = self.state.global_step + 1
            pixels = [_hash(views.numpy().tobytes()) for views in inputs["pixel_values"]]
            write({"step": step, "indices": inputs["indices"].tolist(), "pixels": pixels})
            faults.at(step, "forward")
            loss = super().training_step(model, inputs, num_items_in_batch)
            faults.at(step, "after_backward")
            return loss

        def _prepare_inputs(self, inputs):
            inputs = super()._prepare_inputs(inputs)
            if not job["float64"]:
                return inputs
            return {
                k: x.to(torch.float64) if x.is_floating_point() else x for k, x in inputs.items()
            }

        def _save_checkpoint(self, *args, **kwargs):
            faults.saving = True
            super()._save_checkpoint(*args, **kwargs)
            faults.saving = False

    class Loading(MultiViewCollator):
        count = 0

        def fill(self, *args):
            self.count += 1
            faults.at(self.count, "load")
            super().fill(*args)

    model, args, dataset, evaluated = _parts(job)
    trainer = Written(
        model,
        args,
        train_dataset=dataset,
        eval_dataset=evaluated if job["evaluated"] else None,
        data_collator=Loading(ViewRecipe.for_config(model.config), job["recipe_seed"]),
        callbacks=[Told()],
    )
    first = next(model.parameters())
    first.register_hook(lambda _: faults.at(trainer.state.global_step + 1, "backward"))
    return trainer


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _final(trainer) -> dict:
    """Return hashes of all that a run must end with."""
    model = trainer.model
    parts = {
        "weights": dict(model.named_parameters()),
        "buffers": dict(model.named_buffers()),
        "step": trainer.state.global_step,
    }
    if trainer.optimizer is not None:
        parts["optimizer"] = trainer.optimizer.state_dict()
        parts["scheduler"] = trainer.lr_scheduler.state_dict()
    return {name: _digest(value) for name, value in parts.items()}


def _digest(value) -> str:
    """Hash nested values to the bit."""
    import torch

    digest = hashlib.sha256()

    def add(value) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(f"{key}:".encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            digest.update(f"[{len(value)}".encode())
            for member in value:
                add(member)
        elif isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().contiguous().numpy().tobytes())
        else:
            digest.update(repr(value).encode())

    add(value)
    return digest.hexdigest()


class _Faults:
    """Counts operations on files below a folder, and does what a fault says."""

    def __init__(self, fault, output: Path, records: Path, rank: int, counting: bool) -> None:
        self.fault = fault
        self.output = str(output.resolve())
        self.counted = records / f"operations-{rank}.jsonl" if counting else None
        self.records = records
        self.pid = os.getpid()
        self.count = 0
        self.armed = self.saving = self.full = self.inside = False
        self.trainer = None

    def arm(self) -> None:
        fault = self.fault
        needs_operations = self.counted or (fault and fault.operation)
        if needs_operations:
            sys.addaudithook(self._audit)
            self._patch()
        self.armed = True

    def disarm(self) -> None:
        self.armed = False
        if self.fault and self.fault.kind == "file_size":
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    def at(self, step: int, moment: str) -> None:
        """Do what is due at a moment of a step."""
        fault = self.fault
        if self.armed and fault and (fault.step, fault.moment) == (step, moment):
            self._strike()

    def _strike(self) -> None:
        fault = self.fault
        if fault.kind == "file_size":
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.num_bytes, resource.RLIM_INFINITY))
        elif fault.kind == "free_space":
            usage = shutil.disk_usage
            shutil.disk_usage = lambda path: usage(path)._replace(free=fault.num_bytes)
        else:
            os.kill(self.pid, _SIGNALS[fault.kind])  # of a worker process: its parent
            if fault.kind == "kill":
                time.sleep(_SECONDS)

    def _audit(self, event: str, args: tuple) -> None:
        if not self.armed or self.inside or os.getpid() != self.pid:
            return
        if event == "open":
            path, mode, flags = args
            writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writes or (isinstance(mode, str) and any(c in mode for c in "wax+")):
                self.operation("open", path)
        elif event in _AUDITED:
            folder = args[_AUDITED[event]] if _AUDITED[event] else -1
            path = os.fsdecode(args[0])
            if folder is not None and folder >= 0:  # of an open folder, as in shutil.rmtree
                path = f"{_opened(folder)}/{path}"
            self.operation(event.split(".")[1], path)

    def operation(self, name: str, path) -> bool:
        """Count an operation, and do what is due; return whether to write a part of the file."""
        if isinstance(path, int) or not self.armed:
            return False
        where = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        if where != self.output and not where.startswith(self.output + "/"):
            return False
        self.count += 1
        if self.counted:
            step = self.trainer.state.global_step
            self.inside = True
            with self.counted.open("a") as file:
                file.write(json.dumps({"operation": [name, where, step]}) + "\n")
            self.inside = False
        fault = self.fault
        due = fault is not None and fault.operation == self.count
        partial = due and name == "write" and fault.share > 0
        if fault and fault.kind == "full" and fault.operation:
            before, self.full = self.full, self.full or due
            if self.full and name not in _NEEDS_NO_SPACE and (before or not partial):
                raise OSError(28, DISK_FULL, where)
        elif due and not partial:
            self._strike()
        return partial

    def _patch(self) -> None:
        """See what Python's audit does not: fsync, writes in native code, and barriers."""
        import safetensors.torch
        import torch
        import transformers.modeling_utils

        sync, torch_save = os.fsync, torch.save
        save_file = safetensors.torch.save_file

        def fsync(descriptor):
            self.operation("fsync", _opened(descriptor))
            return sync(descriptor)

        def saved(obj, f, *args, **kwargs):
            if isinstance(f, str | os.PathLike):
                self._native(f, functools.partial(torch_save, obj, *args, **kwargs), RuntimeError)
            else:
                torch_save(obj, f, *args, **kwargs)

        def save_tensors(tensors, filename, metadata=None):
            from safetensors import SafetensorError

            write = functools.partial(save_file, tensors, metadata=metadata)
            self._native(filename, lambda path: write(filename=path), SafetensorError)

        os.fsync, torch.save = fsync, saved
        if transformers.modeling_utils.safe_save_file is not save_file:
            raise RuntimeError("transformers writes safetensors in another way")
        transformers.modeling_utils.safe_save_file = save_tensors
        accelerator = type(self.trainer.accelerator)
        wait = accelerator.wait_for_everyone

        def wait_for_everyone(this):
            if self.saving:
                self.operation("barrier", self.output)
            wait(this)

        accelerator.wait_for_everyone = wait_for_everyone

    def _native(self, path, write, error_type) -> None:
        """Write a file in native code, or a part of it."""
        if not self.operation("write", path):
            write(str(path))
            return
        self.inside = True
        whole = self.records / "whole"
        write(str(whole))
        data = whole.read_bytes()
        Path(path).write_bytes(data[: int(self.fault.share * len(data))])
        self.inside = False
        if self.fault.kind == "full":
            raise error_type(f"{DISK_FULL} (os error 28)")
        self._strike()


def _opened(descriptor: int) -> Path:
    """Return what file or folder a number stands for."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


# -------------------------------------------------------------------------------------- measure


def _measure(job: dict) -> dict:
    """Measure in a child, as the server itself must not compute."""
    folder = Path(job["measure_save"])
    folder.mkdir(parents=True, exist_ok=True)
    answer = folder / "answer.json"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            answer.write_text(json.dumps(_time_saves(folder, job["backbone"], job["repeats"])))
            code = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the saves could not be timed; see the log above")
    return json.loads(answer.read_text())


def _time_saves(folder: Path, backbone: str, repeats: int) -> dict:
    from transformers import Trainer, TrainingArguments

    from ssl_views import EpochCallback, MultiViewCollator, ViewRecipe
    from ssl_views.trainer import SSLViewsTrainer

    run = Run(
        folder / "ours",
        args={"max_steps": 1, "save_strategy": "no", "save_total_limit": 1},
        config={"backbone": backbone, "model_args": {}},
    )
    job = {**asdict(run), "output": str(run.output)}
    model, args, dataset, _ = _parts(job)
    collate = MultiViewCollator(ViewRecipe.for_config(model.config))
    ours = SSLViewsTrainer(model, args, train_dataset=dataset, data_collator=collate)
    ours.train()
    stock_args = TrainingArguments(
        str(folder / "stock"),
        per_device_train_batch_size=8,
        max_steps=1,
        save_strategy="no",
        save_total_limit=1,
        remove_unused_columns=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    stock = Trainer(
        copy.deepcopy(model),
        stock_args,
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[EpochCallback(dataset)],
    )
    stock.train()
    seconds: dict = {"stock": [], "ours": []}
    for step in range(1, repeats + 1):
        for name, trainer in (("stock", stock), ("ours", ours)):
            trainer.state.global_step = step
            os.sync()
            start = time.perf_counter()
            trainer._save_checkpoint(trainer.model, None)
            seconds[name].append(time.perf_counter() - start)
    saved = folder / "ours" / f"checkpoint-{repeats}"
    extra = [b - a for a, b in zip(seconds["stock"], seconds["ours"], strict=True)]
    return {
        "stock_seconds": statistics.median(seconds["stock"]),
        "our_seconds": statistics.median(seconds["ours"]),
        "extra_seconds": statistics.median(extra),
        "megabytes": sum(x.stat().st_size for x in saved.iterdir()) / 1e6,
    }


if __name__ == "__main__":
    _serve()
