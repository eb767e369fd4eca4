"""A Trainer that logs every term, decays only weights, knows LARS, and probes in evaluation."""

from collections.abc import Generator, Iterator, Sized
from copy import copy
from pathlib import Path
from typing import Any

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ssl_views.callbacks import EpochCallback, ProgressBar
from ssl_views.data.bad_images import BadImages, most_bad
from ssl_views.data.collator import GROUP_NAMES, MultiViewCollator
from ssl_views.data.dataset import MultiViewDataset
from ssl_views.data.image_limits import LIMITS
from ssl_views.data.loader import MultiViewLoader
from ssl_views.evaluation.features import Extraction, Precision
from ssl_views.evaluation.history import forget_results
from ssl_views.evaluation.probe import probe_metrics
from ssl_views.micro_batches import loss_by_micro_batches
from ssl_views.modeling_ssl_views import SSLViewsForPreTraining
from ssl_views.publishing_trainer import PublishingTrainer
from ssl_views.train_clock import TrainClock
from ssl_views.trainer_checks import (
    check_batch_fits,
    check_processes,
    note_start,
    synchronize,
    warn_of_small_batch,
)
from ssl_views.training_args import SSLViewsTrainingArguments


class SSLViewsTrainer(PublishingTrainer):
    """A thin subclass of `transformers.Trainer`; everything not named here is the stock Trainer's.

    It logs every term of the loss (`invariance`, ..., and `eval_invariance`, ...), decays only
    weights with two or more dimensions that the architecture lets decay, trains with LARS if
    `args.lars`, tells the data set the epoch, and where it is given rows to probe reports
    `eval_knn`, `eval_effective_rank`, `eval_alpha`, `eval_alpha_r_squared`, `eval_lidar` and
    `eval_view_invariance` of frozen features. With several processes it gives BatchNorm the
    statistics of all of them; with `args.micro_batch_size` it trains on batches larger than memory.
    Threads of this process make the training batches (`args.view_threads`), unless
    `args.dataloader_num_workers` asks for worker processes; the views are the same.

    Args:
        model: the model.
        args: SSLViewsTrainingArguments.
        probe_train: rows that kNN compares with, as from `load_images`.
        probe_test: rows that it classifies; without labels there is no `eval_knn`. Where a metric
            chooses anything, the best checkpoint say, take both from the training set.
        kwargs: of `transformers.Trainer`.

    Attributes:
        bad_images: list of the training images that could not be used, see `args.on_bad`.

    Raises:
        ValueError: if a batch is larger than the data set, or several GPUs are in one process.
    """

    def __init__(
        self,
        model: SSLViewsForPreTraining,
        args: SSLViewsTrainingArguments,
        *,
        probe_train: Any = None,
        probe_test: Any = None,
        **kwargs: Any,
    ) -> None:
        check_processes(args)
        note_start(model, args)
        check_batch_fits("train", kwargs.get("train_dataset"), args.train_batch_size, args)
        if args.eval_strategy != "no":
            check_batch_fits("eval", kwargs.get("eval_dataset"), args.eval_batch_size, args)
        if args.process_index == 0:
            warn_of_small_batch(args.train_batch_size * args.world_size, model.config.projector_dim)
        if args.world_size > 1:
            synchronize(model, args)
        if args.lars:
            lars_args = {"lr": args.learning_rate, "momentum": 0.9, "trust_coeff": 1e-3}
            kwargs["optimizer_cls_and_kwargs"] = (Lars, lars_args)
        super().__init__(model, args, **kwargs)
        args.check_accumulation()
        if isinstance(self.train_dataset, MultiViewDataset):
            self.add_callback(EpochCallback(self.train_dataset))
        if not args.disable_tqdm:
            self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
            self.add_callback(ProgressBar())
        ours = isinstance(self.data_collator, MultiViewCollator)
        self._threads = args.view_threads if ours and args.dataloader_num_workers == 0 else 0
        self.bad_images = self._watch_images() if ours else None
        if args.render_on_device and not self._threads:
            raise ValueError(
                "render_on_device needs a MultiViewCollator; got "
                f"{type(self.data_collator).__name__}. Set data_collator, or render on the CPU."
            )
        self._ahead: tuple[Iterator[Any], Generator[Any, None, None]] | None = None
        self._clock = TrainClock()
        self.add_callback(self._clock)
        self.probe_train, self.probe_test = probe_train, probe_test

    data_collator: Any

    @property
    def _ssl_model(self) -> SSLViewsForPreTraining:
        return self.model

    def _watch_images(self) -> BadImages | None:
        """Make the collator name the images of a batch, and replace and list bad ones."""
        self.data_collator = copy(self.data_collator)
        self.data_collator.keep_indices = True
        if self.data_collator.bad_images is not None:
            raise ValueError(
                "the Trainer keeps the list of bad images; got a collator with bad_images. Leave "
                "them out, and set on_bad."
            )
        if self.args.on_bad == "raise":
            return None
        seen = self.args.max_steps * self.args.train_batch_size * self.args.world_size
        sized = isinstance(self.train_dataset, Sized)
        most = most_bad(len(self.train_dataset) if sized else seen)
        path = Path(str(self.args.output_dir)) / "bad_samples.jsonl"
        self.data_collator.bad_images = BadImages(path, most=most)
        return self.data_collator.bad_images

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loader of an evaluation set, whose bad images are replaced but not listed."""
        collator = self.data_collator
        if isinstance(collator, MultiViewCollator) and collator.bad_images is not None:
            self.data_collator = copy(collator)
            self.data_collator.bad_images = BadImages()
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = collator

    def get_train_dataloader(self) -> Any:
        """Return the loader of the training set; of items only, where threads render them."""
        collator = self.data_collator
        if self._threads:
            self.data_collator = MultiViewLoader.items
        try:
            loader = super().get_train_dataloader()
        finally:
            self.data_collator = collator
        # Iterators draw seeds for workers; a resumed run makes more of them, and must not thereby
        # change the numbers that dropout gets.
        seeds = torch.Generator().manual_seed(self.args.seed)
        getattr(loader, "base_dataloader", loader).generator = seeds
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any
    ) -> tuple[list[Any], Any]:
        """Return the next batches, which threads have made ahead."""
        if self._threads:
            if self._ahead is None or self._ahead[0] is not epoch_iterator:
                self._stop_threads()
                self._ahead = (epoch_iterator, iter(self._loader(epoch_iterator)))
            epoch_iterator = self._ahead[1]
        return super().get_batch_samples(epoch_iterator, *args, **kwargs)

    def _loader(self, batches: Iterator[Any]) -> MultiViewLoader:
        return MultiViewLoader(
            batches,
            self.data_collator,
            num_threads=self._threads,
            device=self.args.device,
            render_on_device=self.args.render_on_device,
        )

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, see `transformers.Trainer.train`."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._stop_threads()

    def _choose(self, wanted: str | Path | bool | None) -> Path | None:
        """Choose a checkpoint; a new run starts with a list of no bad images and no results."""
        folder = super()._choose(wanted)
        if folder is None:
            forget_results(Path(str(self.args.output_dir)))
            if self.bad_images is not None:
                self.bad_images.clear()
        return folder

    def _stop_threads(self) -> None:
        if self._ahead is not None:
            self._ahead[1].close()
            self._ahead = None

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters that weight decay applies to."""
        backbone = self._ssl_model.ssl_views.backbone
        excluded = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else set()
        excluded = {f"ssl_views.backbone.{name}" for name in excluded}
        return [name for name, p in model.named_parameters() if p.ndim > 1 and name not in excluded]

    def forward_backward(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any
    ) -> Tensor:
        """Compute loss and gradients of a batch, in micro-batches where `args` say so."""
        if self.args.micro_batch_size is None:
            return super().forward_backward(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # schedule-free optimizers have two modes
        inputs = self._prepare_inputs(inputs)
        views = {name: inputs[name] for name in GROUP_NAMES if name in inputs}
        result = loss_by_micro_batches(
            self.accelerator, model, self._ssl_model.loss, views, self.args.micro_batch_size
        )
        self.keep(result.terms, result.embeddings)
        return result.total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the images and seconds of training, and the images that could not be used."""
        if "loss" in logs and self.bad_images:
            logs["bad_images"] = len(self.bad_images)
        last = "train_runtime" in logs
        if "loss" in logs or last or any(name.startswith("eval_") for name in logs):
            args = self.args
            per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            images = self.state.global_step * per_step
            logs.update(images_seen=images, train_seconds=round(self._clock.seconds, 3))
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save, see `ResumableTrainer`; its time is no time of training."""
        with self._clock.paused():
            super()._save_checkpoint(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, see `transformers.Trainer.evaluate`; its time is no time of training."""
        with self._clock.paused():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate, with the terms and the probe metrics."""
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        metrics = {**self.eval_terms.pop(), **self.probe()}
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def probe(self) -> dict[str, float]:
        """Return the metrics of frozen features, none without rows to probe."""
        if not self.probe_train or not self.probe_test:  # absent, or too few to hold some out
            return {}
        args = self.args
        precision: Precision = "bfloat16" if args.bf16 else "float32"
        extraction = Extraction(
            args.eval_batch_size * self._ssl_model.config.num_views,
            max(1, args.view_threads),
            getattr(self.data_collator, "limits", LIMITS),
        )
        return probe_metrics(
            self._ssl_model.ssl_views,
            self.probe_train,
            self.probe_test,
            precision=precision,
            extraction=extraction,
        )
