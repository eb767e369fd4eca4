"""Whether the weights of a model are numbers that one can compute with."""

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")


def limits_of(model: nn.Module) -> set[str]:
    """Return the names of buffers that may be infinite, for they may hold limits.

    Some architectures keep the limits of activations in buffers; no limit is infinite. Running
    statistics are none of them.
    """
    return {name for name, _ in model.named_buffers() if not name.endswith(_STATISTICS)}


def is_usable(tensor: Tensor, *, is_limit: bool = False) -> bool:
    """Return whether all values are finite, or of limits none is NaN."""
    # A sum takes a fraction of the time, and is finite only if all numbers are.
    if tensor.is_floating_point() and tensor.sum(dtype=torch.float32).isfinite():
        return True
    return not bool(tensor.isnan().any()) if is_limit else bool(tensor.isfinite().all())
