"""Is the gradient of two processes that of one? Ours and the peers' own code, real collectives.

    pip install lightly && pip install --no-deps lightly_utils solo-learn==1.0.2
    python benchmarks/losses_over_processes.py

Two processes (gloo, float64) hold half of a batch each; a linear layer makes two views' embeddings,
DistributedDataParallel averages the gradients. Compared with one process that holds the batch, once
with different data in the halves, and once with the same data in both, where mistakes hide.
Writes benchmarks/results/losses_over_processes.json.
"""

import json
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from environment import environment
from losses import PEERS, file_of, version_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_views import barlow_twins_loss, kernel_loss, vicreg_loss

OUTPUT = Path(__file__).parent / "results" / "losses_over_processes.json"
WORLD_SIZE, NUM_IMAGES, DIM = 2, 32, 16


def losses():
    from lightly.loss import BarlowTwinsLoss, VICRegLoss

    torch.set_default_dtype(torch.float64)  # solo-learn makes a BatchNorm of the default
    barlow = file_of("solo-learn", "solo/losses/barlow.py", "solo_barlow")
    vicreg = file_of("solo-learn", "solo/losses/vicreg.py", "solo_vicreg")
    lightly_barlow = BarlowTwinsLoss(gather_distributed=True)
    lightly_vicreg = VICRegLoss(gather_distributed=True)
    return {
        "Barlow Twins": lambda z: barlow_twins_loss(z, 5e-3).total,
        "VICReg": lambda z: vicreg_loss(z).total,
        "kernel": lambda z: kernel_loss(z, 0.1).total,
        "lightly Barlow Twins": lambda z: lightly_barlow(*z),
        "lightly VICReg": lambda z: lightly_vicreg(*z),
        "solo-learn Barlow Twins": lambda z: barlow.barlow_loss_func(*z),
        "solo-learn VICReg": lambda z: vicreg.vicreg_loss_func(*z),
    }


def inputs(same):
    """Return (2, N, 8); images differ in scale, and so do the halves, unless they are the same."""
    g = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.3, 2, NUM_IMAGES, dtype=torch.float64)[:, None]
    common = torch.randn(1, NUM_IMAGES, 8, generator=g, dtype=torch.float64)
    noise = torch.randn(2, NUM_IMAGES, 8, generator=g, dtype=torch.float64)
    views = (common + 0.5 * noise) * scale + scale
    return views[:, : NUM_IMAGES // WORLD_SIZE].repeat(1, WORLD_SIZE, 1) if same else views


def gradient(model, views, loss):
    loss(model(views)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def network():
    torch.manual_seed(0)
    return nn.Linear(8, DIM, dtype=torch.float64)


def run(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    init = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD_SIZE)
    found = {}
    for name, loss in losses().items():
        for same in (False, True):
            model = DistributedDataParallel(network())
            found[name, same] = gradient(model, inputs(same).chunk(WORLD_SIZE, dim=1)[rank], loss)
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (folder,), nprocs=WORLD_SIZE)
        gradients = torch.load(f"{folder}/gradients.pt")
    rows = {}
    for name, loss in losses().items():
        rows[name] = {}
        for same in (False, True):
            found, right = gradients[name, same], gradient(network(), inputs(same), loss)
            rows[name]["same data" if same else "different data"] = {
                "relative_error": float((found - right).norm() / right.norm()),
                "length": float(found.norm() / right.norm()),
            }
    result = {
        "what": f"gradient of {WORLD_SIZE} processes against one: relative error, relative length",
        **environment(),
        "losses": rows,
    }
    result["versions"].update({package: version_of(package) for package in PEERS})
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(rows, indent=1))
