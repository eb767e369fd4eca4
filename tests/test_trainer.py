"""Training by the stock Trainer and by ours, on real images."""

import shutil

import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

from ssl_views import (
    EpochCallback,
    MultiViewCollator,
    MultiViewDataset,
    MultiViewIterableDataset,
    SSLViewsConfig,
    SSLViewsForPreTraining,
    SSLViewsTrainer,
    SSLViewsTrainingArguments,
    ViewRecipe,
)
from ssl_views.data.sources import load_images


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").shuffle(seed=0).select(range(80))


def new_model(**values):
    set_seed(0)
    defaults = {"backbone": "test_resnet", "image_size": 32, "num_channels": 1, "num_views": 2}
    config = SSLViewsConfig(**{**defaults, "projector_dim": 16, "recipe": "digits", **values})
    return SSLViewsForPreTraining(config)


def arguments(output_dir, cls=TrainingArguments, **values):
    defaults = {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return cls(str(output_dir), **{**defaults, **values})


def parts(model, rows, seed=0):
    dataset = MultiViewDataset(rows)
    return {
        "train_dataset": dataset,
        "data_collator": MultiViewCollator(ViewRecipe.for_config(model.config), seed),
        "callbacks": [EpochCallback(dataset)],
    }


def stock(output_dir, rows, model=None, **values):
    model = model or new_model()
    return Trainer(model, arguments(output_dir, **values), **parts(model, rows))


def ours(output_dir, rows, model=None, probe=None, **values):
    model = model or new_model()
    options = parts(model, rows)
    del options["callbacks"]
    probe = probe or {}
    args = arguments(output_dir, SSLViewsTrainingArguments, **values)
    return SSLViewsTrainer(model, args, **options, **probe)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_stock_trainer_learns_saves_and_loads(digits, tmp_path):
    size = {"per_device_train_batch_size": 40, "per_device_eval_batch_size": 80}
    model = new_model(orthogonality_weight=0.02)
    trainer = stock(tmp_path, digits, model, num_train_epochs=30, learning_rate=3e-3, **size)
    trainer.eval_dataset = MultiViewDataset(digits, epoch=0)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * before
    trainer.save_model()
    loaded = SSLViewsForPreTraining.from_pretrained(tmp_path)
    assert_same(loaded.state_dict(), weights(trainer))


@pytest.mark.parametrize("trainer_of", [stock, ours])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_in_mid_epoch_ends_with_the_same_weights(
    digits, tmp_path, workers, trainer_of
):
    options = {"save_strategy": "steps", "save_steps": 7, "dataloader_num_workers": workers}
    whole = trainer_of(tmp_path / "run", digits, **options)
    whole.train()
    assert whole.state.global_step == 10
    (tmp_path / "resumed").mkdir()
    shutil.copytree(tmp_path / "run" / "checkpoint-7", tmp_path / "resumed" / "checkpoint-7")
    resumed = trainer_of(tmp_path / "resumed", digits, **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed)[7:] == losses(whole)[7:]
    assert_same(weights(resumed), weights(whole))


def test_workers_change_no_weight(digits, tmp_path):
    runs = []
    for workers in (0, 2):
        persistent = {"dataloader_persistent_workers": workers > 0}
        trainer = stock(tmp_path, digits, dataloader_num_workers=workers, **persistent)
        trainer.train()
        runs.append(weights(trainer))
    assert_same(*runs)


def test_epochs_bring_new_views(digits, tmp_path):
    trainer = stock(tmp_path, digits.select(range(16)), learning_rate=0.0)
    trainer.train()
    first, second = losses(trainer)
    assert first != second


def test_our_trainer_gives_the_stock_trainers_weights(digits, tmp_path):
    """Without weight decay the two differ in nothing that touches weights."""
    runs = []
    for trainer in (
        stock(tmp_path, digits),
        ours(tmp_path, digits, weight_decay=0.0, warmup_steps=0, lr_scheduler_type="linear"),
    ):
        trainer.train()
        runs.append(weights(trainer))
    assert_same(*runs)


def test_the_stock_trainer_evaluates_without_labels(digits, tmp_path):
    model = new_model()
    trainer = Trainer(
        model,
        arguments(tmp_path),
        eval_dataset=MultiViewDataset(digits, epoch=0),
        data_collator=MultiViewCollator(ViewRecipe.for_config(model.config)),
    )
    first = trainer.evaluate()["eval_loss"]
    assert first > 0
    assert trainer.evaluate()["eval_loss"] == first  # the same views each time


@pytest.mark.parametrize(
    "option",
    [
        {"bf16": True},
        {"gradient_checkpointing": True},
        pytest.param(
            {"torch_compile": True, "torch_compile_backend": "aot_eager"}, marks=pytest.mark.slow
        ),
    ],
    ids=["bf16", "gradient_checkpointing", "torch_compile"],
)
def test_the_stock_trainers_options_work(digits, tmp_path, option):
    trainer = stock(tmp_path, digits, num_train_epochs=1, **option)
    trainer.train()
    plain = stock(tmp_path, digits, num_train_epochs=1)
    plain.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=0.1 if "bf16" in option else 0.02)
    assert not any("_orig_mod" in name for name in trainer.model.state_dict())


