"""From a trained model to an encoder folder, which timm and transformers load without this package.

timm's `save_for_hf` is not used: it writes `num_classes` into `model_args`, which
`TimmWrapperModel` refuses.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from ssl_views.callbacks import no_progress_bars
from ssl_views.card_facts import CardDetails, facts_of
from ssl_views.checkpoints import (
    STAGING,
    checkpoints_by_step,
    find_checkpoints,
    move_into,
    step_of,
)
from ssl_views.encoder_config import NEEDS, TRAINING_ONLY
from ssl_views.encoder_folder import (
    CARD_FILE,
    CONFIG_FILE,
    ENCODER_FILES,
    ONNX_FILE,
    SPECTRUM_FILE,
    WEIGHTS_FILE,
    check_encoder,
    registered_by,
)
from ssl_views.encoders import downloaded, load_encoder
from ssl_views.evaluation.history import RunHistory
from ssl_views.model_card import render_card, spectrum_picture
from ssl_views.modeling_ssl_views import SSLViewsForPreTraining, SSLViewsModel
from ssl_views.onnx_export import check_onnx_installed, write_onnx

logger = logging.get_logger(__name__)

_STATE = "trainer_state.json"
_CHECKPOINT_FILES = (CONFIG_FILE, "model*.safetensors", "model.safetensors.index.json")


def encoder_config(model: SSLViewsModel) -> dict[str, Any]:
    """Return the config.json that both loaders read."""
    config = model.config
    model_args = {k: v for k, v in config.backbone_args.items() if k not in TRAINING_ONLY}
    # timm needs the names of these layers to give the encoder another head or number of channels;
    # before 1.0.31 it takes every first_conv for one of three channels.
    timm_cfg = model.backbone.pretrained_cfg
    keys = ("classifier", "first_conv") if config.num_channels == 3 else ("classifier",)
    layers = {key: timm_cfg[key] for key in keys if timm_cfg.get(key)}
    global_pool = getattr(model.backbone, "global_pool", None)
    needs = registered_by(config.backbone)
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
        **({} if needs is None else {NEEDS: needs}),
    }


def export_encoder(
    model: SSLViewsModel | SSLViewsForPreTraining | str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    details: CardDetails | None = None,
    onnx: bool = False,
    history: RunHistory | None = None,
) -> Path:
    """Write the backbone as an encoder folder: weights in float32, configuration and model card.

    The folder is checked before it is there: a failure leaves what was there before.

    Args:
        model: a trained model; or a run folder, of which the newest weights are taken, a
            checkpoint, or the Hub id of one.
        folder: to write to; made if it does not exist, and must be empty or hold an encoder.
        revision: branch, tag or commit, of a Hub id.
        details: what only you can say in the card: licence, training images.
        onnx: write model.onnx too, see `write_onnx`.
        history: of the run, for the card of a live model; that of a folder is read.

    Returns:
        The folder, for `timm.create_model("local-dir:FOLDER", pretrained=True)` and
        `AutoModel.from_pretrained("FOLDER")`.

    Raises:
        ValueError: if there is no trained model, a tensor is not finite, or the folder holds other
            files.
    """
    folder = Path(folder)
    _check_target(folder)
    if onnx:
        check_onnx_installed()
    if isinstance(model, SSLViewsModel | SSLViewsForPreTraining):
        if revision is not None:
            raise ValueError(
                f"revision must be left out for a live model; got {revision!r}. It chooses among "
                "the commits of a Hub id."
            )
        base = model.base_model
    elif isinstance(model, str | Path):
        base, found = _load_trained(model, revision)
        history = found if history is None else history
    else:
        raise ValueError(
            "model must be an SSLViewsModel, an SSLViewsForPreTraining or a path; got "
            f"{type(model).__name__}. Of a timm model no encoder needs to be made."
        )
    facts = facts_of(base, history, details or CardDetails())
    if facts.encoder.needs is not None:
        logger.warning(
            "timm itself has no %s: whoever loads the encoder must install and import %s first.",
            facts.encoder.architecture,
            facts.encoder.needs,
        )
    with _written_aside(folder) as staged:
        save_file(_tensors(base), staged / WEIGHTS_FILE, metadata={"format": "pt"})
        _write_text(staged / CONFIG_FILE, json.dumps(encoder_config(base), indent=2) + "\n")
        _write_text(staged / CARD_FILE, render_card(facts))
        picture = spectrum_picture(facts.evaluation)
        if picture is not None:
            (staged / SPECTRUM_FILE).write_bytes(picture)
        # safetensors makes files that only their owner may read.
        (staged / WEIGHTS_FILE).chmod((staged / CONFIG_FILE).stat().st_mode)
        info = check_encoder(staged)
        if onnx:
            with torch.random.fork_rng(devices=[]):  # the model to be filled draws random weights
                write_onnx(load_encoder(staged), staged / ONNX_FILE, info.input_size)
    return folder


def _check_target(folder: Path) -> None:
    known = {*ENCODER_FILES, STAGING}  # an export that was killed leaves the latter
    others = {path.name for path in folder.iterdir()} - known if folder.is_dir() else set()
    if others or folder.is_file():
        raise ValueError(
            f"{folder} must be an empty or new folder; it holds {sorted(others) or 'a file'}. "
            "Choose another."
        )
    if (folder / CARD_FILE).exists() and not (folder / CONFIG_FILE).exists():
        raise ValueError(
            f"{folder} must be an empty or new folder, or hold an encoder; it holds a {CARD_FILE} "
            "of something else. Choose another."
        )


@contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """Give a place to write to, and put its files into the folder only if all went well."""
    is_new = not folder.exists()
    staged = folder / STAGING
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        for name in ENCODER_FILES:
            if not (staged / name).exists():
                (folder / name).unlink(missing_ok=True)  # of an earlier encoder
        move_into(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _tensors(model: SSLViewsModel) -> dict[str, Tensor]:
    """Return the weights as they are stored: in float32, each with memory of its own."""
    state = {}
    for name, tensor in model.backbone.state_dict().items():
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        stored = tensor.detach().to("cpu", kind)
        state[name] = stored.clone(memory_format=torch.contiguous_format)
    return state


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _load_trained(
    source: str | Path, revision: str | None
) -> tuple[SSLViewsModel, RunHistory | None]:
    """Load a model from a run, a checkpoint or the Hub, with what is known of its run."""
    place = downloaded(source, revision=revision, patterns=_CHECKPOINT_FILES)
    if not Path(source).is_dir():
        return _load(place, source), None
    place = _newest_weights(place)
    if place != Path(source):
        logger.info("%s goes on or was stopped; its %s is exported.", source, place.name)
    model = _load(place, place)
    known = any((path / _STATE).is_file() for path in (place, *checkpoints_by_step(place)))
    return model, RunHistory.read(place) if known else None


def _newest_weights(folder: Path) -> Path:
    """Return a folder that holds weights, or its newest checkpoint where that has newer ones."""
    checkpoints = checkpoints_by_step(folder)
    if not checkpoints:
        return folder
    finished = (folder / CONFIG_FILE).is_file() and any(folder.glob("*.safetensors"))
    step = _step_of_run(folder) if finished else -1
    if step is None or step >= step_of(checkpoints[-1]):
        return folder
    found = find_checkpoints(folder)
    if found.newest is None or step_of(found.newest) <= step:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in found.skipped.items())
        raise ValueError(
            f"a run must have a checkpoint that is whole; of {str(folder)!r} none newer than its "
            f"own weights is. {reasons}. Delete it, or give a checkpoint to export as it is."
        )
    for path, reason in found.skipped.items():
        logger.warning("%s is not exported: %s.", path, reason)
    return found.newest


def _step_of_run(folder: Path) -> int | None:
    """Return the step of the weights in a run folder, or None if it cannot be told."""
    try:
        return int(json.loads((folder / _STATE).read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _load(place: Path, source: str | Path) -> SSLViewsModel:
    """Load the model of a folder, all of it."""
    try:
        config = json.loads((place / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind == "timm_wrapper":
        raise ValueError(
            f"a model to export must be one of training; {str(source)!r} is an encoder already. "
            "Publish it with ssl-views publish, or train on with from_encoder."
        )
    if kind != "ssl_views":
        raise ValueError(
            f"a model to export must be a run, a checkpoint, or the Hub id of one; {str(source)!r} "
            f"holds no {CONFIG_FILE} of one. Give the --output_dir of ssl-views pretrain."
        )
    try:
        with no_progress_bars():
            model, loaded = SSLViewsModel.from_pretrained(
                place, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the weights of a trained model must load; those of {str(source)!r} do not: {error}. "
            "Export another checkpoint."
        ) from error
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(
            f"a trained model must have all weights of its backbone; {str(source)!r} lacks "
            f"{len(missing)}, {missing[0]} among them. Export another checkpoint."
        )
    return model
