"""The model: a timm backbone, a projector and a multi-view loss, as transformers models."""

from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from ssl_views.configuration_ssl_views import SSLViewsConfig
from ssl_views.encoder_folder import representation_width
from ssl_views.loss_modules import build_loss
from ssl_views.projector import Projector
from ssl_views.timm_weights import KeepsTimmWeights, is_initialised, is_loading


@dataclass
class SSLViewsOutput(ModelOutput):
    """Output of `SSLViewsForPreTraining`.

    Attributes:
        loss: 0-d, the weighted sum of the terms.
        terms: the unweighted terms by name, without gradient.
        embeddings: (V, B, D), projector output.
        representations: (V, B, D_h), backbone output.
    """

    loss: Tensor | None = None
    terms: dict[str, Tensor] | None = None
    embeddings: Tensor | None = None
    representations: Tensor | None = None


class SSLViewsPreTrainedModel(KeepsTimmWeights, PreTrainedModel):
    """Keeps timm's initialisation and its non-persistent buffers through from_pretrained."""

    config: SSLViewsConfig
    config_class = SSLViewsConfig
    base_model_prefix = "ssl_views"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # The loss is a batch mean, so Trainer must not scale it by the number of accumulated batches.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what a checkpoint lacks: the backbone as timm does, the projector as torch."""
        of_timm = "_kept_tensors" in module.__dict__
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and not of_timm and not is_initialised(module.weight):
            module.reset_parameters()

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.base_model.backbone.set_grad_checkpointing(enable)


class SSLViewsModel(SSLViewsPreTrainedModel):
    """A timm backbone that gives representations.

    Built from a configuration, the backbone has exactly the weights that `timm.create_model` gives
    under the same seed; with `pretrained_backbone=True`, timm's pretrained ones (downloaded).

    Args:
        config: the configuration.
        pretrained_backbone: start from timm's pretrained weights. Not part of the configuration: a
            saved model always loads its own weights.

    Example:
        >>> model = SSLViewsModel(SSLViewsConfig(backbone="test_resnet", image_size=32))
        >>> model(torch.zeros(2, 3, 32, 32)).pooler_output.shape
        torch.Size([2, 96])
    """

    # A training checkpoint holds the projector too; leaving it out is not worth a warning.
    _keys_to_ignore_on_load_unexpected = [r"^projector\."]  # noqa: RUF012 (as transformers has it)

    def __init__(self, config: SSLViewsConfig, pretrained_backbone: bool = False) -> None:
        super().__init__(config)
        self.backbone = self.build_by_timm(lambda: _create_backbone(config, pretrained_backbone))
        if not is_loading():
            start = _pretrained_name(self.backbone) if pretrained_backbone else None
            config.initial_weights = start
        self.post_init()

    @property
    def representation_dim(self) -> int:
        """Width D_h of the representation, which timm's `num_features` is not in every family."""
        return representation_width(self.backbone)

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Compute representations.

        Args:
            pixel_values: (N, C, S, S), normalized.

        Returns:
            pooler_output (N, D_h), pooled as the architecture does; last_hidden_state, its last
            feature map or tokens.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must have shape (N, {self.config.num_channels}, S, S); got "
                f"{tuple(pixel_values.shape)}. Views go to SSLViewsForPreTraining."
            )
        if self.config.upscale > 1:
            pixel_values = F.interpolate(
                pixel_values, scale_factor=self.config.upscale, mode="bilinear"
            )
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        features = self.backbone.forward_features(pixel_values)
        pooled = self.backbone.forward_head(features)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=pooled)


def _create_backbone(config: SSLViewsConfig, pretrained: bool) -> Any:
    args = config.backbone_args
    try:
        backbone = timm.create_model(config.backbone, pretrained=pretrained, num_classes=0, **args)
    except TypeError as error:  # an argument that the architecture does not have
        raise ValueError(
            f"model_args do not fit {config.backbone!r}: {error}. They were {config.model_args}."
        ) from error
    # inception_next before timm 1.0.31: a classifier of no classes, instead of none.
    if any(parameter.numel() == 0 for parameter in backbone.parameters()):
        raise ValueError(
            f"{config.backbone} must give features without a classifier; that of timm "
            f"{timm.__version__} gives none. Update timm, or take another backbone."
        )
    return backbone


def _pretrained_name(backbone: Any) -> str:
    """Return architecture and tag of timm's weights, e.g. "resnet18.a1_in1k"."""
    cfg = backbone.pretrained_cfg
    return ".".join(filter(None, (cfg.get("architecture"), cfg.get("tag"))))


class SSLViewsForPreTraining(SSLViewsPreTrainedModel):
    """Backbone, projector and multi-view loss; trains in the stock `transformers.Trainer`.

    Args:
        config: the configuration.
        pretrained_backbone: start from timm's pretrained weights.

    Example:
        >>> config = SSLViewsConfig(backbone="test_resnet", image_size=32, projector_dim=16)
        >>> model = SSLViewsForPreTraining(config)
        >>> model(torch.randn(8, 4, 3, 32, 32)).embeddings.shape
        torch.Size([4, 8, 16])
    """

    def __init__(self, config: SSLViewsConfig, pretrained_backbone: bool = False) -> None:
        super().__init__(config)
        self.ssl_views = SSLViewsModel(config, pretrained_backbone)
        self.projector = Projector(
            self.ssl_views.representation_dim, config.projector_dim, config.projector_hidden_dims
        )
        self.loss = build_loss(
            config.loss, config.projector_dim, config.orthogonality_weight, config.loss_args
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        return_loss: bool = True,
        local_pixel_values: Tensor | None = None,
    ) -> SSLViewsOutput:
        """Compute embeddings of all views, and the loss over them.

        All views of one size go through the backbone as one batch, so its BatchNorm statistics are
        those of all of them; the projector takes the views of both sizes together.

        Args:
            pixel_values: (B, V, C, S, S), normalized.
            return_loss: compute the loss; without it, loss and terms are None.
            local_pixel_values: (B, W, C, s, s), further views of another size.
        """
        groups = (
            [pixel_values] if local_pixel_values is None else [pixel_values, local_pixel_values]
        )
        for views in groups:
            if views.ndim != 5 or len(views) != len(pixel_values):
                raise ValueError(
                    "pixel_values, and local_pixel_values of the same images, must have shape "
                    f"(B, V, C, S, S); got {[tuple(x.shape) for x in groups]}. MultiViewCollator "
                    "makes such batches."
                )
        rows = [views.transpose(0, 1).flatten(0, 1) for views in groups]
        representations = torch.cat([self.ssl_views(views).pooler_output for views in rows])
        shape = (-1, len(pixel_values))
        embeddings = self.projector(representations).unflatten(0, shape)
        total, terms = self.loss(embeddings) if return_loss else (None, None)
        return SSLViewsOutput(
            loss=total,
            terms=terms,
            embeddings=embeddings,
            representations=representations.unflatten(0, shape),
        )


AutoConfig.register("ssl_views", SSLViewsConfig, exist_ok=True)
AutoModel.register(SSLViewsConfig, SSLViewsModel, exist_ok=True)
AutoModelForPreTraining.register(SSLViewsConfig, SSLViewsForPreTraining, exist_ok=True)