def test_accumulation_does_not_scale_the_loss(digits, tmp_path):
    """Also where a collator lets labels through, which makes Trainer ask for a scaled loss."""
    model = new_model()
    collate = MultiViewCollator(ViewRecipe.for_config(model.config))
    seen = []

    class Recording(SSLViewsForPreTraining):
        def forward(self, pixel_values, labels=None, return_loss=True):
            output = super().forward(pixel_values, return_loss)
            seen.append(output.loss.item())
            return output

    dataset = MultiViewDataset(digits)
    trainer = Trainer(
        Recording(model.config),
        arguments(tmp_path, max_steps=1, gradient_accumulation_steps=2),
        train_dataset=dataset,
        data_collator=lambda items: {**collate(items), "labels": torch.zeros(len(items))},
        callbacks=[EpochCallback(dataset)],
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(sum(seen) / 2, rel=1e-4)


def test_our_trainer_logs_every_term_and_probes(digits, tmp_path):
    probe = {
        "eval_dataset": MultiViewDataset(digits, epoch=0),
        "probe_train": digits.select(range(60)),
        "probe_test": digits.select(range(60, 80)),
    }
    model = new_model(orthogonality_weight=0.25)
    trainer = ours(tmp_path, digits, model, probe, eval_strategy="epoch", logging_steps=2)
    trainer.train()
    train = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(train) == 5
    assert len(evaluated) == 2
    for entry, prefix in [*((e, "") for e in train), *((e, "eval_") for e in evaluated)]:
        total = entry[f"{prefix}invariance"] + 0.25 * entry[f"{prefix}redundancy"]
        assert entry[f"{prefix}loss"] == pytest.approx(total, rel=1e-4)
    assert 0 <= evaluated[0]["eval_knn"] <= 1
    assert 1 <= evaluated[0]["eval_effective_rank"] <= 20


def test_only_weights_decay(digits, tmp_path):
    model = new_model(backbone="vit_tiny_patch16_224")
    trainer = ours(tmp_path, digits, model)
    trainer.create_optimizer()
    decayed = {
        id(p) for g in trainer.optimizer.param_groups if g["weight_decay"] for p in g["params"]
    }
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.05
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "projector.0.weight" in names
    assert "ssl_views.backbone.blocks.0.attn.qkv.weight" in names
    for name, p in model.named_parameters():
        if p.ndim < 2 or name.endswith(("pos_embed", "cls_token")):
            assert name not in names


@pytest.mark.parametrize(
    ("option", "name"), [({"lars": True}, "Lars"), ({"optim": "sgd"}, "SGD"), ({}, "AdamW")]
)
def test_optimizers(digits, tmp_path, option, name):
    trainer = ours(tmp_path, digits, num_train_epochs=1, learning_rate=0.01, **option)
    trainer.train()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert type(optimizer).__name__ == name
    assert all(torch.isfinite(torch.tensor(losses(trainer))))


def test_schedule_is_cosine_with_warm_up(digits, tmp_path):
    trainer = ours(tmp_path, digits, num_train_epochs=4, warmup_steps=0.25)
    trainer.train()
    rates = [
        entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry
    ]
    assert max(rates) == pytest.approx(1e-3, rel=0.05)
    assert rates.index(max(rates)) in (4, 5)
    assert rates[-1] < 0.05 * max(rates)


def test_a_stream_trains(digits, tmp_path):
    model = new_model()
    stream = MultiViewIterableDataset(digits.to_iterable_dataset().shuffle(seed=0, buffer_size=20))
    trainer = SSLViewsTrainer(
        model,
        arguments(tmp_path, SSLViewsTrainingArguments, max_steps=12),
        train_dataset=stream,
        data_collator=MultiViewCollator(ViewRecipe.for_config(model.config)),
    )
    trainer.train()
    assert len(losses(trainer)) == 12


def test_wrong_set_ups_get_a_sentence(digits, tmp_path):
    with pytest.raises(
        ValueError, match=r"got 128 images per train step and 80 images. Lower --per_device_train"
    ):
        ours(tmp_path, digits, per_device_train_batch_size=128)
    args = arguments(tmp_path, SSLViewsTrainingArguments)
    args._n_gpu = 4
    args.use_cpu = False
    with pytest.raises(
        ValueError, match=r"one process must use one GPU.*got 4. Start with torchrun"
    ):
        SSLViewsTrainer(new_model(), args)


def test_accumulation_is_refused_unless_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"must be 1, .*; got 4.*micro_batch_size"):
        SSLViewsTrainingArguments(str(tmp_path), gradient_accumulation_steps=4)
    allowed = SSLViewsTrainingArguments(
        str(tmp_path), gradient_accumulation_steps=4, allow_inexact_accumulation=True
    )
    assert allowed.gradient_accumulation_steps == 4
    with pytest.raises(ValueError, match="must not be combined; got 8 and 4"):
        SSLViewsTrainingArguments(
            str(tmp_path),
            gradient_accumulation_steps=4,
            allow_inexact_accumulation=True,
            micro_batch_size=8,
        )
    with pytest.raises(ValueError, match="micro_batch_size must be at least 1; got 0"):
        SSLViewsTrainingArguments(str(tmp_path), micro_batch_size=0)


