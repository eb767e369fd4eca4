"""How long a run has trained, without its evaluations."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainClock(TrainerCallback):
    """Counts the seconds of training; a resumed run goes on from the last that were logged."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training until now."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._counted + running

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start."""
        logged = [entry["train_seconds"] for entry in state.log_history if "train_seconds" in entry]
        self._counted = logged[-1] if logged else 0.0
        self._since = time.perf_counter()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop."""
        self._counted, self._since = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside."""
        running = self._since is not None
        self._counted, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.perf_counter() if running else None
