"""Our own flags, and reading them from the command line and YAML files."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from transformers import HfArgumentParser

from ssl_views.data.image_limits import LIMITS
from ssl_views.losses import Weight
from ssl_views.named_recipes import RECIPES
from ssl_views.naming import did_you_mean


def flag(default: Any, help_text: str) -> Any:
    """Return a dataclass field with its help text."""
    return field(default=default, metadata={"help": help_text})


@dataclass
class DataArguments:
    """Which images."""

    dataset: str = flag(
        "digits",
        "Folder of images, parquet file or folder, folder saved by datasets, Hub id, or digits "
        "(embedded).",
    )
    split: str = flag("train", "Split to learn from.")
    image_column: str | None = flag(None, "Column with the images; found by its type by default.")
    image_root: str | None = flag(
        None, "Further folder of image files that rows may name or link to."
    )
    allow_remote_images: bool = flag(False, "Fetch images that rows name by address.")
    min_image_side: int = flag(LIMITS.min_side, "Least height and width of an image.")
    max_image_pixels: int = flag(LIMITS.max_pixels, "Most pixels of an image.")
    max_image_bytes: int = flag(LIMITS.max_bytes, "Most bytes of an image file.")


@dataclass
class LabelledDataArguments(DataArguments):
    """Which images to learn from, and which to evaluate on."""

    test_split: str | None = flag(
        None,
        "Split to evaluate on; by default test or validation, else a fifth of --split, at most "
        "5,000 images, is held out.",
    )


@dataclass
class SourceArguments(LabelledDataArguments):
    """Which images, and how much of them."""

    fraction: float = flag(
        1.0, "Share of the images to train on, drawn per class where there are labels."
    )
    streaming: bool = flag(False, "Read the images while training; needs --max_steps.")
    cache: str = flag(
        "none",
        "Keep the decoded images: none, memory, or a folder to store them in for other runs.",
    )
    cache_limit_gb: float = flag(
        8.0,
        "Largest cache (in memory: of each process); more is refused before anything is decoded.",
    )


@dataclass
class WatchArguments:
    """How closely the run is watched."""

    evaluation_share: float = flag(
        0.04,
        "Share of the time, about, that evaluations during training may take, where eval_strategy "
        "is left open; at most 20 evaluations. They use labels of training images only.",
    )
    probe_images: int = flag(
        5000, "Training images that these evaluations look at; a fifth of them is classified."
    )
    probe_test: bool = flag(
        False,
        "Classify test images instead, as many as --probe_images at most, for learning curves to "
        "publish. Nothing may be chosen by such a curve.",
    )
    probe_split: str | None = flag(
        None, "Split with the labels that kNN compares with; --split by default."
    )
    eval_images: int = flag(2000, "Test images, at most, that the loss is evaluated on.")
    before_and_after: bool = flag(
        True, "End with a table of features before and after training, beside raw pixels."
    )


@dataclass
class ViewArguments:
    """What a view is."""

    image_size: int | None = flag(None, "Side of a view in pixels; follows the images by default.")
    num_channels: int | None = flag(
        None, "Channels; the most that the first images have by default."
    )
    num_views: int | None = flag(None, "Views per image; 4, or what the recipe has.")
    recipe: str | None = flag(
        None,
        f"View recipe: {', '.join(RECIPES)}; follows the image size by default.",
    )
    recipe_args: dict[str, Any] | str | None = flag(
        None, "Numbers of the recipe to replace, as JSON: '{\"crop_scale\": [0.25, 1.0]}'."
    )


@dataclass
class ModelArguments:
    """Backbone, projector and loss."""

    backbone: str | None = flag(None, "Any timm architecture; resnet18 by default.")
    model_args: dict[str, Any] | str | None = flag(
        None, "Further arguments of the architecture, as JSON."
    )
    pretrained_backbone: bool = flag(False, "Start from timm's pretrained weights (downloaded).")
    from_encoder: str | None = flag(
        None,
        "Start from an encoder: a folder that export wrote, or a Hub id. Backbone and views follow "
        "from it.",
    )
    upscale: int = flag(
        1, "Enlarge views this many times before a backbone that shrinks images early."
    )
    projector_dim: int = flag(256, "Width of the embedding.")
    projector_hidden_dims: list[int] | None = flag(
        None, "Widths of hidden layers; by default one of projector_dim."
    )
    loss: str = flag("barlow_twins", "barlow_twins, vicreg or kernel.")
    orthogonality_weight: str = flag(
        "auto",
        "Weight of the redundancy term: a number, one over the projector's width such as 4/D, or "
        "auto.",
    )
    loss_args: dict[str, Any] | str | None = flag(None, "Further arguments of the loss, as JSON.")


def parse_weight(text: str, projector_dim: int) -> Weight:
    """Return "auto" or a number; "4/D" is 4 over the projector's width."""
    number = str(text).removesuffix("/D")
    try:
        if text == "auto":
            return "auto"
        return float(number) / (projector_dim if number != str(text) else 1)
    except ValueError as error:
        raise ValueError(
            "orthogonality_weight must be a number, a number over D such as '4/D', or 'auto'; got "
            f"{text!r}. Try auto first."
        ) from error


