"""Training is the same whatever makes the views."""

import threading
from functools import cache

import numpy as np
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
from ssl_views.data.image_limits import BadImage
from ssl_views.data.sources import load_images
from ssl_views.native import why_missing


@cache
def images(path):
    return load_images(path).select(range(800))


def arguments(output_dir, **values):
    return SSLViewsTrainingArguments(
        str(output_dir),
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **values,
    )


def train(path, output_dir, engine="auto", cached=False, **values):
    """Return the weights and the losses of every step."""
    set_seed(0)
    config = SSLViewsConfig(
        backbone="test_resnet", image_size=32, num_views=2, projector_dim=32, recipe="cifar"
    )
    model = SSLViewsForPreTraining(config)
    args = arguments(output_dir, per_device_train_batch_size=32, max_steps=50, **values)
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
    # At a small learning rate, for a large one amplifies rounding from step to step.
    options = {"learning_rate": 1e-4}
    _, history = train(cifar10, tmp_path, **options)
    for values in (
        {"engine": "torch", "view_threads": 0},
        {"engine": "torch", "view_threads": 2},
        {"engine": "torch", "dataloader_num_workers": 2},
        {"render_on_device": True},
    ):
        _, losses = train(cifar10, tmp_path, **values, **options)
        torch.testing.assert_close(losses, history, rtol=1e-2, atol=0)
    assert min(history[-10:]) < 0.9 * history[0]


def small_run(tmp_path, recipe="cifar", recipe_args=None, num_views=2, **values):
    """Return a trainer of two steps on six images."""
    set_seed(0)
    config = SSLViewsConfig(
        backbone="test_resnet",
        image_size=32,
        num_views=num_views,
        projector_dim=8,
        recipe=recipe,
        recipe_args=recipe_args,
    )
    rng = np.random.default_rng(0)
    rows = [{"image": rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)} for _ in range(6)]
    args = arguments(tmp_path, per_device_train_batch_size=6, max_steps=2, **values)
    dataset = MultiViewDataset(rows)
    collator = MultiViewCollator(ViewRecipe.for_config(config))
    model = SSLViewsForPreTraining(config)
    return SSLViewsTrainer(model, args, train_dataset=dataset, data_collator=collator)


@pytest.mark.parametrize("values", [{"view_threads": 2}, {"micro_batch_size": 6}])
def test_local_views_train(tmp_path, values):
    recipe = {"recipe": "global_local", "num_views": 4}
    plain = small_run(tmp_path, **recipe, view_threads=0)
    seen = []
    plain.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append({k: v.shape for k, v in kwargs.items()}),
        with_kwargs=True,
    )
    plain.train()
    assert seen[0] == {
        "pixel_values": (6, 2, 3, 32, 32),
        "local_pixel_values": (6, 2, 3, 14, 14),
    }
    other = small_run(tmp_path, **recipe, **values)
    other.train()
    expected = plain.model.state_dict()
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)


def test_local_views_are_views_of_the_loss():
    config = SSLViewsConfig(backbone="test_vit", image_size=32, projector_dim=8)
    model = SSLViewsForPreTraining(config)
    views = torch.randn(5, 2, 3, 32, 32)
    together = model(pixel_values=views)
    apart = model(pixel_values=views[:, :1], local_pixel_values=views[:, 1:])
    torch.testing.assert_close(apart.embeddings, together.embeddings)
    torch.testing.assert_close(apart.loss, together.loss)
    with pytest.raises(ValueError, match=r"must have shape \(B, V, C, S, S\); got .*\(4, 1, 3"):
        model(pixel_values=views, local_pixel_values=views[:4, :1])


def test_pinning_memory_leaves_rows_unread(tmp_path):
    trainer = small_run(tmp_path, view_threads=2)
    trainer.train_dataset.epoch = 0
    rows = trainer.train_dataset.__getitems__([1, 3])
    assert torch.utils.data._utils.pin_memory.pin_memory(rows) is rows


def test_rendering_on_the_device_needs_our_collator(tmp_path):
    trainer = small_run(tmp_path)
    args = SSLViewsTrainingArguments(str(tmp_path), use_cpu=True, render_on_device=True)
    with pytest.raises(ValueError, match="render_on_device needs a MultiViewCollator; got builtin"):
        SSLViewsTrainer(trainer.model, args, train_dataset=list(range(512)), data_collator=len)


def test_no_thread_outlives_training(tmp_path):
    trainer = small_run(tmp_path, view_threads=2)
    trainer.train()
    assert not [t for t in threading.enumerate() if t.name.startswith("ssl_views")]


def test_a_thread_names_the_image_that_it_cannot_decode(tmp_path):
    trainer = small_run(tmp_path, view_threads=2, on_bad="raise")
    trainer.train_dataset.rows[4] = {"image": {"bytes": b"no image", "path": "b/4.jpg"}}
    with pytest.raises(BadImage, match=r"image 4 \(b/4.jpg\): the bytes cannot be decoded"):
        trainer.train()
    assert not [t for t in threading.enumerate() if t.name.startswith("ssl_views")]
