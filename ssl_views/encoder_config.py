"""The config.json of an encoder folder, and what an encoder folder holds.

Nothing in a folder is believed: it may come from anywhere.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_views.naming import printable

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
ONNX_FILE = "model.onnx"
SPECTRUM_FILE = "spectrum.png"
REQUIRED_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
ENCODER_FILES = (*REQUIRED_FILES, ONNX_FILE, SPECTRUM_FILE)
NEEDS = "registered_by"  # key of config.json, where timm itself lacks the architecture
# Arguments of an architecture that change training only, and are no part of an encoder.
TRAINING_ONLY = frozenset(
    {
        "attn_drop_rate",
        "drop_block_rate",
        "drop_path_rate",
        "drop_rate",
        "patch_drop_rate",
        "pos_drop_rate",
        "proj_drop_rate",
    }
)

NOT_OF_AN_ARCHITECTURE = (
    "cache_dir", "checkpoint_path", "device", "dtype", "exportable", "features_only", "no_jit",
    "num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "pretrained_model_args", "scriptable",
)  # fmt: skip
_OTHER_WEIGHTS = (
    "url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load",
)  # fmt: skip
_CODE = ("auto_map", "custom_pipelines")


class EncoderError(ValueError):
    """A folder holds no usable encoder."""


def read_encoder_config(folder: str | Path) -> dict[str, Any]:
    """Return the config.json of an encoder folder, after checking all that it says.

    Raises:
        EncoderError: if it is missing, or not that of an encoder.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        config = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise file_is_missing(CONFIG_FILE) from error
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(
            f"{CONFIG_FILE} must hold JSON; it cannot be read: {error}. Export the encoder again."
        ) from error
    if not isinstance(config, dict):
        raise EncoderError(
            f"{CONFIG_FILE} must hold a JSON object; it holds {type(config).__name__}. Export the "
            "encoder again."
        )
    _check_config(config)
    return config


def parse_json(data: bytes) -> Any:
    """Parse JSON in which no object names a key twice: of two values readers take either."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {printable(twice)!r} is there twice")
        return content

    return json.loads(data.decode("utf-8"), object_pairs_hook=unique)


def _check_config(config: Mapping[str, Any]) -> None:
    if config.get("model_type") == "ssl_views":
        raise is_training_checkpoint()
    for key in _CODE:
        if key in config:
            raise EncoderError(
                f"an encoder must need no code of its own; {CONFIG_FILE} has {key!r}. Remove it, "
                "after you have looked where the folder comes from."
            )
    if config.get("model_type", "timm_wrapper") != "timm_wrapper":
        raise _wrong("model_type", "'timm_wrapper'", config["model_type"])
    architecture, model_args = config.get("architecture"), config.get("model_args", {})
    if not isinstance(architecture, str):
        raise _wrong("architecture", "a name of timm", architecture)
    num_classes = config.get("num_classes")
    if isinstance(num_classes, bool) or num_classes != 0:
        raise _wrong("num_classes", "0, for an encoder has no classifier", num_classes)
    if not isinstance(model_args, dict):
        raise _wrong("model_args", "a JSON object", model_args)
    for key in NOT_OF_AN_ARCHITECTURE:
        if key in model_args:
            raise EncoderError(
                f"model_args must hold arguments of the architecture only; it holds {key!r}, which "
                "the loaders set. Remove it."
            )
    _check_preprocessing(config.get("pretrained_cfg"), model_args)


def _check_preprocessing(cfg: Any, model_args: Mapping[str, Any]) -> None:
    if not isinstance(cfg, dict):
        raise _wrong("pretrained_cfg", "a JSON object", cfg)
    for key in _OTHER_WEIGHTS:
        if cfg.get(key):
            raise EncoderError(
                f"pretrained_cfg must not name other weights; it has {key!r}. Remove it: the "
                f"weights are in {WEIGHTS_FILE}."
            )
    size: Any = cfg.get("input_size")
    if not (_is_list(size, int) and len(size) == 3 and min(size) > 0):
        raise _wrong("pretrained_cfg.input_size", "[channels, height, width]", size)
    if model_args.get("in_chans", size[0]) != size[0]:
        raise _wrong("model_args.in_chans", f"{size[0]}, as in input_size", model_args["in_chans"])
    for key in ("mean", "std"):
        value: Any = cfg.get(key)
        if not (_is_list(value, int | float) and len(value) == size[0]) or (
            key == "std" and min(value) <= 0
        ):
            raise _wrong(f"pretrained_cfg.{key}", f"a number for each of {size[0]} channels", value)
    if not isinstance(cfg.get("interpolation"), str):
        raise _wrong("pretrained_cfg.interpolation", "a name", cfg.get("interpolation"))
    if not (_is_list([cfg.get("crop_pct")], int | float) and cfg["crop_pct"] > 0):
        raise _wrong("pretrained_cfg.crop_pct", "a number above 0", cfg.get("crop_pct"))
    if isinstance(cfg.get("num_classes", 0), bool) or cfg.get("num_classes", 0) != 0:
        raise _wrong("pretrained_cfg.num_classes", "0", cfg["num_classes"])


def _is_list(value: Any, kind: Any) -> bool:
    """Return whether it is a list of finite numbers; JSON of Python may hold NaN."""
    return isinstance(value, Sequence) and all(
        isinstance(x, kind) and not isinstance(x, bool) and math.isfinite(x) for x in value
    )


def file_is_missing(name: str) -> EncoderError:
    """Return the error on a required file that is not there."""
    return EncoderError(
        f"an encoder folder must hold {', '.join(REQUIRED_FILES)}; {name} is missing. Give the "
        "folder that ssl-views export has written."
    )


def _wrong(field: str, must: str, came: Any) -> EncoderError:
    value = printable(repr(came))
    shown = value if len(value) <= 60 else f"{value[:57]}..."
    return EncoderError(
        f"{field} in {CONFIG_FILE} must be {must}; it is {shown}. Export the encoder again."
    )


def is_training_checkpoint() -> EncoderError:
    """Return the error on weights or a configuration of training."""
    return EncoderError(
        "an encoder must be the backbone alone; this is a training checkpoint, with the projector. "
        "Use ssl-views export, or export_encoder, to make an encoder of it."
    )
