"""The encoder folder: its files, and whether they hold an encoder that timm and transformers load.

Nothing in a folder is believed: it may come from anywhere. No code of it runs, and its weights are
compared with the architecture before anyone builds it with memory behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ssl_views.encoder_config import (
    CARD_FILE,
    CONFIG_FILE,
    ENCODER_FILES,
    NEEDS,
    ONNX_FILE,
    REQUIRED_FILES,
    SPECTRUM_FILE,
    WEIGHTS_FILE,
    EncoderError,
    file_is_missing,
    is_training_checkpoint,
    parse_json,
    read_encoder_config,
)
from ssl_views.finite import is_usable, limits_of
from ssl_views.naming import did_you_mean, printable

__all__ = [
    "CANNOT_BUILD",
    "CARD_FILE",
    "CONFIG_FILE",
    "ENCODER_FILES",
    "ONNX_FILE",
    "REQUIRED_FILES",
    "SPECTRUM_FILE",
    "WEIGHTS_FILE",
    "EncoderError",
    "EncoderInfo",
    "check_encoder",
    "read_encoder_config",
    "registered_by",
    "representation_width",
]

_OF_TRAINING = ("projector.", "ssl_views.")
_MOST_HEADER_BYTES = 100_000_000  # as in safetensors itself
_MOST_NAMED = 3
_TYPES = {
    "F32": torch.float32,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# What timm's constructors raise on arguments that they do not like.
CANNOT_BUILD = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class EncoderInfo:
    """What a checked encoder folder holds.

    Attributes:
        architecture: its name in timm.
        num_features: width of the representation.
        num_parameters: of the encoder.
        input_size: (C, H, W) that the preprocessing gives.
        needs: module whose import registers the architecture with timm; None where timm has it.
    """

    architecture: str
    num_features: int
    num_parameters: int
    input_size: tuple[int, int, int]
    needs: str | None


def registered_by(architecture: str) -> str | None:
    """Return the module that registered an architecture, or None if it is timm itself.

    Raises:
        EncoderError: if nothing has registered it.
    """
    if not timm.is_model(architecture):
        raise _unknown(architecture, None)
    module = str(timm.model_entrypoint(architecture).__module__)
    if module == "__main__":
        raise EncoderError(
            f"an architecture must be registered in a module that others can import; "
            f"{architecture!r} is registered in the program that runs. Put it into a file of its "
            "own, and import that."
        )
    return None if module.split(".")[0] == "timm" else module


def check_encoder(folder: str | Path) -> EncoderInfo:
    """Check that a folder holds an encoder which timm and transformers load in full.

    Args:
        folder: with at least config.json, model.safetensors and README.md.

    Raises:
        EncoderError: if a file is missing or damaged, asks for foreign code, or does not agree with
            the architecture; if weights are not float32 or not finite.
    """
    folder = Path(folder)
    for name in REQUIRED_FILES:
        if not (folder / name).is_file():
            raise file_is_missing(name)
    config = read_encoder_config(folder)
    stored = _read_header(folder / WEIGHTS_FILE)
    if not timm.is_model(config["architecture"]):
        raise _unknown(config["architecture"], config.get(NEEDS))
    model = _built_without_memory(config)
    expected = model.state_dict()
    _check_names(stored, expected)
    _check_types(stored, expected)
    _check_finite(folder / WEIGHTS_FILE, model)
    features = representation_width(model)
    if config.get("num_features", features) != features:
        raise EncoderError(
            f"num_features must be the width of {config['architecture']}, {features}; it is "
            f"{config['num_features']!r}. Export the encoder again."
        )
    channels, height, width = config["pretrained_cfg"]["input_size"]
    return EncoderInfo(
        architecture=config["architecture"],
        num_features=features,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        input_size=(channels, height, width),
        needs=registered_by(config["architecture"]),
    )


def representation_width(backbone: Any) -> int:
    """Return the width of what forward_head gives; timm's `num_features` is not in every family."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)


def _built_without_memory(config: Mapping[str, Any]) -> nn.Module:
    """Build the architecture on the meta device, or on the CPU where it cannot be built there."""
    name, model_args = config["architecture"], config.get("model_args", {})
    error: Exception | None = None
    with torch.random.fork_rng(devices=[]):  # a check in mid-training must not change training
        for device in ("meta", "cpu"):
            try:
                with torch.device(device):
                    return timm.create_model(name, num_classes=0, **model_args)
            except CANNOT_BUILD as caught:
                error = caught
    raise EncoderError(
        f"timm must be able to build {name!r} with model_args "
        f"{printable(str(model_args))}; it says: {error}. "
        "Correct model_args, or update timm."
    ) from error


def _read_header(path: Path) -> dict[str, Any]:
    """Return names, types and shapes of the tensors of a safetensors file, without loading them."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_MOST_HEADER_BYTES, path.stat().st_size - 8):
                raise ValueError("it is truncated")
            header = parse_json(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        # The library checks that types, shapes and places in the file agree.
        with safe_open(str(path), framework="pt"):
            pass
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise EncoderError(
            f"{WEIGHTS_FILE} must be a safetensors file; it cannot be read: {error}. Export the "
            "encoder again."
        ) from error
    header.pop("__metadata__", None)
    return header


def _check_names(stored: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    if any(name.startswith(_OF_TRAINING) for name in stored.keys() - expected.keys()):
        raise is_training_checkpoint()
    for names, what in (
        (expected.keys() - stored.keys(), "lacks"),
        (stored.keys() - expected.keys(), "has in surplus"),
    ):
        if names:
            listed = ", ".join(printable(name) for name in sorted(names)[:_MOST_NAMED])
            raise EncoderError(
                f"{WEIGHTS_FILE} must hold the weights of the architecture with its model_args, no "
                f"more and no less; it {what} {len(names)}: {listed}. Export the encoder again."
            )
    for name, tensor in expected.items():
        if list(tensor.shape) != stored[name]["shape"]:
            raise EncoderError(
                f"{name} must have the shape {list(tensor.shape)} of the architecture with its "
                f"model_args; it has {stored[name]['shape']}. Export the encoder again."
            )


def _check_types(stored: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        wanted = torch.float32 if tensor.is_floating_point() else tensor.dtype
        if _TYPES.get(stored[name]["dtype"]) != wanted:
            raise EncoderError(
                f"the type of {name} must be {wanted}; it is {printable(stored[name]['dtype'])}. "
                "Export the encoder again: ssl-views export writes float32."
            )


def _check_finite(path: Path, model: nn.Module) -> None:
    limits = limits_of(model)
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():
            if not is_usable(file.get_tensor(name), is_limit=name in limits):
                raise EncoderError(
                    f"weights must be finite; {name} holds values that are not finite. Export an "
                    "earlier checkpoint."
                )


def _unknown(architecture: str, needs: Any) -> EncoderError:
    """Return the error on an architecture that nothing has registered with timm."""
    if isinstance(needs, str) and all(part.isidentifier() for part in needs.split(".")):
        advice = f"It was registered by the module {needs!r}: import that first"
    else:
        hint = did_you_mean(architecture, timm.list_models())
        advice = (
            f"{hint} If another package registers it, import that first; else update timm".strip()
        )
    return EncoderError(
        f"the architecture must be known to timm {timm.__version__}; {printable(architecture)!r} "
        f"is not. {advice}."
    )
