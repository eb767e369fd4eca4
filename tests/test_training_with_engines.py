"""Fifty steps on CIFAR-10: the same whatever makes the views."""

from functools import cache

import pytest
import torch
from transformers import set_seed

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    PixelCache,
    SSLViewsConfig,
    SSLViewsForPreTraining,
    SSLViewsTrainer,
    SSLViewsTrainingArguments,
    ViewRecipe,
)
from ssl_views.data.sources import load_images
from ssl_views.native import why_missing


@cache
def images(path):
    return load_images(path).select(range(800))


def train(path, output_dir, engine="auto", cached=False, **values):
    """Return the weights and the losses of every step."""
    set_seed(0)
    config = SSLViewsConfig(
        backbone="test_resnet", image_size=32, num_views=2, projector_dim=32, recipe="cifar"
    )
    model = SSLViewsForPreTraining(config)
    args = SSLViewsTrainingArguments(
        str(output_dir),
        per_device_train_batch_size=32,
        max_steps=50,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **values,
    )
    rows = images(path)
    cache = PixelCache.of(MultiViewDataset(rows), 3, limit_bytes=10**7) if cached else None
    dataset = MultiViewDataset(rows, cache=cache)
    collator = MultiViewCollator(ViewRecipe.for_config(config), engine=engine)
    trainer = SSLViewsTrainer(model, args, train_dataset=dataset, data_collator=collator)
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model.state_dict(), history


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.skipif(why_missing() is not None, reason=f"the native engine: {why_missing()}")
def test_workers_threads_and_the_cache_change_no_weight(cifar10, tmp_path):
    weights, history = train(cifar10, tmp_path, view_threads=0)
    assert len(history) == 50
    for values in (
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 4},
        {"view_threads": 1},
        {"view_threads": 2},
        {"view_threads": 2, "cached": True},
    ):
        others, losses = train(cifar10, tmp_path, **values)
        assert losses == history, values
        for name, value in weights.items():
            assert torch.equal(value, others[name]), (name, values)


@pytest.mark.slow
def test_the_torch_engine_trains_along_the_same_curve(cifar10, tmp_path):
    _, history = train(cifar10, tmp_path)
    for values in (
        {"engine": "torch", "view_threads": 0},
        {"engine": "torch", "view_threads": 2},
        {"engine": "torch", "dataloader_num_workers": 2},
        {"render_on_device": True},
    ):
        _, losses = train(cifar10, tmp_path, **values)
        torch.testing.assert_close(losses[:5], history[:5], rtol=1e-3, atol=0)
        # Training amplifies the rounding of the first steps.
        difference = torch.tensor(losses) / torch.tensor(history) - 1
        assert difference.abs().mean() < 0.02, values
