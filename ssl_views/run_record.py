"""What makes two runs the same run: data, views, model, loss and optimizer."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from inspect import signature
from pathlib import PurePath
from typing import Any

import numpy as np

from ssl_views.configuration_ssl_views import SSLViewsConfig
from ssl_views.data.collator import MultiViewCollator
from ssl_views.data.dataset import MultiViewDataset
from ssl_views.data.image_limits import BadImage
from ssl_views.data.image_roots import readable_path
from ssl_views.training_args import SSLViewsTrainingArguments

_LOOK_AT = 256
_TRAINING = (
    "max_steps", "num_train_epochs", "gradient_accumulation_steps", "micro_batch_size",
    "sync_batchnorm", "bf16", "fp16", "tf32", "data_seed", "dataloader_drop_last",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm",
    "weight_decay", "optim", "optim_args", "lars", "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip
MODEL_FIELDS = [name for name in signature(SSLViewsConfig).parameters if name != "kwargs"]


def run_record(
    args: SSLViewsTrainingArguments, config: SSLViewsConfig, data: Mapping[str, Any], collator: Any
) -> dict[str, Any]:
    """Return what must not change when a run is resumed, as JSON values.

    Args:
        args: training arguments. The number of processes is not part of it, the number of images
            per step is.
        config: of the model.
        data: from `describe_data`.
        collator: that makes the views.
    """
    accumulated = args.train_batch_size * args.gradient_accumulation_steps
    record: dict[str, Any] = {
        "seed": args.seed,
        "images_per_step": accumulated * args.world_size,
        "training": {name: getattr(args, name, None) for name in _TRAINING},
        "model": {name: getattr(config, name) for name in MODEL_FIELDS},
        "data": data,
    }
    if isinstance(collator, MultiViewCollator):
        views = {"seed": collator.seed, "dtype": str(collator.dtype), **asdict(collator.recipe)}
        record["views"] = views
        record["limits"] = asdict(collator.limits)
    return dict(json.loads(json.dumps(record, default=str)))


def describe_data(dataset: Any) -> dict[str, Any]:
    """Return the number of images, and a hash of up to 256 of them, evenly spread.

    Of an image that is a file, name and size are hashed, so that data may move to another disk.
    """
    if not hasattr(dataset, "__len__"):
        return {"stream": True}
    count = len(dataset)
    if not isinstance(dataset, MultiViewDataset):
        return {"images": count}
    rows = sorted({int(row) for row in np.linspace(0, count - 1, min(count, _LOOK_AT))})
    digest = hashlib.sha256()
    for row in rows:  # one by one: encoded images may be large
        (value,), (index,) = dataset.read([row])
        digest.update(f"{index}:".encode())
        digest.update(_content(value))
    return {"images": count, "sha256": digest.hexdigest()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return what differs between two records, one line "name: before -> now" for each value."""
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {_short(old)} -> {_short(new)}")
    return lines


def _content(value: Any) -> bytes:
    """Return bytes that tell an image from others."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        path = str(value.get("path"))
        try:
            size = readable_path(path).stat().st_size
        except (BadImage, OSError):
            size = -1
        return f"{PurePath(path).name}:{size}".encode(errors="surrogateescape")
    if value is None or isinstance(value, bytes):
        return value or b""
    array = np.asarray(value)
    return f"{array.shape}{array.dtype}".encode() + array.tobytes()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
