"""A Trainer whose checkpoints survive a kill, and whose runs continue as if there had been none."""

import filecmp
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ssl_views import checkpoints
from ssl_views.callbacks import no_progress_bars
from ssl_views.checkpoints import CheckpointError
from ssl_views.evaluation.history import forget_evaluations
from ssl_views.guards import check_weights
from ssl_views.hardware import describe_hardware
from ssl_views.resuming import ResumeError, choose_checkpoint
from ssl_views.run_record import describe_data, run_record
from ssl_views.termination import TERMINATED, Terminated, TerminationCallback
from ssl_views.training_args import SSLViewsTrainingArguments

logger = logging.get_logger(__name__)

_STATE = "trainer_state.json"
_SAVED_BESIDE = 1.02, 2**20  # a share and a constant for what is not tensors


class ResumableTrainer(Trainer):
    """Checkpoints are written whole or not at all, verified before use, and deleted by step.

    A run that is killed at any moment, and started again, ends with the weights it would have had:
    on a CPU to the last bit. SIGTERM saves at the end of the step and exits with code 75. A
    checkpoint holds no pickled arguments: `training_args.json` takes the place of
    `training_args.bin`.
    """

    args: SSLViewsTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = {"optimizer": self.optimizer, "scheduler": self.lr_scheduler}
        self._given = {f"given_{n}": type(x).__name__ for n, x in given.items() if x is not None}
        self._staged: str | None = None
        self._chosen: Path | None = None  # from choose_checkpoint until train
        self._termination = TerminationCallback()
        self.add_callback(self._termination)

    def train(
        self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train, or go on training.

        Args:
            resume_from_checkpoint: "auto" resumes from the newest checkpoint of the output folder
                that verifies, and starts a new run where there is none; True does the same, but
                there must be one; or the folder of a checkpoint. None starts a new run.
            args: see `transformers.Trainer.train`.
            kwargs: see `transformers.Trainer.train`.

        Raises:
            ResumeError: if the checkpoint does not verify or belongs to another run, or a new run
                would write over another's checkpoints.
            CheckpointError: if a checkpoint cannot be written.
            SystemExit: with code 75, after SIGTERM.
        """
        folder = self._chosen
        if folder is None or resume_from_checkpoint != folder:
            folder = self.choose_checkpoint(resume_from_checkpoint)
        self._chosen = None
        if folder is not None and self._is_finished(folder):
            return self._load_finished(folder)
        try:
            with self._termination.listening():
                return super().train(folder and str(folder), *args, **kwargs)
        except Terminated:
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            logger.warning(
                "Terminated: step %d is saved in %s. The same command resumes there.",
                self.state.global_step,
                self.args.output_dir,
            )
            raise SystemExit(TERMINATED) from None

    def _load_finished(self, folder: Path) -> TrainOutput:
        """Leave the model as the end of a run does."""
        logger.warning("%s has reached the last step: nothing to train.", folder)
        self._load_from_checkpoint(str(folder))
        self.state = TrainerState.load_from_json(str(folder / _STATE))
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None and Path(best).is_dir():
            self._load_best_model()
        return TrainOutput(self.state.global_step, 0.0, {})

    def choose_checkpoint(self, wanted: str | Path | bool | None) -> Path | None:
        """Return the checkpoint that `train(wanted)` resumes from, or None for a new run.

        All processes get the same. `train` does not verify it again if it is given.
        """
        answer: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                answer[0] = self._choose(wanted)
            except ResumeError as error:
                answer[1] = str(error)
        broadcast_object_list(answer)
        if answer[1] is not None:
            raise ResumeError(answer[1])
        self._chosen = None if answer[0] is None else Path(answer[0])
        return self._chosen

    def _choose(self, wanted: str | Path | bool | None) -> Path | None:
        """Choose, on the process that writes checkpoints."""
        return choose_checkpoint(
            Path(str(self.args.output_dir)),
            wanted,
            self._record(),
            world_size=self.args.world_size,
            allow_changed_run=self.args.allow_changed_run,
        )

    @cached_property
    def _data(self) -> dict[str, Any]:
        return describe_data(self.train_dataset)

    def _record(self) -> dict[str, Any]:
        config = self.accelerator.unwrap_model(self.model).config
        record = run_record(self.args, config, self._data, self.data_collator)
        record["training"].update(self._given)
        return record

    def _is_finished(self, folder: Path) -> bool:
        """Return whether no step is left; the Trainer would take one more."""
        state = json.loads((folder / _STATE).read_text())
        same = checkpoints.read_manifest(folder)["run"] == self._record()
        return bool(same and state["global_step"] >= state["max_steps"])

    def _get_output_dir(self, trial: Any = None) -> str:
        """Return where the Trainer writes checkpoints: aside, while one is written."""
        return self._staged or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint aside, seal it, and rename it into place."""
        run_folder = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        check_weights(self.accelerator.unwrap_model(self.model), self.state.global_step)
        num_bytes = self._checkpoint_bytes()
        if self.args.should_save:
            run_folder.mkdir(parents=True, exist_ok=True)
            checkpoints.clear_unfinished(run_folder)
            checkpoints.check_free_space(run_folder, num_bytes)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._staged = str(run_folder / checkpoints.STAGING)
        try:
            with self._explaining(run_folder, name, num_bytes):
                super()._save_checkpoint(model, trial, *args, **kwargs)
        finally:
            self._staged, self.args.save_total_limit = None, limit
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step:  # the Trainer names a folder that will be renamed
            best = run_folder / f"checkpoint-{self.state.best_global_step}"
            exists = best.is_dir() or best.name == name
            self.state.best_model_checkpoint = str(best) if exists else None
        if self.args.should_save:
            with self._explaining(run_folder, name, num_bytes):
                self._publish(run_folder, name)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _explaining(self, run_folder: Path, name: str, num_bytes: int) -> Iterator[None]:
        """Say what could not be written, and make room again."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if self.args.should_save:
                checkpoints.clear_unfinished(run_folder)  # it may have filled the disk
            raise CheckpointError(
                f"{name} could not be written to {run_folder}: {error}. It takes about "
                f"{num_bytes:,} bytes. Older checkpoints are kept, and the same command resumes "
                "once it can be written."
            ) from error

    def _publish(self, run_folder: Path, name: str) -> None:
        staged = run_folder / checkpoints.STAGING / name
        self.state.save_to_json(str(staged / _STATE))
        facts = {
            "step": self.state.global_step,
            "world_size": self.args.world_size,
            "torch": torch.__version__,
            "run": self._record(),
            "hardware": describe_hardware(self.args.world_size, self.args.device),
        }
        checkpoints.seal(staged, facts)
        checkpoints.publish(staged, run_folder / name)
        checkpoints.clear_unfinished(run_folder)
        best = self.state.best_model_checkpoint
        checkpoints.rotate(run_folder / name, self.args.save_total_limit, best)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load their states; the numbers of a run that was changed are those of its arguments."""
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        groups = self.optimizer.param_groups
        given = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        rates = list(getattr(scheduler, "base_lrs", ()))
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.args.allow_changed_run:
            return
        for group, values in zip(self.optimizer.param_groups, given, strict=True):
            group.update({name: value for name, value in values.items() if name != "lr"})
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = rates
            factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            scheduler._last_lr = [r * f for r, f in zip(rates, factors, strict=True)]
            for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = rate

    def _checkpoint_bytes(self) -> int:
        """Return about how much a checkpoint takes."""
        tensors = list(self.model.state_dict().values())
        if self.optimizer is not None and not self.args.save_only_model:
            states = self.optimizer.state.values()
            tensors += [x for state in states for x in state.values() if isinstance(x, Tensor)]
        share, constant = _SAVED_BESIDE
        return int(share * sum(x.nbytes for x in tensors)) + constant

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write weights, configuration and arguments; every file appears whole, and no pickle."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        staged = folder / checkpoints.STAGING
        staged.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        check_weights(model, self.state.global_step)
        with no_progress_bars():
            model.save_pretrained(staged, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(staged)
        (staged / "training_args.json").write_text(self.args.to_json_string() + "\n")
        if self._staged is None:  # the manifest of a checkpoint has both
            hardware = describe_hardware(self.args.world_size, self.args.device)
            for name, content in (("run", self._record()), ("hardware", hardware)):
                (staged / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
        if self._staged is None and not _same_weights(staged, folder):
            forget_evaluations(folder)
        checkpoints.move_into(staged, folder)


def _same_weights(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same weights, to the last bit."""
    files = [{path.name for path in folder.glob("*.safetensors")} for folder in (one, other)]
    return files[0] == files[1] and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in files[0]
    )
