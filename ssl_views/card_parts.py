"""Parts of what a model card states: the network, what it learned, how long, and at what cost."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ssl_views.card_text import is_hub_id
from ssl_views.checked_values import CheckedValues
from ssl_views.encoder_config import TRAINING_ONLY
from ssl_views.encoder_folder import registered_by
from ssl_views.evaluation.history import RunHistory
from ssl_views.losses import resolve_orthogonality_weight
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.views import ViewRecipe

_HARDWARE = ("kind", "device", "num_devices", "processes")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_VICREG_WEIGHTS = {"invariance_weight", "variance_weight", "covariance_weight"}


@dataclass(frozen=True, kw_only=True)
class EncoderFacts(CheckedValues):
    """The network, and the images that it takes; `needs` is the module that registers it."""

    architecture: str
    model_args: Mapping[str, Any]
    num_parameters: int
    num_features: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    needs: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs is not None and not _MODULE.fullmatch(self.needs):
            raise ValueError(
                f"needs must be the name of a module; got {self.needs[:80]!r}. Register the "
                "architecture in a module that can be imported."
            )


@dataclass(frozen=True, kw_only=True)
class RecipeFacts(CheckedValues):
    """What the network was to learn: views, loss, and where its weights started (None: random).

    The orthogonality weight is a number; None where VICReg was given three weights of its own.
    """

    initial_weights: str | None
    num_views: int
    image_size: int
    upscale: int
    recipe: str
    recipe_args: Mapping[str, Any]
    loss: str
    loss_args: Mapping[str, Any]
    projector_dim: int
    projector_hidden_dims: tuple[int, ...]
    orthogonality_weight: float | None


@dataclass(frozen=True, kw_only=True)
class TrainingFacts(CheckedValues):
    """How long it learned, and by which steps; None for what was not recorded."""

    finished: bool
    steps: int
    weights_step: int | None = None
    planned_steps: int | None = None
    images: int | None = None
    images_per_step: int | None = None
    epochs: float | None = None
    images_seen: int | None = None
    seeds: tuple[int, ...] = ()
    optimizer: str | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    warmup_steps: float | None = None
    weight_decay: float | None = None
    precision: str | None = None


@dataclass(frozen=True, kw_only=True)
class CostFacts(CheckedValues):
    """What it took, on which hardware, with which versions; None for what was not recorded."""

    kind: str | None = None
    device: str | None = None
    num_devices: int | None = None
    processes: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def encoder_facts(model: SSLViewsModel) -> EncoderFacts:
    """Return what is known of a network."""
    config, cfg = model.config, model.config.pretrained_cfg
    return EncoderFacts(
        architecture=config.backbone,
        model_args=_without_paths(
            {key: value for key, value in config.model_args.items() if key not in TRAINING_ONLY}
        ),
        num_parameters=sum(parameter.numel() for parameter in model.backbone.parameters()),
        num_features=model.representation_dim,
        input_size=tuple(cfg["input_size"]),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"],
        needs=registered_by(config.backbone),
    )


def recipe_facts(model: SSLViewsModel, history: RunHistory | None) -> RecipeFacts:
    """Return what a network was to learn: by its configuration, or by the views of its run."""
    config = model.config
    used = dict(((history and history.record) or {}).get("views") or {})
    planned = json.loads(json.dumps(asdict(ViewRecipe.for_config(config))))
    is_planned = not used or all(used.get(name) == value for name, value in planned.items())
    start = config.initial_weights
    weight = resolve_orthogonality_weight(
        config.orthogonality_weight, config.projector_dim, config.loss
    )
    own_weights = config.loss == "vicreg" and _VICREG_WEIGHTS & config.loss_args.keys()
    return RecipeFacts(
        initial_weights=start if start is None or _is_start(start) else "not stated",
        num_views=config.num_views if is_planned else used["num_views"],
        image_size=config.image_size if is_planned else used["image_size"],
        upscale=config.upscale,
        recipe=config.recipe if is_planned else "custom",
        recipe_args=_without_paths(config.recipe_args) if is_planned else {},
        loss=config.loss,
        loss_args=_without_paths(config.loss_args),
        projector_dim=config.projector_dim,
        projector_hidden_dims=tuple(config.projector_hidden_dims),
        orthogonality_weight=None if own_weights else weight,
    )


def training_facts(history: RunHistory) -> TrainingFacts:
    """Return how long a run has learned."""
    record = history.record or {}
    training, data = record.get("training") or {}, record.get("data") or {}
    steps, planned = int(history.state["global_step"]), history.state.get("max_steps")
    per_step, seed = record.get("images_per_step"), record.get("seed")
    # The log ends at the last step that was logged, which need not be the last one.
    seen = history.total("images_seen") if per_step is None else steps * per_step
    used = [name for name in ("bf16", "fp16") if training.get(name)]
    precision = (used[0] if used else "float32") if training else None
    # An optimizer made by the user has its own numbers.
    given, own_schedule = training.get("given_optimizer"), training.get("given_scheduler")
    named = "LARS" if training.get("lars") else training.get("optim")
    return TrainingFacts(
        finished=history.finished,
        steps=steps,
        weights_step=history.weights_step,
        planned_steps=planned if planned and planned > 0 else None,
        images=data.get("images"),
        images_per_step=per_step,
        epochs=history.total("epoch"),
        images_seen=None if seen is None else int(seen),
        seeds=() if seed is None else (seed,),
        optimizer=given or named,
        learning_rate=None if given else training.get("learning_rate"),
        schedule=own_schedule or training.get("lr_scheduler_type"),
        warmup_steps=None if own_schedule else training.get("warmup_steps"),
        weight_decay=None if given else training.get("weight_decay"),
        precision=precision,
    )


def cost_facts(history: RunHistory) -> CostFacts:
    """Return what a run has taken."""
    hardware = history.hardware or {}
    seconds, seen = history.total("train_seconds"), history.total("images_seen")
    return CostFacts(
        **{name: hardware.get(name) for name in _HARDWARE},
        seconds=seconds,
        images_per_second=seen / seconds if seen is not None and seconds else None,
        versions=hardware.get("versions") or {},
    )


def _is_start(text: str) -> bool:
    """Return whether a text may name weights: a Hub id with or without revision, or no path."""
    return is_hub_id(text.partition("@")[0]) or not _is_path(text)


def _is_path(text: str) -> bool:
    return text.startswith((".", "~")) or bool({"/", "\\"} & set(text))


def _without_paths(value: Any) -> Any:
    """Return arguments without texts that may name files of the machine."""
    if isinstance(value, Mapping):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(each) for each in value]
    return "(a path)" if isinstance(value, str) and _is_path(value) else value
