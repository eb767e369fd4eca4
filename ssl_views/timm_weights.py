"""timm's own weights inside a `PreTrainedModel`, which would overwrite or empty some of them."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class KeepsTimmWeights:
    """Mixin before `PreTrainedModel`: keeps what timm made, new or through from_pretrained.

    A new timm model is marked as initialised. While transformers loads, missing parameters and all
    non-persistent buffers are emptied; what timm made is kept aside, and put back.
    """

    def build_by_timm(self, create: Callable[[], Any]) -> Any:
        """Build a timm model on the CPU while loading, for timm computes buffers, else in place."""
        loading = is_loading()
        with torch.device("cpu") if loading else nullcontext():
            model = create()
        for module in model.modules():
            if loading:
                kept = _own_tensors(module, module._non_persistent_buffers_set)
                detached = {name: tensor.detach() for name, tensor in kept.items()}
                module.__dict__["_kept_tensors"] = detached
            else:
                for tensor in _own_tensors(module, module._buffers).values():
                    setattr(tensor, "_is_hf_initialized", True)  # noqa: B010 (not of Tensor)
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what a checkpoint lacks: what timm made as timm made it."""
        super()._init_weights(module)  # type: ignore[misc]  # of PreTrainedModel
        for name, value in module.__dict__.pop("_kept_tensors", {}).items():
            tensor = getattr(module, name)
            if not is_initialised(tensor):
                tensor.copy_(value)

    def initialize_weights(self) -> None:
        """Initialise all modules, then let go of what was kept for those that lacked nothing."""
        super().initialize_weights()  # type: ignore[misc]
        for module in self.modules():  # type: ignore[attr-defined]
            module.__dict__.pop("_kept_tensors", None)


def is_loading() -> bool:
    """Return whether from_pretrained is building the model, which it does on the meta device."""
    return torch.empty(0).device.type == "meta"


def is_initialised(tensor: Tensor) -> bool:
    """Return whether transformers leaves a tensor as it is."""
    return getattr(tensor, "_is_hf_initialized", False)


def _own_tensors(module: nn.Module, buffers: Iterable[str]) -> dict[str, Tensor]:
    """Return the parameters and the named buffers of a module, without those of its children."""
    own = {**module._parameters, **{name: module._buffers[name] for name in buffers}}
    return {name: tensor for name, tensor in own.items() if tensor is not None}
