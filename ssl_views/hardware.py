"""What a run was computed on: devices, processes and versions, and nothing that names a person."""

import os
import platform
from pathlib import Path
from typing import Any

import timm
import torch
import transformers

import ssl_views
from ssl_views.naming import printable

_CPU_INFO = Path("/proc/cpuinfo")
_LONGEST = 100  # characters of a device's name


def describe_hardware(world_size: int, device: torch.device | None = None) -> dict[str, Any]:
    """Return what a run is computed on, as JSON values: for the record, no part of the run itself.

    It names no host, no user and no path.

    Args:
        world_size: number of processes.
        device: that this process computes on; by default the accelerator, where there is one.

    Returns:
        "kind", such as "cuda"; "device", a model name; "num_devices", GPUs of the run, or cores
        that this process may use; "processes"; and "versions" by package.

    Example:
        >>> describe_hardware(2)["processes"]
        2
    """
    if device is None:
        found = torch.accelerator.is_available()
        device = torch.accelerator.current_accelerator() if found else None
    on_cpu = device is None or device.type == "cpu"
    return {
        "kind": "cpu" if device is None else device.type,
        "device": _processor() if device is None or on_cpu else _accelerator(device),
        "num_devices": _usable_cores() if on_cpu else world_size,  # a process has one accelerator
        "processes": world_size,
        "versions": current_versions(),
    }


def current_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that make the numbers."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "transformers": transformers.__version__,
        "ssl_views": ssl_views.__version__,
    }


def _processor() -> str:
    """Return the model name of the processor."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return printable(value.strip())[:_LONGEST]
    return printable(platform.processor() or platform.machine() or "a processor")[:_LONGEST]


def _accelerator(device: torch.device) -> str:
    """Return the model name of an accelerator, or its kind where it tells no more."""
    kind = getattr(torch, device.type, None)
    name = getattr(kind, "get_device_name", None)
    return printable(str(name(device)))[:_LONGEST] if callable(name) else device.type


def _usable_cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1
