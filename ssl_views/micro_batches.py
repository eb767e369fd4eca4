"""The gradient of a batch larger than memory, exactly."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class MicroBatchLoss(NamedTuple):
    """A loss over micro-batches, detached: total, terms, and the embeddings (V, B, D)."""

    total: Tensor
    terms: dict[str, Tensor]
    embeddings: Tensor


def loss_by_micro_batches(
    accelerator: Any,
    model: nn.Module,
    loss: nn.Module,
    views: Mapping[str, Tensor],
    micro_batch_size: int,
) -> MicroBatchLoss:
    """Add the gradient of a batch's loss to the parameters, one micro-batch at a time.

    Embeds all micro-batches without keeping activations, computes the loss and its gradient by the
    embeddings, then embeds each micro-batch again, with the same random numbers, to carry that
    gradient to the parameters. Equal to one pass of the whole batch, except that layers that mix
    images (BatchNorm) see a micro-batch; the gradient is exact for the model that does so.

    Args:
        accelerator: of `accelerate`, that prepared the model.
        model: gives `embeddings` (V, B, D) from views; may be wrapped for several
            processes.
        loss: of embeddings (V, B, D), over all processes.
        views: arguments of the model, (B, V, C, S, S); of as many micro-batches on every process.
        micro_batch_size: images at once.

    Returns:
        The loss, its terms and the embeddings, detached.

    Source:
        GradCache, arXiv 2101.06983, section 3.

    Differs from source:
        Buffers (running statistics) are updated by the second pass only.
    """
    device = next(iter(views.values())).device
    split = [x.split(micro_batch_size) for x in views.values()]
    micro_batches = [dict(zip(views, parts, strict=True)) for parts in zip(*split, strict=True)]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    states, parts = [], []
    with torch.no_grad():
        for micro_batch in micro_batches:
            states.append(_random_state(device))
            parts.append(model(**micro_batch, return_loss=False).embeddings)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    embeddings = torch.cat(parts, dim=1).requires_grad_()
    result = loss(embeddings)
    (gradient,) = torch.autograd.grad(result.total, embeddings)
    gradients = gradient.split(micro_batch_size, dim=1)
    after = _random_state(device)
    for number, (micro_batch, state, part) in enumerate(
        zip(micro_batches, states, gradients, strict=True), 1
    ):
        _set_random_state(device, state)
        last = number == len(micro_batches)
        with nullcontext() if last else accelerator.no_sync(model):
            again = model(**micro_batch, return_loss=False).embeddings
            accelerator.backward((again * part).sum())
    _set_random_state(device, after)
    return MicroBatchLoss(result.total.detach(), result.terms, embeddings.detach())


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)
