"""Shared fixtures. Tests never reach the network."""

import os
import socket
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # two workers of two threads each would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

import datasets
import numpy as np
import pytest
import torch
from loader_cases import mixed_images
from PIL import Image

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
        ):
            raise RuntimeError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")


@pytest.fixture(autouse=True)
def _quick_end_of_workers(monkeypatch):
    """A loader whose worker has failed waits so long for the others, 5 s by default."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def _shared(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the {name} data set")
    return str(SHARED / name)


@pytest.fixture
def cifar10():
    return _shared("cifar10")


@pytest.fixture
def photos():
    return _shared("photos")


@pytest.fixture(scope="session")
def mixed():
    return mixed_images()


@pytest.fixture
def image_folder(tmp_path):
    """Thirty PNG images of 24 x 20 pixels in two class folders."""
    rng = np.random.default_rng(0)
    for i in range(30):
        folder = tmp_path / "images" / ("cat" if i % 3 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"
