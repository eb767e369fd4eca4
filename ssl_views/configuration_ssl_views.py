"""Configuration of the model around a timm backbone."""

from typing import Any

import timm
from transformers import PretrainedConfig

import ssl_views.small_stem  # noqa: F401 (registers its architectures with timm)
from ssl_views.encoder_config import NOT_OF_AN_ARCHITECTURE
from ssl_views.loss_modules import build_loss
from ssl_views.losses import Weight
from ssl_views.naming import did_you_mean
from ssl_views.views import ViewRecipe


class SSLViewsConfig(PretrainedConfig):
    """Everything that defines a model and the views it is trained on; JSON values only.

    Args:
        backbone: a timm architecture, e.g. "resnet18".
        model_args: further arguments of the architecture, e.g. {"patch_size": 4}. `in_chans`, and
            `img_size` where the architecture has a fixed input size, follow from the other fields.
        image_size: side of a view, pixels.
        num_channels: channels of a view.
        upscale: the backbone sees views enlarged this many times (bilinear). Stock architectures
            shrink 32 px images to nothing before their last stage; enlarging keeps the encoder
            loadable by timm.
        num_views: V, at least 2.
        projector_dim: D, width of the embedding.
        projector_hidden_dims: widths of the projector's hidden layers; None is [projector_dim].
        loss: "barlow_twins", "vicreg" or "kernel".
        orthogonality_weight: a number, or "auto" for a constant / D.
        loss_args: further arguments of the loss, e.g. {"all_pairs": true}.
        recipe: name of the view recipe.
        recipe_args: numbers of the recipe to replace, e.g. {"crop_scale": [0.25, 1.0]}.
        initial_weights: what the backbone started from, for the record: a name of timm's pretrained
            weights or of an encoder; None is a random start. The model sets it.
        kwargs: fields of `PretrainedConfig`.

    Raises:
        ValueError: on values out of range and unknown names; the nearest names are proposed.

    Example:
        >>> SSLViewsConfig(backbone="resnet18", image_size=32, num_views=4).backbone_args
        {'in_chans': 3}
    """

    model_type = "ssl_views"

    def __init__(
        self,
        backbone: str = "resnet18",
        model_args: dict[str, Any] | None = None,
        image_size: int = 224,
        num_channels: int = 3,
        upscale: int = 1,
        num_views: int = 4,
        projector_dim: int = 256,
        projector_hidden_dims: list[int] | None = None,
        loss: str = "barlow_twins",
        orthogonality_weight: Weight = "auto",
        loss_args: dict[str, Any] | None = None,
        recipe: str = "imagenet",
        recipe_args: dict[str, Any] | None = None,
        initial_weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone
        self.model_args = dict(model_args or {})
        self.image_size = image_size
        self.num_channels = num_channels
        self.upscale = upscale
        self.num_views = num_views
        self.projector_dim = projector_dim
        self.projector_hidden_dims = (
            [projector_dim] if projector_hidden_dims is None else list(projector_hidden_dims)
        )
        self.loss = loss
        self.orthogonality_weight = orthogonality_weight
        self.loss_args = dict(loss_args or {})
        self.recipe = recipe
        self.recipe_args = dict(recipe_args or {})
        self.initial_weights = initial_weights
        fields = list(vars(self))
        for key in kwargs:
            if hint := did_you_mean(key, fields, cutoff=0.8):
                raise ValueError(
                    f"the configuration has no field {key!r}.{hint} Its fields are {fields}."
                )
        self._validate()
        # Preprocessing in the form of timm, so that AutoImageProcessor opens a training checkpoint.
        view = ViewRecipe.for_config(self)
        side = image_size * upscale
        kwargs["pretrained_cfg"] = {
            "input_size": [num_channels, side, side],
            "mean": list(view.mean),
            "std": list(view.std),
            "crop_pct": 1.0,
            "interpolation": "bilinear" if upscale > 1 else view.interpolation,
        }
        kwargs.setdefault("image_processor_type", "TimmWrapperImageProcessor")
        kwargs.setdefault("keys_to_ignore_at_inference", ["terms", "embeddings", "representations"])
        super().__init__(**kwargs)

    def _validate(self) -> None:
        if not timm.is_model(self.backbone):
            hint = did_you_mean(self.backbone, timm.list_models())
            raise ValueError(
                f"backbone must be an architecture of timm; got {self.backbone!r}.{hint} "
                "timm.list_models('*resnet*') lists names."
            )
        for key, value in self.model_args.items():
            if key in NOT_OF_AN_ARCHITECTURE or key in ("in_chans", "img_size"):
                raise ValueError(
                    f"model_args must not hold {key!r}, which the model sets. Use num_channels, "
                    "image_size, or pretrained_backbone=True."
                )
            if isinstance(value, str) and {"/", "\\"} & set(value):
                raise ValueError(
                    f"model_args are published with the encoder, so none may be a path; {key!r} "
                    "is. Load what it names yourself."
                )
        for key in ("image_size", "num_views", "num_channels"):
            if key in self.recipe_args:
                raise ValueError(
                    f"recipe_args must not hold {key!r}: it is a field of its own. Set {key}."
                )
        if not isinstance(self.upscale, int) or self.upscale < 1:
            raise ValueError(
                f"upscale must be a whole number >= 1; got {self.upscale}. 1 leaves views as they "
                "are."
            )
        if self.projector_dim < 1 or min(self.projector_hidden_dims, default=1) < 1:
            raise ValueError(
                "projector_dim and projector_hidden_dims must be at least 1; got "
                f"{self.projector_dim} and {self.projector_hidden_dims}. 256 is a good start."
            )
        build_loss(self.loss, self.projector_dim, self.orthogonality_weight, self.loss_args)

    @property
    def backbone_args(self) -> dict[str, Any]:
        """Arguments for `timm.create_model`, without num_classes and pretrained."""
        args: dict[str, Any] = {"in_chans": self.num_channels}
        cfg = timm.get_pretrained_cfg(self.backbone)
        if cfg is not None and cfg.fixed_input_size:
            args["img_size"] = self.image_size * self.upscale
        return {**args, **self.model_args}
