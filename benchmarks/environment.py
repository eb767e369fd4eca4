"""What every stored result says about where it was measured."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "accelerate", "ssl-views")


def _processor():
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ()
    ):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment():
    """Return machine and versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "gpu": gpu},
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }
