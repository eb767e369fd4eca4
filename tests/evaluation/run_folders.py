"""Run folders without training: what a run writes, from a few numbers."""

import json
from copy import deepcopy

from ssl_views import checkpoints

RECORD = {
    "seed": 0,
    "images_per_step": 64,
    "training": {"max_steps": 400, "gradient_accumulation_steps": 1, "learning_rate": 0.002},
    "model": {
        "model_args": {},
        "image_size": 32,
        "num_views": 4,
        "projector_dim": 256,
        "projector_hidden_dims": [256],
        "loss": "barlow_twins",
        "recipe": "cifar",
        "recipe_args": {},
    },
    "data": {"images": 6400, "sha256": "a" * 64},
    "views": {"seed": 0, "image_size": 32, "num_views": 4, "crop_scale": [0.2, 1.0]},
    "limits": {"min_side": 8},
}
PROTOCOL = {
    "features": "one clean view",
    "feature_views": 1,
    "precision": "float32",
    "k": 20,
    "temperature": 0.1,
    "compared_views": 4,
    "view_images": 64,
    "dataset": "digits",
    "split": "train",
    "test_split": None,
}


def record_of(seed=0, **changes):
    """The record of a run; `model={"projector_dim": 64}` changes values."""
    record = deepcopy(RECORD)
    for part, values in changes.items():
        record[part] = {**record[part], **values} if isinstance(values, dict) else values
    record["seed"] = record["views"]["seed"] = seed
    return record


def log_of(values, steps=None, name="eval_knn", seconds_per_step=2.0):
    """Entries of training and evaluation, every 100 steps by default."""
    steps = steps or [100 * (place + 1) for place in range(len(values))]
    entries = []
    for step, value in zip(steps, values, strict=True):
        where = {
            "step": step,
            "epoch": step / 100,
            "images_seen": 64 * step,
            "train_seconds": seconds_per_step * step,
        }
        entries += [{**where, "loss": 100 / step}, {**where, name: value}]
    return entries


def state_of(log, max_steps=None):
    step = max((entry["step"] for entry in log), default=0)
    return {"global_step": step, "max_steps": max_steps or step, "log_history": log}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_run(folder, values, record=None, *, evaluation=None, max_steps=None, **log):
    """A run that has ended, or stopped before `max_steps`."""
    write_json(folder / "trainer_state.json", state_of(log_of(values, **log), max_steps))
    if record is not None:
        write_json(folder / "run.json", record)
    if evaluation is not None:
        write_json(folder / "evaluation.json", evaluation)
    return folder


def write_checkpoint(folder, values, record, *, max_steps=None, **log):
    """A sealed checkpoint of a run, named by its last step."""
    state = state_of(log_of(values, **log), max_steps)
    place = folder / f"checkpoint-{state['global_step']}"
    write_json(place / "trainer_state.json", state)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (place / name).write_bytes(b"")
    checkpoints.seal(place, {"step": state["global_step"], "world_size": 1, "run": record})
    return place


def evaluation_of(knn, linear_probe=0.7, *, num_test=2000, **protocol):
    """The content of evaluation.json."""
    return {
        "knn": knn,
        "linear_probe": linear_probe,
        "linear_probe_weight_decay": 0.01,
        "few_labels": {"0.01": {"mean": 0.3, "low": 0.2, "high": 0.4, "n": 5}},
        "effective_rank": 90.0,
        "feature_dim": 256,
        "num_train": 5000,
        "num_test": num_test,
        "data": None,
        "protocol": {**PROTOCOL, **protocol},
        "eigenspectrum": [4.0, 2.0, 1.0],
    }
