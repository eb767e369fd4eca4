"""The process behind `killed_runs`: imports once, and forks a child for each process of a run."""

import contextlib
import copy
import functools
import gc
import hashlib
import json
import os
import shutil
import signal
import statistics
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from killed_runs import DISK_FULL, NEEDS_NO_SPACE, Fault, Run, free_port

_SECONDS = 60.0  # that a run may take
_GRACE = 20.0  # that the others of a process that has died may take
_SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "freeze": signal.SIGSTOP}
_AUDITED = {"os.rename": 0, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1, "shutil.rmtree": 0}


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
            if self.full and name not in NEEDS_NO_SPACE and (before or not partial):
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
