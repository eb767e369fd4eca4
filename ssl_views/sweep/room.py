"""How many runs at once, and on which devices."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import psutil
import torch

_FIRST_GUESS = 2e9  # bytes of a run, until one has ended


@dataclass(frozen=True)
class Room:
    """Where runs find place.

    Attributes:
        jobs: runs at once, at most.
        threads: that each may use, on a CPU.
        devices: numbers of the GPUs that runs are spread over; empty without GPUs.
    """

    jobs: int
    threads: int
    devices: tuple[str, ...] = ()

    @classmethod
    def of_this_machine(cls, jobs: int | None = None) -> "Room":
        """Return one run per GPU, or without GPUs one per core.

        Args:
            jobs: so many runs at once instead; more than there are GPUs share them.

        Raises:
            ValueError: if jobs is below 1.
        """
        if jobs is not None and jobs < 1:
            raise ValueError(f"jobs must be at least 1; got {jobs}. Leave it out to fill the room.")
        cores = _usable_cores()
        gpus = _visible_gpus()
        jobs = jobs or len(gpus) or cores
        return cls(jobs, max(1, cores // jobs), tuple(gpus))

    def free(self, taken: Sequence[int]) -> int | None:
        """Return a free place; None where there is none, or no memory for one more run.

        One run is always started; another one if as much memory is available as the largest run
        so far has used.
        """
        slot = next((slot for slot in range(self.jobs) if slot not in taken), None)
        if slot is None or not taken or self.devices:
            return slot
        available = psutil.virtual_memory().available
        return slot if available > max(_largest_child(), _FIRST_GUESS) else None

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment variables of a run in a place."""
        variables = {"OMP_NUM_THREADS": str(self.threads)}
        if self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        return variables


def _largest_child() -> int:
    """Return the most bytes that a process of a run has used, of those that have ended."""
    if find_spec("resource") is None:  # Windows
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def _usable_cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def _visible_gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else []
    return names or [str(number) for number in range(torch.cuda.device_count())]
