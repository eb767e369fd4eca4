"""An encoder as the backbone of a dense task: feature maps of several stages, for a head on top.

Importing this registers `TimmEncoderBackbone` with `AutoBackbone`; what `AutoModel` gives is not
changed.
"""

import copy
import inspect
import os
from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn
from transformers import AutoBackbone, TimmWrapperConfig
from transformers.modeling_outputs import BackboneOutput
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperPreTrainedModel

from ssl_views.timm_weights import KeepsTimmWeights


class TimmEncoderBackbone(KeepsTimmWeights, TimmWrapperPreTrainedModel):
    """An encoder folder as a backbone, with the interface that heads of transformers expect.

    It holds the whole encoder, with its BatchNorm statistics and any number of channels, and saves
    it as timm loads it. `TimmBackbone` of transformers starts from a timm model without the
    statistics of the encoder.

    Load a folder by `TimmEncoderBackbone.from_pretrained(folder, out_indices=[1, 2, 3])`. From the
    Hub `AutoBackbone.from_pretrained("user/name", out_indices=[1, 2, 3])` does the same; newer
    versions of it take no local folder, and nothing without network.

    A vision transformer takes images of the size that it was trained at. For others set
    `config.model_args["dynamic_img_size"] = True` and pass that `config` to `from_pretrained`.

    Attributes:
        stage_names: of all stages, as timm names them.
        num_features: channels of all stages.
        out_indices: the stages whose maps are returned, counted from 0.

    Args:
        config: of the encoder. It may hold `out_indices` or `out_features` too.
        out_indices: the stages whose maps to return, in order; those below 0 count from the last
            one. By default the last stage.
        out_features: the same by name.

    Raises:
        ValueError: if there are no such stages, or timm gives no maps of the architecture.

    Example:
        >>> config = TimmWrapperConfig(architecture="resnet18", model_args={"in_chans": 5})
        >>> backbone = TimmEncoderBackbone(config, out_indices=[-2, -1])
        >>> backbone.out_features, backbone.channels, backbone.strides
        (['layer3', 'layer4'], [256, 512], [16, 32])
        >>> [tuple(x.shape) for x in backbone(torch.zeros(2, 5, 64, 64)).feature_maps]
        [(2, 256, 4, 4), (2, 512, 2, 2)]
    """

    config_class = TimmWrapperConfig
    has_attentions = False

    def __init__(
        self,
        config: TimmWrapperConfig,
        out_indices: Sequence[int] | None = None,
        out_features: Sequence[str] | None = None,
    ) -> None:
        config = copy.deepcopy(config)  # of the caller: another backbone may have other stages
        super().__init__(config)
        self.timm_model = self.build_by_timm(
            lambda: timm.create_model(
                config.architecture, num_classes=0, **(config.model_args or {})
            )
        )
        stages = _stages(self.timm_model, config.architecture)
        self.stage_names = [str(stage["module"]) for stage in stages]
        self.num_features = [int(stage["num_chs"]) for stage in stages]
        self._strides = [int(stage["reduction"]) for stage in stages]
        if out_indices is None and out_features is None:
            out_indices = getattr(config, "out_indices", None)
            out_features = getattr(config, "out_features", None)
        self.out_indices = self._chosen(out_indices, out_features)
        # One of the two is stored, so a keyword of from_pretrained does not contradict the other.
        config.out_indices = self.out_indices
        config.__dict__.pop("out_features", None)
        self.post_init()

    def _chosen(self, indices: Sequence[int] | None, names: Sequence[str] | None) -> list[int]:
        """Return the stages asked for, counted from 0."""
        architecture, count = self.config.architecture, len(self.stage_names)
        by_name = None
        if names is not None:
            if not set(names) <= set(self.stage_names):
                raise ValueError(
                    f"out_features must be stages of {architecture}; got {list(names)}. It has "
                    f"{self.stage_names}."
                )
            by_name = [self.stage_names.index(name) for name in names]
        if indices is None:
            indices = [count - 1] if by_name is None else by_name
        if not all(-count <= index < count for index in indices):
            raise ValueError(
                f"out_indices must lie from {-count} to {count - 1}, since {architecture} has "
                f"{count} stages; got {list(indices)}. They are {self.stage_names}."
            )
        chosen = [index % count for index in indices]
        if not chosen or chosen != sorted(set(chosen)):
            raise ValueError(
                "out_indices and out_features must name one stage or more, each once and the "
                f"early ones first; got stages {chosen}. Sort them."
            )
        if by_name not in (None, chosen):
            raise ValueError(
                f"out_indices and out_features must name the same stages; got {chosen} and "
                f"{by_name}. Give one of the two."
            )
        return chosen

    @property
    def out_features(self) -> list[str]:
        """Names of the stages whose maps are returned."""
        return [self.stage_names[i] for i in self.out_indices]

    @property
    def channels(self) -> list[int]:
        """Channels of the maps that are returned."""
        return [self.num_features[i] for i in self.out_indices]

    @property
    def strides(self) -> list[int]:
        """Pixels of the image per pixel of the maps that are returned, as timm states them."""
        return [self._strides[i] for i in self.out_indices]

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of all stages by name."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Compute the feature maps.

        Args:
            pixel_values: (N, C, H, W), normalized.
            output_hidden_states: return the maps of all stages too, as `hidden_states`.
            output_attentions: must not be true; timm returns none.
            return_dict: False for a tuple.

        Returns:
            `feature_maps`, each (N, channels, H / stride, W / stride), not normalized.

        Raises:
            ValueError: if attentions are asked for.
        """
        if output_attentions:
            raise ValueError(
                "output_attentions must be false; got True. timm models return no attentions."
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        wanted = range(len(self.stage_names)) if output_hidden_states else self.out_indices
        maps = self.timm_model.forward_intermediates(
            pixel_values, indices=list(wanted), intermediates_only=True, output_fmt="NCHW"
        )
        by_stage = dict(zip(wanted, maps, strict=True))
        output = BackboneOutput(
            feature_maps=tuple(by_stage[i] for i in self.out_indices),
            hidden_states=tuple(maps) if output_hidden_states else None,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def forward_with_filtered_kwargs(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the feature maps; arguments that `forward` does not have are left out."""
        known = inspect.signature(self.forward).parameters.keys() - {"output_attentions"}
        return self(*args, **{name: kwargs[name] for name in kwargs.keys() & known})

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write configuration and weights with timm's own names, so timm and `AutoModel` load them.

        Args:
            save_directory: to write to.
            state_dict: of this model, if another than its own is to be saved.
            kwargs: as `PreTrainedModel.save_pretrained` has them.
        """
        # transformers takes off the prefix that it has put on, but not for classes outside of it.
        state = self.state_dict() if state_dict is None else state_dict
        prefix = f"{self.base_model_prefix}."
        # Cloned, since some architectures hold a tensor under two names, which safetensors refuses.
        state = {name.removeprefix(prefix): tensor.clone() for name, tensor in state.items()}
        super().save_pretrained(save_directory, state_dict=state, **kwargs)


def _stages(model: nn.Module, architecture: str) -> list[dict[str, Any]]:
    """Return what timm says of the stages of a model."""
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(
            "The architecture must have timm's forward_intermediates; in timm "
            f"{timm.__version__}, {architecture!r} has none. Update timm, or use "
            "timm.create_model(..., pretrained=True, features_only=True)."
        )
    info: Any = model.feature_info
    return list(getattr(info, "info", info))


AutoBackbone.register(TimmWrapperConfig, TimmEncoderBackbone, exist_ok=True)
