"""SIGTERM: save at the end of the step, on all processes, and stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

TERMINATED = 75  # the exit code of sysexits.h for "try again later"


class Terminated(Exception):
    """The checkpoint is written, and training must not go on."""


class TerminationCallback(TrainerCallback):
    """Saves and stops at the end of the step in which a process was told to terminate.

    Attributes:
        told: this process was told.
        stopping: all processes know, and will stop when the checkpoint is written.
    """

    def __init__(self) -> None:
        self.told = self.stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for SIGTERM; only the main thread of a process can."""
        self.told = self.stopping = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: Any) -> None:
            self.told = True

        before = signal.signal(signal.SIGTERM, on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop all processes at the same step, whichever was told."""
        self.stopping = self.told
        if args.world_size > 1:
            told = torch.tensor(float(self.told), device=args.device)
            self.stopping = bool(reduce(told, reduction="sum").item())
        if self.stopping:
            control.should_save = True
            if state.global_step < state.max_steps:  # the end of a curve is not made up for
                control.should_evaluate = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave training, before it cleans up as if it had come to its end."""
        if self.stopping:
            raise Terminated
