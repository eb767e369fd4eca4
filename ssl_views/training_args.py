"""Training arguments: those of transformers, with defaults that fit this objective."""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy


def default_view_threads() -> int:
    """Threads that make views: one without a GPU, where the model needs the cores."""
    if not torch.cuda.is_available():
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(16, (usable or 1) // processes))


_REFUSED = {
    "auto_find_batch_size": "The loss depends on the batch: set micro_batch_size to what fits.",
    "deepspeed": "Checkpoints would be written in parts that cannot be verified: use torchrun.",
    "enable_jit_checkpoint": "SIGTERM saves and exits with code 75 without it.",
    "fsdp": "Checkpoints would be written in parts that cannot be verified: use torchrun.",
    "ignore_data_skip": "A resumed run goes on with the images that are due.",
    "save_only_model": "Checkpoints without the optimizer cannot be resumed from.",
}


@dataclass
class SSLViewsTrainingArguments(TrainingArguments):
    """Arguments of `transformers.TrainingArguments` with other defaults, and a few of our own.

    Attributes:
        micro_batch_size: images per forward pass, for a batch that does not fit in memory; the loss
            and its gradient are still those of the whole batch. Costs a second forward pass.
            BatchNorm layers normalize over a micro-batch.
        allow_inexact_accumulation: allow `gradient_accumulation_steps` above 1, which averages the
            gradients of small batches and is not the gradient of a large one.
        view_threads: threads that decode images and render views ahead of the training step; 0
            makes a batch when it is asked for. `dataloader_num_workers` worker processes do the
            same, slower, where they are asked for.
        render_on_device: render views on the device, from images of one size.
        sync_batchnorm: give BatchNorm layers the statistics of all processes.
        lars: train with LARS (`timm.optim.Lars`, momentum 0.9, trust coefficient 1e-3) instead of
            `optim`.
        on_bad: "replace" puts another image in the place of one that cannot be decoded, and lists
            it in `bad_samples.jsonl`; more than 50 of them, or 1 % of the images, end the run.
            "raise" ends it at the first.
        resume_from_checkpoint: for `ssl-views pretrain`: "auto", "false" or the folder of a
            checkpoint, see `SSLViewsTrainer.train`.
        allow_changed_run: resume although data, model, views or optimizer have changed.
        max_skipped_steps: how often a step whose loss or gradient is not finite may be left out
            before the run ends; the log then repeats the last finite loss.
        stop_on_collapse: end the run when the embeddings have collapsed; otherwise it is only said.
    """

    output_dir: str | None = field(
        default="runs/pretrain", metadata={"help": "Where the run is written."}
    )
    per_device_train_batch_size: int = field(
        default=256,
        metadata={
            "help": "Images per device and step. Every image counts once, however many views."
        },
    )
    per_device_eval_batch_size: int = field(
        default=256, metadata={"help": "Images per device in evaluation."}
    )
    num_train_epochs: float = field(default=100.0, metadata={"help": "Passes over the images."})
    learning_rate: float = field(
        default=2e-3, metadata={"help": "Highest learning rate; for AdamW."}
    )
    weight_decay: float = field(
        default=0.05, metadata={"help": "Of weights with two or more dimensions only."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the schedule."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps, or below 1 a share of all steps."}
    )
    logging_steps: float = field(
        default=10, metadata={"help": "Steps between logs, or below 1 a share."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Replace a NaN loss in the log. Off: a NaN must be seen."}
    )
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to write checkpoints: no, steps, epoch."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    report_to: list[str] | None = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Where to log, several if wanted: tensorboard, trackio, ..."},
    )
    dataloader_drop_last: bool = field(
        default=True,
        metadata={"help": "Leave out the last incomplete batch; its statistics would be noise."},
    )
    dataloader_num_workers: int = field(
        default=0,
        metadata={
            "help": "Worker processes that decode images and render views, instead of threads."
        },
    )
    dataloader_pin_memory: bool = field(
        default=torch.cuda.is_available(),
        metadata={"help": "Copy batches to pinned memory, for a GPU."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must be off: the collator needs image, index and epoch."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without gradient; all have one."}
    )
    ddp_timeout: int = field(
        default=600, metadata={"help": "Seconds until a stuck process ends the run."}
    )
    accelerator_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Of accelerate; by default each process reads a stream itself."},
    )
    lars: bool = field(
        default=False,
        metadata={
            "help": "Train with LARS (momentum 0.9, trust coefficient 1e-3) instead of --optim, "
            "for batches of thousands. Also set --learning_rate (0.2 per 256 images) and a small "
            "--weight_decay."
        },
    )

    micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images per device in one forward pass, where the batch does not fit in "
            "memory. The loss stays that of the whole batch; costs a second forward pass."
        },
    )
    view_threads: int = field(
        default_factory=default_view_threads,
        metadata={
            "help": "Threads that decode images and render views ahead of the training step, where "
            "there are no worker processes; 0 makes a batch when it is asked for."
        },
    )
    render_on_device: bool = field(
        default=False,
        metadata={
            "help": "Render views on the GPU, from images of one size; needs --view_threads."
        },
    )
    allow_inexact_accumulation: bool = field(
        default=False,
        metadata={
            "help": "Allow --gradient_accumulation_steps above 1, which does not enlarge the batch "
            "of the loss."
        },
    )
    on_bad: str = field(
        default="replace",
        metadata={
            "help": "What to do with an image that cannot be decoded: replace it by another and "
            "list it in bad_samples.jsonl, or raise."
        },
    )
    resume_from_checkpoint: str | None = field(
        default="auto",
        metadata={
            "help": "auto: go on from the newest checkpoint in the output folder that is intact; "
            "false: start anew; or the folder of a checkpoint."
        },
    )
    allow_changed_run: bool = field(
        default=False,
        metadata={"help": "Resume although data, model, views or optimizer have changed."},
    )
    max_skipped_steps: int = field(
        default=0,
        metadata={"help": "Steps with a NaN or infinite loss or gradient that are left out."},
    )
    stop_on_collapse: bool = field(
        default=False, metadata={"help": "End the run when the embeddings have collapsed."}
    )
    sync_batchnorm: bool = field(
        default=True,
        metadata={
            "help": "BatchNorm over the images of all processes, as on one with all of them."
        },
    )

    def __post_init__(self) -> None:
        self.check_accumulation()
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(
                f"micro_batch_size must be at least 1; got {self.micro_batch_size}. Leave it out "
                "to use the whole batch at once."
            )
        if self.view_threads < 0:
            raise ValueError(
                f"view_threads must be at least 0; got {self.view_threads}. 0 makes a batch when "
                "it is asked for."
            )
        if self.render_on_device and (self.view_threads == 0 or self.dataloader_num_workers > 0):
            raise ValueError(
                "render_on_device needs view_threads and no worker processes; got "
                f"{self.view_threads} threads and {self.dataloader_num_workers} workers. Set "
                "dataloader_num_workers=0 and view_threads."
            )
        if self.on_bad not in ("replace", "raise"):
            raise ValueError(
                f"on_bad must be 'replace' or 'raise'; got {self.on_bad!r}. replace goes on "
                "without images that cannot be decoded."
            )
        if self.max_skipped_steps < 0:
            raise ValueError(
                f"max_skipped_steps must be at least 0; got {self.max_skipped_steps}. 0 stops at "
                "the first step that is not finite."
            )
        for name, reason in _REFUSED.items():
            if getattr(self, name, None):
                raise ValueError(f"{name} must be left out; got {getattr(self, name)!r}. {reason}")
        if self.hub_token is not None:
            raise ValueError(
                "hub_token must be left out, for arguments are written to files. Log in with "
                "`hf auth login`, or set HF_TOKEN."
            )
        if not torch.accelerator.is_available():
            self.use_cpu = True  # else transformers takes several processes for one, and bf16 ill
        if self.use_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self._meet()
        if self.accelerator_config is None:
            self.accelerator_config = {"dispatch_batches": False}
        super().__post_init__()
        if self.push_to_hub:
            self._check_publishing()

    def _check_publishing(self) -> None:
        """Refuse what would publish more than encoders."""
        if self.hub_model_id is None:
            raise ValueError(
                "push_to_hub must be told where to: hub_model_id is missing. Set "
                "hub_model_id='user/name'."
            )
        if self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                "hub_strategy must be 'end' or 'every_save', for encoders are published, and no "
                f"checkpoints; got {self.hub_strategy.value!r}. Copy checkpoints by other means."
            )
        if self.hub_revision is not None:
            raise ValueError(
                f"hub_revision must be left out; got {self.hub_revision!r}. Encoders of a run are "
                "published on main; `ssl-views publish --tag` marks one."
            )

    def _meet(self) -> None:
        """Make the process group: for CPUs, transformers would forget the time-out."""
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(
                self.ddp_backend or "gloo", timeout=timedelta(seconds=self.ddp_timeout)
            )

    def check_accumulation(self) -> None:
        """Refuse gradient accumulation; accelerate's own arguments can set it after the fact."""
        if self.gradient_accumulation_steps > 1 and not self.allow_inexact_accumulation:
            raise ValueError(
                "gradient_accumulation_steps must be 1, for the loss of a batch is not the mean "
                f"over its parts; got {self.gradient_accumulation_steps}. Set "
                "per_device_train_batch_size to the whole batch and micro_batch_size to what fits "
                "in memory, or allow_inexact_accumulation."
            )
        if self.micro_batch_size is not None and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "micro_batch_size and gradient_accumulation_steps must not be combined; got "
                f"{self.micro_batch_size} and {self.gradient_accumulation_steps}. "
                "micro_batch_size alone is exact."
            )
