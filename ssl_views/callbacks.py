"""Trainer callbacks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ssl_views.data.dataset import MultiViewDataset

# Of an evaluation, on its line above the bar; all of it is in the logs.
_SHOWN = ("loss", "knn", "effective_rank", "alpha", "lidar", "view_invariance")


class EpochCallback(TrainerCallback):
    """Tells a MultiViewDataset the epoch.

    The stock Trainer needs it; SSLViewsTrainer adds it itself.

    Args:
        dataset: the training data.
    """

    def __init__(self, dataset: MultiViewDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch; a run resumed in mid-epoch begins with a fraction."""
        self.dataset.epoch = int((state.epoch or 0.0) + 1e-6)


class ProgressBar(TrainerCallback):
    """One bar with the loss and images per second; evaluation results on lines of their own."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._mark = (0, 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True
            )
            self._mark = (state.global_step, time.perf_counter())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss and the speed since the last log."""
        if self._bar is None or logs is None:
            return
        if "loss" in logs:
            step, since = self._mark
            now = time.perf_counter()
            batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            images = (state.global_step - step) * batch
            self._mark = (state.global_step, now)
            self._bar.set_postfix_str(
                f"loss {logs['loss']:.4g}, {images / (now - since):,.0f} images/s"
            )
        elif shown := [name for name in _SHOWN if f"eval_{name}" in logs]:
            line = ", ".join(f"{name} {logs[f'eval_{name}']:.4g}" for name in shown)
            self._bar.write(f"step {state.global_step}: {line}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Leave out transformers' bars for loading and saving weights, which take no time here."""
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
