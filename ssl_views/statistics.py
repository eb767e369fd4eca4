"""Batch statistics of embeddings, over every process of a run.

This is the only file that talks to `torch.distributed`.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class _AllGather(torch.autograd.Function):
    """Gather (V, B, D) embeddings of every process along B; the gradient is the sum over processes.

    Every process then computes the same loss from the same (V, world_size * B, D) tensor, so the
    mean over processes that DistributedDataParallel takes of the parameter gradients is exactly the
    gradient of the loss of the whole batch.
    """

    @staticmethod
    def forward(ctx: "_AllGather", local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: "_AllGather", grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size(), dim=1)[dist.get_rank()]


def global_batch(embeddings: Tensor) -> Tensor:
    """Return the embeddings of the global batch, in the precision that statistics need.

    float16 and bfloat16 become float32; float32 and float64 stay. In a distributed run the
    embeddings of all processes are gathered, differentiably.

    Args:
        embeddings: (V, B, D), this process's embeddings.

    Returns:
        (V, world_size * B, D), the same on every process.

    Raises:
        ValueError: if the processes hold different numbers of images.
    """
    if embeddings.dtype in (torch.float16, torch.bfloat16):
        embeddings = embeddings.float()
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return embeddings
    size = torch.tensor([embeddings.shape[1]], device=embeddings.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    if len({int(s) for s in sizes}) > 1:
        raise ValueError(
            "every process must hold the same number of images; got "
            f"{[int(s) for s in sizes]}. Drop the last incomplete batch "
            "(dataloader_drop_last=True)."
        )
    return _AllGather.apply(embeddings)


def center(embeddings: Tensor) -> Tensor:
    """Subtract the mean over the batch per dimension and view, (V, B, D) -> (V, B, D)."""
    return embeddings - embeddings.mean(dim=1, keepdim=True)


def standardize(embeddings: Tensor, eps: float) -> Tensor:
    """Give every dimension of every view zero mean and unit biased variance over the batch.

    Args:
        embeddings: (V, B, D).
        eps: added to the variance, inside the root.

    Returns:
        (V, B, D).
    """
    centered = center(embeddings)
    return centered * torch.rsqrt(centered.square().mean(dim=1, keepdim=True) + eps)
