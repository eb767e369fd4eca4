"""A Trainer that logs every term, decays only weights, knows LARS, and probes in evaluation."""

from collections.abc import Mapping
from typing import Any

from timm.optim import Lars
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput

from ssl_views.callbacks import EpochCallback, ProgressBar
from ssl_views.data.loading import MultiViewDataset
from ssl_views.evaluation.features import extract_features, labels_of
from ssl_views.evaluation.report import LabelledFeatures, evaluate_features
from ssl_views.modeling_ssl_views import SSLViewsForPreTraining
from ssl_views.training_args import SSLViewsTrainingArguments
from ssl_views.views import ViewRecipe


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


class SSLViewsTrainer(Trainer):  # type: ignore[misc]
    """A thin subclass of `transformers.Trainer`; everything not named here is the stock Trainer's.

    It logs every term of the loss (`invariance`, ..., and `eval_invariance`, ...), decays only weights with two or more
    dimensions that the architecture lets decay, trains with LARS if `args.lars`, tells the data set the epoch, and reports
    `eval_knn` and `eval_effective_rank` of frozen features where it is given rows to probe.

    Args:
        model: the model.
        args: SSLViewsTrainingArguments.
        probe_train: labelled rows that kNN compares with, as from `load_images`.
        probe_test: labelled rows that it classifies; without labels only the effective rank is reported.
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
        for name, batch_size in (("train", args.train_batch_size * args.world_size), ("eval", args.eval_batch_size)):
            dataset = kwargs.get(f"{name}_dataset")
            size = len(dataset) if hasattr(dataset, "__len__") else None
            if size is not None and size < batch_size and args.dataloader_drop_last:
                raise ValueError(
                    f"a batch must not be larger than the data set; got {batch_size} images per {name} step and "
                    f"{size} images. Lower --per_device_{name}_batch_size."
                )
        if args.n_gpu > 1:
            raise ValueError(
                f"one process must use one GPU, or the loss would see only its part of the batch; got {args.n_gpu}. "
                "Start with: torchrun --nproc_per_node NUMBER_OF_GPUS -m ssl_views pretrain ..."
            )
        if args.lars:
            kwargs["optimizer_cls_and_kwargs"] = (Lars, {"lr": args.learning_rate, "momentum": 0.9, "trust_coeff": 1e-3})
        super().__init__(model, args, **kwargs)
        if isinstance(self.train_dataset, MultiViewDataset):
            self.add_callback(EpochCallback(self.train_dataset))
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        if not args.disable_tqdm:
            self.add_callback(ProgressBar())
        self.probe_train, self.probe_test = probe_train, probe_test
        self._train_terms, self._eval_terms = _Means(), _Means()

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters that weight decay applies to."""
        backbone = self.model.ssl_views.backbone
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
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _probe(self) -> dict[str, float]:
        if self.probe_train is None or self.probe_test is None:
            return {}
        recipe = ViewRecipe.for_config(self.model.config)
        train, test = (
            extract_features(self.model.ssl_views, rows, recipe, batch_size=self.args.eval_batch_size)
            for rows in (self.probe_train, self.probe_test)
        )
        features = LabelledFeatures(train, test, labels_of(self.probe_train), labels_of(self.probe_test))
        metrics = evaluate_features(features, linear_probe=False)
        probes = {"knn": metrics.knn, "effective_rank": metrics.effective_rank}
        return {name: value for name, value in probes.items() if value is not None}
