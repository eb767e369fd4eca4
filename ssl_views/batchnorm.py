"""BatchNorm over all processes of a run, on GPU and CPU."""

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_views.statistics import sum_over_processes


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm with the statistics of all processes, for devices without SyncBatchNorm (CPU).

    Takes the parameters and buffers of the layer that it replaces, under the same names; processes
    may hold different numbers of rows. Costs two collectives forward and two backward.

    Args:
        layer: BatchNorm1d, 2d or 3d, or timm's BatchNormAct2d, whose activation it keeps.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(0, layer.eps, layer.momentum, affine=False, track_running_stats=False)
        self.num_features, self.affine = layer.num_features, layer.affine
        self.track_running_stats = layer.track_running_stats
        self.weight, self.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.drop = getattr(layer, "drop", nn.Identity())
        self.act = getattr(layer, "act", nn.Identity())
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, ...) over all dimensions but the second, and over processes.

        Raises:
            ValueError: if all processes together hold fewer than 2 values per channel.
        """
        if self.training or self.running_mean is None:
            output = self._normalize(input)
        else:
            running = self.running_mean, self.running_var
            output = F.batch_norm(input, *running, self.weight, self.bias, eps=self.eps)
        return self.act(self.drop(output))

    def _normalize(self, input: Tensor) -> Tensor:
        rows = input if input.dtype == torch.float64 else input.float()
        dims = [dim for dim in range(rows.ndim) if dim != 1]
        shape = [1, -1] + [1] * (rows.ndim - 2)
        count = rows.new_full((1,), rows.numel() // self.num_features)
        sums = sum_over_processes(torch.cat([rows.sum(dims), count]))
        num_rows = sums[-1].detach()
        if num_rows < 2:
            raise ValueError(
                "BatchNorm must see at least 2 values per channel over all processes; got "
                f"{int(num_rows)}. Raise the batch size."
            )
        mean = sums[:-1] / num_rows
        centered = rows - mean.view(shape)
        variance = sum_over_processes(centered.square().sum(dims)) / num_rows
        if self.training:
            self._track(mean.detach(), variance.detach(), num_rows)
        output = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            output = output * self.weight.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, num_rows: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        count = self.get_buffer("num_batches_tracked").add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(count)
        unbiased = variance * (num_rows / (num_rows - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def synchronize_batchnorm(model: nn.Module, device_type: str) -> nn.Module:
    """Make the BatchNorm layers of a model use the statistics of all processes, in place.

    On GPUs with timm's conversion to SyncBatchNorm, on the CPU with `GlobalBatchNorm`. Names of
    parameters and buffers stay, so checkpoints and encoders do too.

    Args:
        model: not yet wrapped in DistributedDataParallel.
        device_type: where it will train, e.g. "cuda" or "cpu".

    Returns:
        The model; another object only if it is itself a BatchNorm layer.
    """
    if device_type != "cpu":
        return convert_sync_batchnorm(model)
    plain = type(model) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    if isinstance(model, _BatchNorm) and plain:  # a subclass may do more than these
        return GlobalBatchNorm(model)
    for name, child in model.named_children():
        setattr(model, name, synchronize_batchnorm(child, device_type))
    return model


def local_batchnorm_layers(model: nn.Module) -> list[str]:
    """Return the names of BatchNorm layers that see the rows of their own process only."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and not isinstance(module, GlobalBatchNorm | nn.SyncBatchNorm)
    ]
