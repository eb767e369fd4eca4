"""Encoders to use and to start from: a folder or a Hub id, checked, and no code of it run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from safetensors.torch import load_file
from torch import nn

from ssl_views.configuration_ssl_views import SSLViewsConfig
from ssl_views.encoder_config import TRAINING_ONLY
from ssl_views.encoder_folder import (
    CANNOT_BUILD,
    ENCODER_FILES,
    WEIGHTS_FILE,
    EncoderError,
    check_encoder,
    read_encoder_config,
)
from ssl_views.modeling_ssl_views import SSLViewsForPreTraining

_LOCAL = "an encoder in a local folder"


def encoder_path(path_or_id: str | Path, *, revision: str | None = None) -> Path:
    """Return the folder of an encoder, downloaded where it is on the Hub.

    Args:
        path_or_id: a folder, or a Hub id "user/name".
        revision: branch, tag or commit, of a Hub id.

    Raises:
        ValueError: if there is no such folder, nor such a repository.
    """
    return downloaded(path_or_id, revision=revision, patterns=ENCODER_FILES)


def load_encoder(
    path_or_id: str | Path, *, revision: str | None = None, num_classes: int = 0, **kwargs: Any
) -> nn.Module:
    """Load an encoder as a timm model, in eval mode, after checking all of it.

    Args:
        path_or_id: a folder, or a Hub id "user/name".
        revision: branch, tag or commit, of a Hub id.
        num_classes: of a new classifier on top; 0 for features.
        kwargs: as `timm.create_model` takes them, e.g. `in_chans=1` or `features_only=True`.

    Raises:
        EncoderError: if it is no usable encoder.
        ValueError: if it cannot be found, or timm cannot change it as asked.
    """
    folder = encoder_path(path_or_id, revision=revision)
    info = check_encoder(folder)
    if num_classes == 0 and not kwargs:
        config = read_encoder_config(folder)
        model: nn.Module = timm.create_model(
            info.architecture,
            num_classes=0,
            pretrained_cfg=config["pretrained_cfg"],
            **config.get("model_args", {}),
        )
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return model.eval()
    wanted = {"num_classes": num_classes, **kwargs}
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True, **wanted).eval()
    except CANNOT_BUILD as error:
        raise ValueError(
            f"timm must be able to give {info.architecture} with {wanted}; it says: {error}. "
            "Leave them out, or change the model that comes without."
        ) from error


def encoder_fields(folder: str | Path) -> dict[str, Any]:
    """Return the fields of `SSLViewsConfig` that follow from an encoder.

    Args:
        folder: of the encoder.

    Returns:
        backbone, model_args, num_channels, image_size, and recipe_args with mean and std.

    Raises:
        EncoderError: if its config.json is not usable, or its input is not square.
    """
    config = read_encoder_config(folder)
    cfg, model_args = config["pretrained_cfg"], config.get("model_args", {})
    channels, height, width = cfg["input_size"]
    if height != width:
        raise EncoderError(
            f"the input of an encoder to train on must be square; it is {height} x {width}. "
            "Build SSLViewsForPreTraining and load the weights yourself."
        )
    return {
        "backbone": config["architecture"],
        "model_args": {k: v for k, v in model_args.items() if k not in ("in_chans", "img_size")},
        "num_channels": channels,
        "image_size": height,
        "recipe_args": {"mean": cfg["mean"], "std": cfg["std"]},
    }


def from_encoder(
    path_or_id: str | Path, *, revision: str | None = None, **config_fields: Any
) -> SSLViewsForPreTraining:
    """Make a model to pretrain on, whose backbone is an encoder, bit for bit; the rest is new.

    Views have the size of the encoder's input, and are not enlarged. Where it was trained on small
    views enlarged, give both numbers, e.g. `image_size=32, upscale=2` for an input of 64 pixels.

    Args:
        path_or_id: a folder, or a Hub id "user/name".
        revision: branch, tag or commit, of a Hub id.
        config_fields: of `SSLViewsConfig`, e.g. `num_views=4, loss="vicreg"`. They win over what
            follows from the encoder; recipe_args are added to its mean and std, and model_args may
            add rates of dropout.

    Raises:
        EncoderError: if it is no usable encoder.
        ValueError: if it cannot be found, or a field contradicts it.

    Example:
        >>> import tempfile
        >>> from ssl_views import export_encoder
        >>> start = SSLViewsForPreTraining(SSLViewsConfig(backbone="test_resnet", image_size=32))
        >>> folder = export_encoder(start, tempfile.mkdtemp())
        >>> model = from_encoder(folder, num_views=2, recipe="cifar")
        >>> model.config.backbone, model.config.image_size, model.config.initial_weights
        ('test_resnet', 32, 'an encoder in a local folder')
    """
    folder = encoder_path(path_or_id, revision=revision)
    info = check_encoder(folder)
    config = SSLViewsConfig(**_merged(encoder_fields(folder), config_fields))
    side, seen = info.input_size[1], config.image_size * config.upscale
    if "img_size" in config.backbone_args and seen != side:
        raise ValueError(
            f"image_size x upscale must be the {side} pixels that {info.architecture} was built "
            f"for; got {config.image_size} x {config.upscale}. Leave them out."
        )
    model = SSLViewsForPreTraining(config)
    try:
        model.ssl_views.backbone.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except RuntimeError as error:
        raise ValueError(
            f"the encoder must fit {info.architecture} as SSLViewsConfig builds it; torch says: "
            f"{error}. Build SSLViewsForPreTraining and load the weights yourself."
        ) from error
    model.config.initial_weights = _name_of(path_or_id, revision)
    return model


def downloaded(path_or_id: str | Path, *, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return a folder, or those files of a repository of the Hub that match patterns.

    Raises:
        ValueError: if there is no such folder, nor such a repository.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision must be left out for a folder; {str(folder)!r} is one, and revision is "
                f"{revision!r}. Leave it out, or give a Hub id."
            )
        return folder
    repo_id = str(path_or_id)
    if isinstance(path_or_id, Path) or repo_id.count("/") != 1:
        raise ValueError(
            f"there must be a folder {repo_id!r}, and there is none; a Hub id has the form "
            "'user/name'. Check the path."
        )
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
    except (HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        at = "" if revision is None else f" at {revision!r}"
        raise ValueError(
            f"{repo_id!r} must be a folder, or a repository of the Hub that can be read{at}; "
            f"there is no such folder, and the Hub says: {error} Check the name, the network, and "
            "for a private repository the login (`hf auth login`)."
        ) from error


def _merged(of_encoder: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields of the configuration; what the caller gives must not contradict."""
    model_args = {**of_encoder["model_args"], **(given.get("model_args") or {})}
    differing = [
        f"model_args[{key!r}]"
        for key, value in model_args.items()
        if key not in TRAINING_ONLY and of_encoder["model_args"].get(key, ...) != value
    ]
    for key in ("backbone", "num_channels"):
        if given.get(key, of_encoder[key]) != of_encoder[key]:
            differing.append(key)
    if "initial_weights" in given:
        differing.append("initial_weights")
    if differing:
        raise ValueError(
            f"fields that follow from the encoder must be left out; got {', '.join(differing)}. "
            f"It is {of_encoder['backbone']} of {of_encoder['num_channels']} channels, with "
            f"model_args {of_encoder['model_args']}."
        )
    recipe_args = {**of_encoder["recipe_args"], **(given.get("recipe_args") or {})}
    return {**of_encoder, **given, "model_args": model_args, "recipe_args": recipe_args}


def _name_of(path_or_id: str | Path, revision: str | None) -> str:
    """Return what the card says that training started from: no path."""
    if Path(path_or_id).is_dir():
        return _LOCAL
    return str(path_or_id) if revision is None else f"{path_or_id}@{revision}"