def parse_json(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Return a dictionary given as such (YAML) or as JSON text (command line)."""
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name} must be JSON; got {value!r} ({error}). Example: '{{\"key\": 1}}'."
        ) from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} must be a JSON object; got {value!r}. Example: '{{\"key\": 1}}'.")
    return parsed


def make_parser(
    command: str, description: str, *arguments: type, positionals: tuple[str, ...] = ()
) -> HfArgumentParser:
    """Make the parser of one command; a positional "runs..." takes one word or more."""
    prog = f"ssl-views {command}"
    usage = " ".join([prog, *map(str.upper, positionals), "[--FLAG VALUE ...]"])
    parser = HfArgumentParser(
        arguments, prog=prog, usage=usage, description=description, allow_abbrev=False
    )
    for name in positionals:
        parser.add_argument(name.rstrip("."), nargs="+" if name.endswith("...") else None)
    return parser


def read_arguments(
    parser: HfArgumentParser,
    argv: list[str],
    presets: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    *,
    yaml_flags: bool = True,
) -> tuple[Any, ...]:
    """Read flags, after the values of a YAML file if the first word names one.

    Args:
        parser: of a command.
        argv: words after the command.
        presets: defaults for a data set of this name; a YAML file wins over them, flags over both.
        yaml_flags: whether a first word that names a YAML file holds flags.

    Raises:
        ValueError: on an unknown YAML key; the nearest names are proposed.
    """
    values: dict[str, Any] = {}
    if yaml_flags and argv and argv[0].endswith((".yaml", ".yml")):
        values, argv = _read_yaml(Path(argv[0]), parser), argv[1:]
        parser.set_defaults(**values)
    if presets:
        dataset = parser.parse_known_args(argv)[0].dataset
        parser.set_defaults(**{**presets.get(dataset, {}), **values})
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise ValueError(
            f"{parser.prog} has no argument {unknown[0]!r}.{did_you_mean(unknown[0], known)} "
            "--help lists them."
        )
    return tuple(parsed)


def _read_yaml(path: Path, parser: HfArgumentParser) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}. Give the path of a YAML file, or flags.")
    values = yaml.safe_load(path.read_text()) or {}
    known = [f.name for arguments in parser.dataclass_types for f in fields(arguments) if f.init]
    for key in values:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ValueError(
                f"{path} has an unknown key {key!r}.{hint} Keys are the flags of --help."
            )
    return values


def command_line(command: str, *words: str) -> str:
    """Return a command to type next."""
    program = "ssl-views" if sys.argv[0].endswith("ssl-views") else "python -m ssl_views"
    return " ".join([program, command, *map(shlex.quote, words)])


def data_flags(arguments: LabelledDataArguments) -> list[str]:
    """Return the flags that name the same images again."""
    flags = ["--dataset", arguments.dataset]
    for data_field in fields(LabelledDataArguments):
        value = getattr(arguments, data_field.name)
        if data_field.name != "dataset" and value != data_field.default:
            flags += [f"--{data_field.name}", str(value)]
    return flags
