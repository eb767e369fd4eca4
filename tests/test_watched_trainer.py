"""Numbers that go wrong stop a run before the step, and collapse is noticed."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssl_views import (
    BadImages,
    MultiViewCollator,
    MultiViewDataset,
    SSLViewsConfig,
    SSLViewsForPreTraining,
    SSLViewsTrainer,
    SSLViewsTrainingArguments,
    ViewRecipe,
)
from ssl_views.checkpoints import checkpoints_by_step
from ssl_views.guards import (
    CollapseError,
    CollapseWatch,
    NonFiniteError,
    check_weights,
    embedding_statistics,
    is_finite,
)
from ssl_views.spectrum import centred_effective_rank, effective_rank


class Poisoned(MultiViewCollator):
    """Makes the pixels of images 2 and 5 NaN, from some epoch on."""

    first_epoch = 0

    def __call__(self, items):
        batch = super().__call__(items)
        if items[0]["epoch"] >= self.first_epoch:
            bad = torch.isin(batch["indices"], torch.tensor([2, 5]))
            batch["pixel_values"][bad] = float("nan")
        return batch


class PoisonedLate(Poisoned):
    first_epoch = 1


def rows(count=40, same=False):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return [{"image": images[0 if same else i]} for i in range(count)]


def make(folder, collator=MultiViewCollator, images=None, recipe=None, seed=0, **values):
    config = SSLViewsConfig(
        backbone="test_resnet", image_size=32, num_views=2, projector_dim=8, recipe="cifar",
        recipe_args=recipe or {},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = SSLViewsForPreTraining(config)
    options = {
        "per_device_train_batch_size": 8, "max_steps": 10, "save_strategy": "steps",
        "save_steps": 2, "logging_steps": 1, "disable_tqdm": True, "use_cpu": True,
        "view_threads": 0, **values,
    }  # fmt: skip
    return SSLViewsTrainer(
        model,
        SSLViewsTrainingArguments(str(folder), **options),
        train_dataset=MultiViewDataset(rows() if images is None else images),
        data_collator=collator(ViewRecipe.for_config(config)),
    )


def assert_finite(checkpoint):
    state = load_file(checkpoint / "model.safetensors")
    assert any("running_var" in name for name in state)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


class TestNonFinite:
    def test_pixels_are_named_and_the_newest_checkpoint_is_finite(self, tmp_path):
        trainer = make(tmp_path, PoisonedLate)
        message = r"step [6-9] .* nan.*Process 0: .* images with indices [25](, [25])?\. No step"
        with pytest.raises(NonFiniteError, match=message):
            trainer.train()
        assert trainer.state.global_step >= 5
        newest = checkpoints_by_step(tmp_path)[-1]
        assert newest.name in ("checkpoint-4", "checkpoint-6", "checkpoint-8")
        assert_finite(newest)
        for parameter in trainer.model.parameters():
            assert torch.isfinite(parameter).all()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        assert losses
        assert all(np.isfinite(losses))
        assert 0.0 not in losses

    def test_a_loss_that_grows_out_of_bounds_stops(self, tmp_path):
        trainer = make(tmp_path, learning_rate=1e30, warmup_steps=0, max_grad_norm=0)
        with pytest.raises(NonFiniteError, match="Lower learning_rate") as error:
            trainer.train()
        assert "its pixels are finite; the images have indices" in str(error.value)
        for folder in tmp_path.glob("checkpoint-*"):
            assert_finite(folder)

    def test_a_gradient_stops_though_the_loss_is_finite(self, tmp_path):
        trainer = make(tmp_path)
        next(trainer.model.projector.parameters()).register_hook(
            lambda gradient: gradient * float("inf")
        )
        before = [p.detach().clone() for p in trainer.model.parameters()]
        with pytest.raises(NonFiniteError, match=r"at step 1 the loss is [0-9]"):
            trainer.train()
        for old, parameter in zip(before, trainer.model.parameters(), strict=True):
            assert torch.equal(old, parameter)

    def test_micro_batches_stop_too(self, tmp_path):
        trainer = make(tmp_path, Poisoned, micro_batch_size=4)
        with pytest.raises(NonFiniteError, match="pixels are not finite"):
            trainer.train()

    def test_weights_that_are_not_finite_are_not_saved(self, tmp_path):
        trainer = make(tmp_path)
        trainer.model.ssl_views.backbone.bn1.running_mean[0] = float("inf")
        with pytest.raises(NonFiniteError, match="running_mean is not"):
            trainer.save_model(str(tmp_path / "model"))
        assert not list((tmp_path / "model").glob("*.safetensors"))
        with pytest.raises(NonFiniteError, match="at step 7"):
            check_weights(trainer.model, 7)

    def test_steps_can_be_left_out_and_are_counted(self, tmp_path):
        trainer = make(tmp_path, max_skipped_steps=2, save_strategy="no")
        steps = iter(range(100))

        def sometimes(gradient):
            return gradient * float("nan") if next(steps) in (3, 6) else gradient

        next(trainer.model.projector.parameters()).register_hook(sometimes)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        assert [log.get("skipped_steps", 0) for log in logs] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
        assert all(np.isfinite(log["loss"]) for log in logs)
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())

    def test_a_forward_pass_may_be_left_out_where_no_statistics_are_spoilt(self, tmp_path):
        trainer = make(tmp_path, max_skipped_steps=1, save_strategy="no")
        compute, calls = trainer.model.loss.forward, iter(range(100))
        trainer.model.loss.forward = lambda z: compute(z * float("nan") if next(calls) == 3 else z)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        assert [log.get("skipped_steps", 0) for log in logs] == [0] * 3 + [1] * 7
        assert logs[3]["loss"] == pytest.approx(logs[2]["loss"])
        assert all(np.isfinite(value) for log in logs for value in log.values())

    @pytest.mark.parametrize("count", [1, 1000])
    def test_fp16_leaves_steps_out_itself_but_not_for_ever(self, tmp_path, monkeypatch, count):
        steps = min(20 * count, 100)
        trainer = make(tmp_path, max_steps=steps, save_strategy="no", logging_strategy="no")
        monkeypatch.setattr(trainer.accelerator, "scaler", torch.amp.GradScaler("cpu"))
        calls = iter(range(200))

        def overflows_at_first(gradient):
            return gradient * float("inf") if next(calls) < count else gradient

        next(trainer.model.projector.parameters()).register_hook(overflows_at_first)
        if count < 64:
            trainer.train()
            assert trainer.accelerator.scaler.get_scale() == 2**16 / 2**count
        else:
            with pytest.raises(NonFiniteError, match="at step 65 the loss is"):
                trainer.train()

    def test_no_more_are_left_out_than_allowed(self, tmp_path):
        trainer = make(tmp_path, max_skipped_steps=2, save_strategy="no")
        steps = iter(range(100))

        def from_the_third(gradient):
            return gradient * float("nan") if next(steps) >= 2 else gradient

        next(trainer.model.projector.parameters()).register_hook(from_the_third)
        with pytest.raises(NonFiniteError, match="at step 5"):
            trainer.train()

    def test_a_step_that_has_spoilt_buffers_is_never_left_out(self, tmp_path):
        trainer = make(tmp_path, PoisonedLate, max_skipped_steps=5)
        message = "pixels are not finite.*statistics are spoilt, so that the step cannot be left"
        with pytest.raises(NonFiniteError, match=message):
            trainer.train()

    def test_gradients_are_not_looked_at_without_a_model(self):
        model = torch.nn.Linear(2, 1)
        model(torch.full((1, 2), float("inf"))).sum().backward()
        assert not is_finite(torch.tensor(1.0), model)
        assert is_finite(torch.tensor(1.0), None)
        assert not is_finite(torch.tensor(float("nan")), None)


class TestCollapse:
    def test_identical_images_are_noticed(self, tmp_path, caplog):
        same_views = {
            "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "flip_prob": 0.0,
            "jitter_prob": 0.0, "grayscale_prob": 0.0, "blur_prob": 0.0, "solarize_prob": 0.0,
        }  # fmt: skip
        trainer = make(tmp_path, images=rows(same=True), recipe=same_views, save_strategy="no")
        with caplog.at_level(logging.WARNING):
            trainer.train()
        assert "the embeddings have collapsed for 5 logs: they are constant" in caplog.text
        assert "lower learning_rate, or raise orthogonality_weight" in caplog.text
        trainer = make(
            tmp_path / "stop", images=rows(same=True), recipe=same_views, save_strategy="no",
            stop_on_collapse=True,
        )  # fmt: skip
        with pytest.raises(CollapseError, match=r"step 5: the embeddings have collapsed"):
            trainer.train()

    def test_a_healthy_run_is_not_warned_of(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            trainer = make(tmp_path, save_strategy="no")
            trainer.train()
        assert "collapsed" not in caplog.text
        log = trainer.state.log_history[0]
        assert log["embedding_std"] > 0
        assert 1 < log["embedding_effective_rank"] <= 7

    @pytest.mark.parametrize(
        ("values", "sign"),
        [
            ((1e-4, 20.0, 1.0), "constant"),
            ((1.0, 2.0, 1.0), r"effective rank is 2\.0 of 63"),
            ((1.0, 20.0, 1e-9), "gradient has vanished"),
        ],
    )
    def test_each_sign_is_named_once_it_has_lasted(self, values, sign):
        watch = CollapseWatch((128, 63), patience=3)
        assert watch.look(*values) is None
        assert watch.look(1.0, 20.0, 1.0) is None  # it has to last
        found = [watch.look(*values) for _ in range(6)]
        assert [sentence is not None for sentence in found] == [0, 0, 1, 0, 0, 0]
        assert len(re.findall(sign, found[2])) == 1
        assert CollapseWatch((128, 63), patience=3).look(1.0, 20.0, None) is None

    @pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
    def test_statistics_are_those_of_their_definition(self, shape, generator):
        z = torch.randn(*shape, generator=generator) * torch.arange(1, shape[1] + 1) + 3
        std, spread, rank = embedding_statistics(z).tolist()
        centred = z.double().numpy() - z.double().numpy().mean(0)
        assert std == pytest.approx(np.sqrt((centred**2).mean()))
        assert spread == pytest.approx(std / np.sqrt((z.double().numpy() ** 2).mean()))
        values = np.linalg.svd(centred, compute_uv=False)
        shares = values / values.sum() + 1e-7
        assert rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
        assert rank == pytest.approx(effective_rank(torch.as_tensor(centred)), rel=1e-4)

    def test_a_constant_has_rank_one_and_no_spread(self):
        std, spread, rank = embedding_statistics(torch.full((6, 4), 2.5)).tolist()
        assert std == spread == 0
        assert rank == pytest.approx(1, abs=1e-4)
        assert centred_effective_rank(torch.eye(5)) == pytest.approx(4, rel=1e-4)


class TestSetUp:
    def test_small_batches_are_warned_of(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            make(tmp_path, per_device_train_batch_size=4)
            assert "A step has 4 images for a projector_dim of 8" in caplog.text
            assert "about 2.0 per dimension" in caplog.text
            caplog.clear()
            make(tmp_path, per_device_train_batch_size=8)
            assert "A step has" not in caplog.text

    def test_an_empty_data_set_gets_a_sentence(self, tmp_path):
        with pytest.raises(ValueError, match="train data set must hold images; got none"):
            make(tmp_path, images=[])

    def test_a_collator_with_a_list_of_its_own_is_refused(self, tmp_path):
        class Listing(MultiViewCollator):
            def __init__(self, recipe):
                super().__init__(recipe, bad_images=BadImages())

        with pytest.raises(ValueError, match="the Trainer keeps the list of bad images"):
            make(tmp_path, Listing)

    @pytest.mark.parametrize(
        "name",
        ["auto_find_batch_size", "enable_jit_checkpoint", "ignore_data_skip", "save_only_model"],
    )
    def test_options_that_break_resuming_are_refused(self, tmp_path, name):
        with pytest.raises(ValueError, match=f"{name} must be left out; got True"):
            SSLViewsTrainingArguments(str(tmp_path), **{name: True})

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"on_bad": "ignore"}, "on_bad must be 'replace' or 'raise'; got 'ignore'"),
            ({"max_skipped_steps": -1}, "max_skipped_steps must be at least 0; got -1"),
            ({"hub_token": "hf_x"}, "hub_token must be left out, for arguments are written"),
            ({"push_to_hub": True}, "push_to_hub must be told where to"),
            (
                {"push_to_hub": True, "hub_model_id": "a/b", "hub_strategy": "checkpoint"},
                "hub_strategy must be 'end' or 'every_save', .* got 'checkpoint'",
            ),
            (
                {"push_to_hub": True, "hub_model_id": "a/b", "hub_revision": "dev"},
                "hub_revision must be left out; got 'dev'",
            ),
        ],
    )
    def test_wrong_arguments_get_a_sentence(self, tmp_path, values, message):
        with pytest.raises(ValueError, match=message):
            SSLViewsTrainingArguments(str(tmp_path), **values)

    def test_pushing_needs_a_repository(self, tmp_path):
        with pytest.raises(ValueError, match="an encoder must have a repository to go to"):
            make(tmp_path).push_to_hub()

    def test_a_saved_model_has_readable_arguments_and_no_pickle(self, tmp_path):
        trainer = make(tmp_path)
        trainer.save_model(str(tmp_path / "model"))
        names = {path.name for path in (tmp_path / "model").iterdir()}
        written = {"config.json", "model.safetensors", "run.json", "hardware.json"}
        assert names == written | {"training_args.json"}
        stored = json.loads((tmp_path / "model" / "training_args.json").read_text())
        assert stored["max_steps"] == 10
