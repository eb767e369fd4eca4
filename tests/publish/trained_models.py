"""Models whose weights and statistics no initialisation gives, and the folders of their runs."""

import json

import torch

from ssl_views import SSLViewsConfig, SSLViewsForPreTraining, checkpoints

SMALL_VIT = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def trained(backbone="test_resnet", num_channels=3, seed=0, **values):
    torch.manual_seed(seed)
    values = {"image_size": 32, "num_views": 2, "projector_dim": 8, **values}
    config = SSLViewsConfig(backbone=backbone, num_channels=num_channels, **values)
    model = SSLViewsForPreTraining(config)
    side = config.image_size
    for _ in range(2):
        model(torch.randn(4, 2, num_channels, side, side) + 1)
    return model.eval()


def state_at(step, max_steps=4):
    log = [{"step": n, "epoch": n / 2, "loss": 1.0, "images_seen": 8 * n} for n in range(1, step)]
    return {"global_step": step, "max_steps": max_steps, "log_history": log}


def write_checkpoint(run, step, model, sealed=True):
    """Write what the Trainer writes at a step, with the projector."""
    folder = run / f"checkpoint-{step}"
    model.save_pretrained(folder)
    (folder / "trainer_state.json").write_text(json.dumps(state_at(step)))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"")
    if sealed:
        checkpoints.seal(folder, {"step": step, "world_size": 1, "run": {"seed": 7}})
    return folder


def write_end(run, step, model):
    """Write what is in the folder of a run that has ended."""
    model.save_pretrained(run)
    (run / "trainer_state.json").write_text(json.dumps(state_at(step)))
    (run / "run.json").write_text(json.dumps({"seed": 7}))
    return run


def backbone_state(thing):
    """Return the weights of a model of ours, of a timm model, or those given."""
    if isinstance(thing, dict):
        return thing
    return (thing.base_model.backbone if hasattr(thing, "base_model") else thing).state_dict()


def assert_same_backbone(one, other):
    """Bit for bit, with the statistics of BatchNorm."""
    ours, theirs = backbone_state(one), backbone_state(other)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
