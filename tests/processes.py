"""Several processes on one machine, with real collectives (gloo)."""

import datetime
import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _start(rank, function, world_size, folder, arguments):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",  # unused: the processes meet in a file
        GLOO_SOCKET_IFNAME="lo",
    )
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save(function(rank, world_size, *arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def in_processes(function, world_size, folder, *arguments):
    """Return what function(rank, world_size, *arguments) returns, by rank."""
    mp.spawn(_start, (function, world_size, str(folder), arguments), nprocs=world_size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]
