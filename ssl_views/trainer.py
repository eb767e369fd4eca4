"""A Trainer that logs every term, decays only weights, knows LARS, and probes in evaluation."""

from collections.abc import Generator, Iterator, Mapping, Sized
from typing import Any

from timm.optim.lars import Lars
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.utils import logging

from ssl_views.batchnorm import local_batchnorm_layers, synchronize_batchnorm
from ssl_views.callbacks import EpochCallback, ProgressBar
from ssl_views.data.collator import GROUP_NAMES, MultiViewCollator
from ssl_views.data.dataset import MultiViewDataset
from ssl_views.data.loader import MultiViewLoader
from ssl_views.evaluation.features import labelled_features
from ssl_views.evaluation.report import evaluate_features
from ssl_views.micro_batches import loss_by_micro_batches
from ssl_views.modeling_ssl_views import SSLViewsForPreTraining
from ssl_views.training_args import SSLViewsTrainingArguments

logger = logging.get_logger(__name__)


class _Means:
    """Running means of named 0-d tensors, left on their device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._count += 1

    def pop(self) -> dict[str, float]:
        means = {name: float(value) / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


def _check_batch_fits(
    name: str, dataset: Any, batch_size: int, args: SSLViewsTrainingArguments
) -> None:
    batch_size *= args.world_size
    sized = isinstance(dataset, Sized) and not isinstance(dataset, Mapping)
    if args.dataloader_drop_last and sized and len(dataset) < batch_size:
        raise ValueError(
            f"a batch must not be larger than the data set; got {batch_size} images per {name} "
            f"step and {len(dataset)} images. Lower --per_device_{name}_batch_size."
        )


def _synchronize(model: nn.Module, args: SSLViewsTrainingArguments) -> None:
    if args.sync_batchnorm:
        synchronize_batchnorm(model, args.device.type)
    local = local_batchnorm_layers(model)
    if local:
        logger.warning(
            "%d BatchNorm layers (%s, ...) use the images of their own process only, so results "
            "depend on the number of processes. Set sync_batchnorm, or use a backbone without "
            "BatchNorm.",
            len(local),
            local[0],
        )


class SSLViewsTrainer(Trainer):
    """A thin subclass of `transformers.Trainer`; everything not named here is the stock Trainer's.

    It logs every term of the loss (`invariance`, ..., and `eval_invariance`, ...), decays only
    weights with two or more dimensions that the architecture lets decay, trains with LARS if
    `args.lars`, tells the data set the epoch, and reports `eval_knn` and `eval_effective_rank` of
    frozen features where it is given rows to probe. With several processes it gives BatchNorm the
    statistics of all of them; with `args.micro_batch_size` it trains on batches larger than memory.
    Threads of this process make the training batches (`args.view_threads`), unless
    `args.dataloader_num_workers` asks for worker processes; the views are the same.

    Args:
        model: the model.
        args: SSLViewsTrainingArguments.
        probe_train: labelled rows that kNN compares with, as from `load_images`.
        probe_test: labelled rows that it classifies; without labels only the effective rank is
            reported.
        kwargs: of `transformers.Trainer`.

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
        _check_batch_fits("train", kwargs.get("train_dataset"), args.train_batch_size, args)
        if args.eval_strategy != "no":
            _check_batch_fits("eval", kwargs.get("eval_dataset"), args.eval_batch_size, args)
        if args.n_gpu > 1:
            raise ValueError(
                "one process must use one GPU, or the loss would see a part of the batch only; got "
                f"{args.n_gpu}. Start with torchrun --nproc_per_node {args.n_gpu} -m ssl_views ..."
            )
        if args.world_size > 1:
            _synchronize(model, args)
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
        threaded = isinstance(self.data_collator, MultiViewCollator)
        threaded = threaded and args.dataloader_num_workers == 0
        self._threads = args.view_threads if threaded else 0
        if args.render_on_device and not self._threads:
            raise ValueError(
                "render_on_device needs a MultiViewCollator; got "
                f"{type(self.data_collator).__name__}. Set data_collator, or render on the CPU."
            )
        self._ahead: tuple[Iterator[Any], Generator[Any, None, None]] | None = None
        self.probe_train, self.probe_test = probe_train, probe_test
        self._train_terms, self._eval_terms = _Means(), _Means()

    data_collator: Any

    @property
    def _ssl_model(self) -> SSLViewsForPreTraining:
        return self.model

    def get_train_dataloader(self) -> Any:
        """Return the loader of the training set; of items only, where threads render them."""
        if not self._threads:
            return super().get_train_dataloader()
        collator, self.data_collator = self.data_collator, MultiViewLoader.items
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

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

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss and keep its terms for the next log."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        (self._train_terms if model.training else self._eval_terms).add(outputs["terms"])
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Train on a batch, in micro-batches where `args` say so."""
        if self.args.micro_batch_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # schedule-free optimizers have two modes
        inputs = self._prepare_inputs(inputs)
        views = {name: inputs[name] for name in GROUP_NAMES if name in inputs}
        result = loss_by_micro_batches(
            self.accelerator, model, self._ssl_model.loss, views, self.args.micro_batch_size
        )
        self._train_terms.add(result.terms)
        return result.total.detach()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the terms beside the loss."""
        if "loss" in logs:
            logs.update(self._train_terms.pop())
        super().log(logs, start_time)

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
        metrics = {**self._eval_terms.pop(), **self._probe()}
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def _probe(self) -> dict[str, float]:
        if self.probe_train is None or self.probe_test is None:
            return {}
        features = labelled_features(
            self._ssl_model.ssl_views,
            self.probe_train,
            self.probe_test,
            batch_size=self.args.eval_batch_size,
        )
        metrics = evaluate_features(features, linear_probe=False)
        probes = {"knn": metrics.knn, "effective_rank": metrics.effective_rank}
        return {name: value for name, value in probes.items() if value is not None}
