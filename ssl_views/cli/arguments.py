"""Our own flags, and reading them from the command line and YAML files."""

import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ssl_views.naming import did_you_mean


def _flag(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class DataArguments:
    """Which images."""

    dataset: str = _flag(
        "digits", "Folder of images, parquet file or folder, folder saved by datasets, Hub id, or digits (embedded)."
    )
    split: str = _flag("train", "Split to learn from.")
    test_split: str | None = _flag(
        None, "Split to evaluate on; by default test or validation, else a fifth of --split is held out."
    )
    image_column: str | None = _flag(None, "Column with the images; found by its type by default.")


@dataclass
class SourceArguments(DataArguments):
    """Which images, and how much of them."""

    fraction: float = _flag(1.0, "Share of the images to train on, drawn per class where there are labels.")
    streaming: bool = _flag(False, "Read the images while training; needs --max_steps.")


@dataclass
class ViewArguments:
    """What a view is."""

    image_size: int | None = _flag(None, "Side of a view in pixels; follows the images by default.")
    num_channels: int | None = _flag(None, "Channels; those of the first image by default.")
    num_views: int = _flag(4, "Views per image.")
    recipe: str | None = _flag(None, "View recipe: cifar, stl, imagenet or digits; follows the image size by default.")
    recipe_args: dict | str | None = _flag(  # type: ignore[type-arg]
        None, 'Numbers of the recipe to replace, as JSON: \'{"crop_scale": [0.25, 1.0]}\'.'
    )

    def __post_init__(self) -> None:
        self.recipe_args = parse_json("recipe_args", self.recipe_args)


@dataclass
class ModelArguments:
    """Backbone, projector and loss."""

    backbone: str = _flag("resnet18", "Any timm architecture.")
    model_args: dict | str | None = _flag(None, "Further arguments of the architecture, as JSON.")  # type: ignore[type-arg]
    pretrained_backbone: bool = _flag(False, "Start from timm's pretrained weights (downloaded).")
    upscale: int = _flag(1, "Enlarge views this many times before a backbone that shrinks images early.")
    projector_dim: int = _flag(256, "Width of the embedding.")
    projector_hidden_dims: list[int] | None = _flag(None, "Widths of hidden layers; by default one of projector_dim.")
    loss: str = _flag("barlow_twins", "barlow_twins, vicreg or kernel.")
    orthogonality_weight: str = _flag("auto", "Weight of the redundancy term: a number, or auto for constant / D.")
    loss_args: dict | str | None = _flag(None, "Further arguments of the loss, as JSON.")  # type: ignore[type-arg]

    def __post_init__(self) -> None:
        self.model_args = parse_json("model_args", self.model_args)
        self.loss_args = parse_json("loss_args", self.loss_args)
        if isinstance(self.orthogonality_weight, str) and self.orthogonality_weight != "auto":
            try:
                self.orthogonality_weight = float(self.orthogonality_weight)  # type: ignore[assignment]
            except ValueError as error:
                raise ValueError(
                    f"orthogonality_weight must be a number or 'auto'; got {self.orthogonality_weight!r}. Try auto first."
                ) from error


def parse_json(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Return a dictionary given as such (YAML) or as JSON text (command line)."""
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be JSON; got {value!r} ({error}). Example: '{{\"key\": 1}}'.") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} must be a JSON object; got {value!r}. Example: '{{\"key\": 1}}'.")
    return parsed


def make_parser(command: str, description: str, *arguments: type, positionals: tuple[str, ...] = ()) -> HfArgumentParser:
    """Make the parser of one command."""
    parser = HfArgumentParser(arguments, prog=f"ssl-views {command}", description=description, allow_abbrev=False)
    for name in positionals:
        parser.add_argument(name)
    return parser


def read_arguments(parser: HfArgumentParser, argv: list[str]) -> tuple[Any, ...]:
    """Read flags, after the values of a YAML file if the first word names one; flags win.

    Raises:
        ValueError: on an unknown YAML key; the nearest names are proposed.
    """
    if argv and argv[0].endswith((".yaml", ".yml")):
        path, argv = Path(argv[0]), argv[1:]
        if not path.is_file():
            raise ValueError(f"there is no file {str(path)!r}. Give the path of a YAML file, or flags alone.")
        values = yaml.safe_load(path.read_text()) or {}
        known = [f.name for arguments in parser.dataclass_types for f in fields(arguments) if f.init]
        for key in values:
            if key not in known:
                raise ValueError(f"{path} has an unknown key {key!r}.{did_you_mean(str(key), known)} Keys are the flags of --help.")
        parser.set_defaults(**values)
    return parser.parse_args_into_dataclasses(argv)  # type: ignore[no-any-return]


def command_line(command: str, *words: str) -> str:
    """Return a command to type next."""
    program = "ssl-views" if sys.argv[0].endswith("ssl-views") else "python -m ssl_views"
    return " ".join([program, command, *words])
