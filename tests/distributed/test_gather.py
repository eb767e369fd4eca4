"""Loss and gradient do not depend on how the batch is cut over processes (real collectives)."""

import datetime
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_views.loss_modules import build_loss

NUM_VIEWS, NUM_IMAGES, DIM = 3, 12, 6


def _inputs():
    g = torch.Generator().manual_seed(1)
    scale = torch.linspace(0.2, 3, NUM_IMAGES, dtype=torch.float64)[
        :, None
    ]  # ranks differ strongly
    return torch.randn(NUM_VIEWS, NUM_IMAGES, 5, generator=g, dtype=torch.float64) * scale


def _model():
    torch.manual_seed(2)
    return nn.Linear(5, DIM, dtype=torch.float64)


def _loss_and_gradient(model, inputs, name):
    loss = build_loss(name, DIM, 0.1)(model(inputs)).total
    loss.backward()
    parameters = getattr(model, "module", model)
    return loss.detach(), torch.cat([p.grad.flatten() for p in parameters.parameters()])


def _run(rank, world_size, folder, share):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {}
    try:
        for name in ("barlow_twins", "vicreg", "kernel"):
            model = DistributedDataParallel(_model())
            local = _inputs().split(share, dim=1)[rank]
            results[name] = _loss_and_gradient(model, local, name)
    except ValueError as error:
        results["error"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _launch(world_size, folder, share):
    mp.spawn(_run, (world_size, str(folder), share), nprocs=world_size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_give_the_loss_and_gradient_of_one(world_size, tmp_path):
    ranks = _launch(world_size, tmp_path, NUM_IMAGES // world_size)
    for name in ("barlow_twins", "vicreg", "kernel"):
        loss, gradient = _loss_and_gradient(_model(), _inputs(), name)
        for rank in ranks:
            torch.testing.assert_close(rank[name][0], loss, atol=1e-12, rtol=1e-12)
            torch.testing.assert_close(rank[name][1], gradient, atol=1e-12, rtol=1e-12)


def test_uneven_processes_get_a_sentence(tmp_path):
    for rank in _launch(2, tmp_path, [5, 7]):
        assert "every process must hold the same number of images; got [5, 7]" in rank["error"]