def test_accumulation_by_accelerates_own_arguments_is_refused_too(digits, tmp_path):
    hidden = {"gradient_accumulation_kwargs": {"num_steps": 4}}
    with pytest.raises(ValueError, match=r"must be 1, .*; got 4.*micro_batch_size"):
        ours(tmp_path, digits, accelerator_config=hidden)


def test_micro_batches_log_what_whole_batches_do(digits, tmp_path):
    runs = []
    for options in ({}, {"micro_batch_size": 5}, {"micro_batch_size": 5, "bf16": True}):
        model = new_model(backbone="test_vit", projector_hidden_dims=[])
        trainer = ours(tmp_path, digits, model, num_train_epochs=1, **options)
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        names = ("loss", "invariance", "redundancy", "grad_norm")
        runs.append(torch.tensor([[entry[name] for name in names] for entry in logs]))
    torch.testing.assert_close(runs[1], runs[0], atol=0, rtol=1e-3)
    torch.testing.assert_close(runs[2], runs[0], atol=0, rtol=0.1)


def test_a_model_of_another_run_is_named_as_the_start(digits, tmp_path):
    new_model().save_pretrained(tmp_path / "before")
    for place, expected in (("after", "a checkpoint in a local folder"), ("before", None)):
        model = SSLViewsForPreTraining.from_pretrained(tmp_path / "before")
        trainer = ours(tmp_path / place, digits, model)
        assert trainer.model.config.initial_weights == expected
    model.config.name_or_path = "someone/checkpoint"
    assert ours(tmp_path, digits, model).model.config.initial_weights == "someone/checkpoint"
    assert ours(tmp_path, digits).model.config.initial_weights is None


def test_evaluations_of_other_weights_are_forgotten(digits, tmp_path):
    trainer = ours(tmp_path, digits)
    trainer.save_model()
    names = ("evaluation.json", "report.html", "evaluation_mean_of_16_views.json", "notes.json")
    for name in names:
        (tmp_path / name).write_text("{}")
    trainer.save_model()  # the same weights
    assert all((tmp_path / name).is_file() for name in names)
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)
    trainer.save_model()
    assert [name for name in names if (tmp_path / name).is_file()] == ["notes.json"]


def test_the_record_names_an_optimizer_of_the_user(digits, tmp_path):
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dataset = MultiViewDataset(digits)
    collator = MultiViewCollator(ViewRecipe.for_config(model.config))
    args = arguments(tmp_path, SSLViewsTrainingArguments)
    trainer = SSLViewsTrainer(
        model, args, train_dataset=dataset, data_collator=collator, optimizers=(optimizer, None)
    )
    assert trainer._record()["training"]["given_optimizer"] == "SGD"
    assert "given_optimizer" not in ours(tmp_path, digits)._record()["training"]
