"""From flags and images to a configuration."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from ssl_views.callbacks import no_progress_bars
from ssl_views.checkpoints import checkpoints_by_step
from ssl_views.cli.arguments import (
    DataArguments,
    ModelArguments,
    ViewArguments,
    parse_json,
    parse_weight,
)
from ssl_views.configuration_ssl_views import SSLViewsConfig
from ssl_views.data.decode import decode_pixels, num_channels_of, try_to_decode
from ssl_views.data.image_limits import (
    LIMITS,
    BadImage,
    ImageLimits,
    PixelFormatError,
    naming_image,
)
from ssl_views.data.image_roots import allow_images_below
from ssl_views.data.sources import DIGITS
from ssl_views.encoders import encoder_fields, encoder_path
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.named_recipes import RECIPES
from ssl_views.views import ViewRecipe

_SIZES = (32, 64, 96, 128, 160, 192, 224)
_LOOK_AT = 64
_ENOUGH = 16
_NUM_VIEWS = 4
_BACKBONE, _DIGITS_BACKBONE = "resnet18", "test_resnet"
_MEASURE = 512


def image_limits(data: DataArguments) -> ImageLimits:
    """Return which images are used, and allow those below --image_root."""
    if data.image_root is not None:
        allow_images_below(data.image_root)
    return ImageLimits(
        min_side=data.min_image_side,
        max_pixels=data.max_image_pixels,
        max_bytes=data.max_image_bytes,
    )


def follow_encoder(
    views: ViewArguments, model: ModelArguments
) -> tuple[ViewArguments, ModelArguments]:
    """Return the flags with what follows from the encoder to start from, if there is one."""
    if model.from_encoder is None:
        return views, model
    for name in ("backbone", "model_args", "pretrained_backbone"):
        if value := getattr(model, name):
            raise ValueError(
                f"{name} must be left out with from_encoder, which brings its own backbone; got "
                f"{value!r}."
            )
    fields = encoder_fields(encoder_path(model.from_encoder))
    given = parse_json("recipe_args", views.recipe_args)
    views = replace(
        views,
        image_size=views.image_size or fields["image_size"] // model.upscale,
        num_channels=views.num_channels or fields["num_channels"],
        recipe_args={**fields["recipe_args"], **given},
    )
    return views, replace(model, backbone=fields["backbone"], model_args=fields["model_args"])


def make_config(
    rows: Any,
    dataset: str,
    views: ViewArguments,
    model: ModelArguments,
    *,
    limits: ImageLimits = LIMITS,
) -> SSLViewsConfig:
    """Make the configuration: what the flags leave open follows from the first usable images.

    Args:
        rows: as from `load_images`.
        dataset: its name, for the recipe of the embedded digits.
        views: flags.
        model: flags.
        limits: which images are usable.
    """
    first = [row["image"] for row in islice(iter(rows), _LOOK_AT)]
    if not first:
        raise ValueError(f"{dataset} is empty. Check the path and the split.")
    num_channels = views.num_channels
    if num_channels is None:
        num_channels = max(_first_usable(first, lambda value: num_channels_of(value, limits)))
    image_size = views.image_size or _size_of(first, num_channels, limits)
    recipe = views.recipe
    if recipe is None:
        recipe = DIGITS if dataset == DIGITS else "cifar" if image_size <= 64 else "imagenet"
    num_views = views.num_views
    if num_views is None:
        num_views = RECIPES.get(recipe, {}).get("num_views", _NUM_VIEWS)
    backbone = model.backbone or (_DIGITS_BACKBONE if dataset == DIGITS else _BACKBONE)
    recipe_args: dict[str, Any] = dict(parse_json("recipe_args", views.recipe_args))
    if not {"mean", "std"} & recipe_args.keys():
        if model.pretrained_backbone and num_channels == 3 and timm.is_model(backbone):
            pretrained = timm.get_pretrained_cfg(backbone)
            recipe_args.update(mean=list(pretrained.mean), std=list(pretrained.std))
        elif num_channels != 3 and recipe != DIGITS:
            recipe_args.update(_measure(rows, num_channels, limits))
    return SSLViewsConfig(
        backbone=backbone,
        model_args=parse_json("model_args", model.model_args),
        image_size=image_size,
        num_channels=num_channels,
        upscale=model.upscale,
        num_views=num_views,
        projector_dim=model.projector_dim,
        projector_hidden_dims=model.projector_hidden_dims,
        loss=model.loss,
        orthogonality_weight=parse_weight(model.orthogonality_weight, model.projector_dim),
        loss_args=parse_json("loss_args", model.loss_args),
        recipe=recipe,
        recipe_args=recipe_args,
    )


def decode_some(
    values: Sequence[Any], num_channels: int, limits: ImageLimits
) -> tuple["dict[int, NDArray[np.uint8]]", list[BadImage]]:
    """Decode the first images; return those that can be used by their places, and the others.

    Raises:
        ValueError: if there is none.
    """
    outcomes = [try_to_decode(value, i, num_channels, limits) for i, value in enumerate(values)]
    bad = [outcome for outcome in outcomes if isinstance(outcome, BadImage)]
    usable = {i: found for i, found in enumerate(outcomes) if not isinstance(found, BadImage)}
    if not usable:
        raise _none_usable(len(bad), bad[0])
    return usable, bad


def _none_usable(count: int, first: BadImage) -> ValueError:
    return ValueError(f"none of the first {count} images can be used. First {first}")


def _first_usable(values: Sequence[Any], look: Callable[[Any], int]) -> list[int]:
    """Return what a function finds in the first images that can be used."""
    found, bad = [], []
    for i, value in enumerate(values):
        try:
            with naming_image(value, i):
                found.append(look(value))
        except PixelFormatError:
            raise
        except BadImage as error:
            bad.append(error)
        if len(found) == _ENOUGH:
            break
    if not found:
        raise _none_usable(len(bad), bad[0])
    return found


def _size_of(values: Sequence[Any], num_channels: int, limits: ImageLimits) -> int:
    """Return the largest usual size that is not above the shorter side of most images."""
    sides = _first_usable(values, lambda v: min(decode_pixels(v, num_channels, limits).shape[:2]))
    side = statistics.median(sides)
    return max((size for size in _SIZES if size <= side), default=_SIZES[0])


def _measure(rows: Any, num_channels: int, limits: ImageLimits) -> dict[str, list[float]]:
    """Return mean and std per channel of the first images, in [0, 1]."""
    values = [row["image"] for row in islice(iter(rows), _MEASURE)]
    usable, _ = decode_some(values, num_channels, limits)
    pixels = np.concatenate([image.reshape(-1, num_channels) for image in usable.values()]) / 255
    mean, std = pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 1 / 255)
    return {"mean": [round(float(v), 4) for v in mean], "std": [round(float(v), 4) for v in std]}


def describe_views(config: SSLViewsConfig) -> str:
    """Return one line on what the network will see."""
    recipe = ViewRecipe.for_config(config)
    enlarged = f", enlarged {config.upscale} times" if config.upscale > 1 else ""
    return (
        f"{recipe.num_views} views per image, {recipe.num_channels} x {recipe.image_size} x "
        f"{recipe.image_size}{enlarged}, recipe {config.recipe}"
    )


def load_run(folder: str) -> SSLViewsModel:
    """Load the model of a run, or of one of its checkpoints, onto the GPU where there is one."""
    path = Path(folder) / "config.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    if stored.get("model_type") != SSLViewsConfig.model_type:
        saved = checkpoints_by_step(Path(folder))
        advice = (
            f"Its newest checkpoint is {str(saved[-1])!r}: give that"
            if saved
            else "Give the --output_dir of ssl-views pretrain"
        )
        raise ValueError(f"{folder!r} holds no config.json of a run. {advice}.")
    with no_progress_bars():
        model = SSLViewsModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model
