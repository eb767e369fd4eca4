"""A Trainer that logs every term of the loss, and stops when the numbers go wrong."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from transformers.utils import logging

from ssl_views.data.collator import GROUP_NAMES, INDICES
from ssl_views.guards import (
    CollapseError,
    CollapseWatch,
    NonFiniteError,
    embedding_statistics,
    is_finite,
    non_finite_message,
)
from ssl_views.resumable_trainer import ResumableTrainer

logger = logging.get_logger(__name__)

_MOST_OVERFLOWS = 64  # in a row: the scale of fp16 has long been at its least


class Means:
    """Running means of named 0-d tensors, left on their device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one value of each name."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._count += 1

    def pop(self) -> dict[str, float]:
        """Return the means, and start again."""
        means = {name: float(value) / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


class WatchedTrainer(ResumableTrainer):
    """Logs the terms of the loss and how the embeddings spread; stops before a step is wrong.

    A loss or gradient that is not finite ends the run before the optimizer takes a step
    (`args.max_skipped_steps` leaves some out instead). Embeddings that have collapsed are warned of
    (`args.stop_on_collapse` ends the run).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.train_terms, self.eval_terms = Means(), Means()
        self._terms: Mapping[str, Tensor] = {}
        self._embeddings: Tensor | None = None  # of the last step that was finite
        self._new_embeddings: Tensor | None = None
        self._collapse: CollapseWatch | None = None
        self._last_loss: Tensor | None = None
        self._skipped_steps = self._overflows = 0
        self._scale = 0.0  # of fp16

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device, without what the model does not take."""
        return super()._prepare_inputs({k: x for k, x in inputs.items() if k != INDICES})

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss and keep its terms for the next log."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self.keep(outputs["terms"], outputs["embeddings"])
        else:
            self.eval_terms.add(outputs["terms"])
        return (loss, outputs) if return_outputs else loss

    def keep(self, terms: Mapping[str, Tensor], embeddings: Tensor) -> None:
        """Keep the terms and the embeddings (V, B, D) of a training step for the next log."""
        self._terms, self._new_embeddings = terms, embeddings[0].detach()

    def forward_backward(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any
    ) -> Tensor:
        """Compute loss and gradients of a batch."""
        return super().training_step(model, inputs, num_items_in_batch)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Compute loss and gradients of a batch, and refuse what is not finite.

        Raises:
            NonFiniteError: with step, process and images.
        """
        loss = self.forward_backward(model, inputs, num_items_in_batch)
        # fp16 scales the loss until gradients overflow, and leaves such steps out itself.
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None:
            before, self._scale = self._scale, scaler.get_scale()
            self._overflows = self._overflows + 1 if self._scale < before else 0
        finite = is_finite(loss, model if scaler is None else None)
        if finite and self._overflows < _MOST_OVERFLOWS:
            self.train_terms.add(self._terms)
            self._embeddings, self._last_loss = self._new_embeddings, loss
            return loss
        spoilt = not all(torch.isfinite(buffer).all() for buffer in model.buffers())
        allowed = self._skipped_steps < self.args.max_skipped_steps and not self._overflows
        if not allowed or spoilt or self._last_loss is None:
            raise NonFiniteError(
                non_finite_message(
                    step=self.state.global_step + 1,
                    rank=self.args.process_index,
                    loss=loss,
                    terms=self._terms,
                    views=[inputs[name] for name in GROUP_NAMES if name in inputs],
                    indices=inputs.get(INDICES),
                    spoilt=spoilt,
                )
            )
        self._skipped_steps += 1
        if scaler is None:
            for parameter in model.parameters():
                parameter.grad = None
        return self._last_loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the terms and the spread of the embeddings beside the loss."""
        if "loss" in logs:
            logs.update(self.train_terms.pop())
            if self._skipped_steps:
                logs["skipped_steps"] = self._skipped_steps
            if self._embeddings is not None:
                self._watch(logs, self._embeddings)
        super().log(logs, start_time)

    def _watch(self, logs: dict[str, float], embeddings: Tensor) -> None:
        """Add statistics of the embeddings to the log, their means over all processes."""
        statistics = embedding_statistics(embeddings).float().to(self.args.device)
        std, spread, rank = reduce(statistics, reduction="mean").tolist()
        logs.update({"embedding_std": std, "embedding_effective_rank": rank})
        if self._collapse is None:
            self._collapse = CollapseWatch(embeddings.shape)
        if self.state.global_step < self.args.get_warmup_steps(self.state.max_steps):
            return  # an untrained projector has a low rank too
        sentence = self._collapse.look(spread, rank, logs.get("grad_norm"))
        if sentence is not None and self.args.stop_on_collapse:
            raise CollapseError(f"step {self.state.global_step}: {sentence}")
        if sentence is not None:
            logger.warning("Step %d: %s", self.state.global_step, sentence)
