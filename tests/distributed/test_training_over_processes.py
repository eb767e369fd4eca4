"""Through the Trainer, several processes end with the weights of one."""

import logging
from types import SimpleNamespace

import pytest
import torch
from processes import in_processes
from torch import nn
from transformers import set_seed

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    SSLViewsConfig,
    SSLViewsForPreTraining,
    SSLViewsTrainer,
    SSLViewsTrainingArguments,
    ViewRecipe,
)
from ssl_views.batchnorm import GlobalBatchNorm, local_batchnorm_layers, synchronize_batchnorm
from ssl_views.data.sources import load_images
from ssl_views.trainer_checks import synchronize

BATCH = 12
VIT = {"backbone": "test_vit", "projector_hidden_dims": []}  # no layer mixes images


def trainer_of(output_dir, world_size, model=None, **values):
    set_seed(0)
    config = {"backbone": "test_resnet", "image_size": 32, "num_channels": 1, "num_views": 2}
    config = SSLViewsConfig(**{**config, "projector_dim": 16, "recipe": "digits", **(model or {})})
    collate = MultiViewCollator(ViewRecipe.for_config(config))
    args = SSLViewsTrainingArguments(
        str(output_dir),
        per_device_train_batch_size=BATCH // world_size,
        max_steps=10,
        learning_rate=0.05,
        optim="sgd",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **values,
    )
    return SSLViewsTrainer(
        SSLViewsForPreTraining(config).double(),
        args,
        train_dataset=MultiViewDataset(load_images("digits").shuffle(seed=0).select(range(80))),
        data_collator=lambda rows: {k: v.double() for k, v in collate(rows).items()},
    )


def train(rank, world_size, output_dir, *options):
    model, values = options or ({}, {})
    trainer = trainer_of(output_dir, world_size, model, **values)
    assert trainer.args.world_size == world_size
    trainer.train()
    return dict(trainer.model.state_dict())


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ten_steps_with_batchnorm_give_the_weights_of_one_process(world_size, tmp_path):
    expected = train(0, 1, tmp_path)
    for rank in in_processes(train, world_size, tmp_path, str(tmp_path)):
        torch.testing.assert_close(rank, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ten_steps_of_micro_batches_give_the_weights_of_whole_batches(world_size, tmp_path):
    options = VIT, {"micro_batch_size": 3}
    expected = train(0, 1, tmp_path, VIT, {})
    found = (
        [train(0, 1, tmp_path, *options)]
        if world_size == 1
        else in_processes(train, world_size, tmp_path, str(tmp_path), *options)
    )
    for rank in found:
        torch.testing.assert_close(rank, expected, atol=1e-12, rtol=0)


def test_local_batchnorm_is_warned_of(caplog):
    args = SimpleNamespace(sync_batchnorm=False, device=torch.device("cpu"))
    model = SSLViewsForPreTraining(
        SSLViewsConfig(backbone="test_resnet", image_size=32, projector_dim=8)
    )
    logger = logging.getLogger("ssl_views.trainer_checks")
    logger.addHandler(caplog.handler)
    synchronize(model, args)
    assert "16 BatchNorm layers (ssl_views.backbone.conv1.1, ...)" in caplog.text
    assert "Set sync_batchnorm" in caplog.text
    caplog.clear()
    args.sync_batchnorm = True
    synchronize(model, args)
    logger.removeHandler(caplog.handler)
    assert caplog.text == ""
    assert local_batchnorm_layers(model) == []


def batchnorm_steps(rank, world_size, share):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None))
    layers = synchronize_batchnorm(layers.double(), "cpu") if share else layers.double()
    rows = torch.randn(8, 3, 5, 5, dtype=torch.float64) * torch.arange(1, 9)[:, None, None, None]
    for _ in range(2):
        layers(rows.split(share)[rank] if share else rows).square().sum().backward()
    layers.eval()
    return {"output": layers(rows).detach(), **layers.state_dict()}


@pytest.mark.slow
def test_global_batchnorm_tracks_what_one_process_tracks(tmp_path):
    expected = batchnorm_steps(0, 1, None)
    for rank in in_processes(batchnorm_steps, 2, tmp_path, [5, 3]):
        torch.testing.assert_close(rank, expected, atol=1e-12, rtol=1e-12)


def test_conversion_keeps_names_parameters_and_activations():
    model = SSLViewsForPreTraining(
        SSLViewsConfig(backbone="test_resnet", image_size=32, projector_dim=8)
    )
    before, names = dict(model.named_parameters()), list(model.state_dict())
    views = torch.randn(4, 2, 3, 32, 32)
    expected = model(views).loss
    synchronize_batchnorm(model, "cpu")
    assert list(model.state_dict()) == names
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert local_batchnorm_layers(model) == []
    assert any(isinstance(module, GlobalBatchNorm) for module in model.modules())
    torch.testing.assert_close(model(views).loss, expected, atol=0, rtol=1e-4)


def test_on_a_gpu_timms_conversion_is_used():
    model = synchronize_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), "cuda")
    assert isinstance(model[0], nn.SyncBatchNorm)
    assert local_batchnorm_layers(model) == []


def test_layers_without_running_statistics_or_bias_work_too():
    rows = torch.randn(6, 4)
    plain = nn.BatchNorm1d(4, track_running_stats=False).eval()
    bare = nn.BatchNorm1d(4)
    bare.bias = None
    for layer in (plain, bare):
        expected = layer(rows)
        torch.testing.assert_close(GlobalBatchNorm(layer)(rows), expected)


def test_one_value_per_channel_gets_a_sentence():
    with pytest.raises(ValueError, match="at least 2 values per channel over all processes; got 1"):
        GlobalBatchNorm(nn.BatchNorm1d(4))(torch.randn(1, 4))
