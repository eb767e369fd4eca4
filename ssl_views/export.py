"""The encoder folder: what timm and transformers both load, without this package.

Two files carry the encoder: `config.json` and `model.safetensors`, with timm's own parameter names.
timm's `save_for_hf` is not used: it writes `num_classes` into `model_args`, which
`TimmWrapperModel` refuses.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from safetensors.torch import save_file

from ssl_views.modeling_ssl_views import SSLViewsForPreTraining, SSLViewsModel

_TRAINING_ONLY = {
    "attn_drop_rate",
    "drop_block_rate",
    "drop_path_rate",
    "drop_rate",
    "patch_drop_rate",
    "pos_drop_rate",
    "proj_drop_rate",
}


def encoder_config(model: SSLViewsModel) -> dict[str, Any]:
    """Return the config.json that both loaders read."""
    config = model.config
    model_args = {k: v for k, v in config.backbone_args.items() if k not in _TRAINING_ONLY}
    # timm needs the names of these layers to give the encoder another head or number of channels;
    # before 1.0.31 it takes every first_conv for one of three channels.
    timm_cfg = model.backbone.pretrained_cfg
    keys = ("classifier", "first_conv") if config.num_channels == 3 else ("classifier",)
    layers = {key: timm_cfg[key] for key in keys if timm_cfg.get(key)}
    global_pool = getattr(model.backbone, "global_pool", None)
    return {
        "architecture": config.backbone,
        "architectures": ["TimmWrapperModel"],
        "model_type": "timm_wrapper",
        "num_classes": 0,
        "num_features": model.representation_dim,
        "do_pooling": True,
        "dtype": "float32",
        "model_args": model_args,
        "pretrained_cfg": {
            **config.pretrained_cfg,
            **layers,
            "num_classes": 0,
            "custom_load": False,
        },
        **({"global_pool": global_pool} if isinstance(global_pool, str) else {}),
    }


def export_encoder(model: SSLViewsModel | SSLViewsForPreTraining, folder: str | Path) -> Path:
    """Write the backbone as an encoder folder, in float32.

    Args:
        model: a trained model.
        folder: to write to; made if it does not exist, and must be empty or hold an encoder.

    Returns:
        The folder, for `timm.create_model("local-dir:FOLDER", pretrained=True)` and
        `AutoModel.from_pretrained("FOLDER")`.

    Raises:
        ValueError: if a tensor is not finite, or the folder holds other files.
    """
    base = model.ssl_views if isinstance(model, SSLViewsForPreTraining) else model
    folder = Path(folder)
    encoder_files = {"config.json", "model.safetensors", "README.md"}
    others = {path.name for path in folder.iterdir()} - encoder_files if folder.is_dir() else set()
    if others or folder.is_file():
        raise ValueError(
            f"{folder} must be an empty or new folder; it holds {sorted(others) or 'a file'}. "
            "Choose another."
        )
    state = {}
    for name, tensor in base.backbone.state_dict().items():
        tensor = tensor.detach().to(
            "cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype
        )
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name} holds values that are not finite, so the encoder is unusable. Export an "
                "earlier checkpoint."
            )
        state[name] = tensor.clone(memory_format=torch.contiguous_format)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(encoder_config(base), indent=2) + "\n")
    (folder / "README.md").write_text(encoder_card(base))
    return folder


def encoder_card(model: SSLViewsModel) -> str:
    """Return a model card that says how to load the folder, and nothing that is not known."""
    config = model.config
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "transformers", "self-supervised", "ssl-views"],
    )
    side = config.image_size * config.upscale
    size = sum(p.numel() for p in model.backbone.parameters()) / 1e6
    facts = [
        f"backbone: `{config.backbone}`, {size:.1f} M parameters",
        f"features: {model.representation_dim}",
        f"input: {config.num_channels} x {side} x {side}",
        f"loss: {config.loss}, {config.num_views} views per image, recipe `{config.recipe}`",
        f"projector dimension: {config.projector_dim} (the projector is not part of the encoder)",
    ]
    if config.upscale > 1:
        facts.append(
            f"trained on {config.image_size} px views enlarged {config.upscale} times; the loaders "
            f"below resize images straight to {side} px"
        )
    return _CARD.format(
        metadata=data.to_yaml(), backbone=config.backbone, facts="\n".join(f"- {f}" for f in facts)
    )


_CARD = """---
{metadata}
---

# {backbone}, pretrained without labels

An image encoder pretrained with `ssl_views`.

{facts}

```python
import timm
encoder = timm.create_model("local-dir:THIS_FOLDER", pretrained=True)  # or "hf-hub:USER/NAME"

from transformers import AutoImageProcessor, AutoModel
encoder = AutoModel.from_pretrained("THIS_FOLDER")  # or "USER/NAME"
processor = AutoImageProcessor.from_pretrained("THIS_FOLDER")
```

Training data, licence and evaluation: not stated.
"""
