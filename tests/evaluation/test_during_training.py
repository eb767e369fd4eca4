"""What a run logs of itself, how often, what it costs, and what may choose a checkpoint."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import DatasetDict
from safetensors.torch import load_file
from transformers import set_seed
from transformers.trainer_utils import IntervalStrategy

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    SSLViewsConfig,
    SSLViewsForPreTraining,
    SSLViewsTrainer,
    SSLViewsTrainingArguments,
    ViewRecipe,
)
from ssl_views.cli import main
from ssl_views.cli.arguments import WatchArguments
from ssl_views.cli.watching import choose_watched, describe_evaluations, plan_evaluations
from ssl_views.data.sources import load_images, load_train_and_test
from ssl_views.publishing_trainer import PublishingTrainer

METRICS = {"knn", "effective_rank", "alpha", "alpha_r_squared", "lidar", "view_invariance"}
SPENT = {"train_seconds", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").shuffle(seed=0).select(range(160))


def new_trainer(output_dir, digits, rows=None, **values):
    set_seed(0)
    config = SSLViewsConfig(
        backbone="test_resnet", image_size=32, num_channels=1, num_views=2, projector_dim=16,
        recipe="digits",
    )  # fmt: skip
    defaults = {
        "per_device_train_batch_size": 40,
        "per_device_eval_batch_size": 20,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return SSLViewsTrainer(
        SSLViewsForPreTraining(config),
        SSLViewsTrainingArguments(str(output_dir), **{**defaults, **values}),
        train_dataset=MultiViewDataset(digits.select(range(120))),
        eval_dataset=MultiViewDataset(digits.select(range(120, 160)), epoch=0),
        data_collator=MultiViewCollator(ViewRecipe.for_config(config)),
        probe_train=digits.select(range(100)),
        probe_test=digits.select(range(100, 120)) if rows is None else rows,
    )


def evaluations(history):
    return [entry for entry in history if "eval_loss" in entry]


def test_the_names_of_what_is_logged(digits, tmp_path):
    trainer = new_trainer(tmp_path, digits)
    trainer.train()
    logged = evaluations(trainer.state.log_history)
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert [entry["images_seen"] for entry in logged] == [80, 160, 240]
    for entry in logged:
        assert {f"eval_{name}" for name in METRICS | {"invariance", "redundancy"}} <= entry.keys()
        assert 0 <= entry["eval_knn"] <= 1
        assert 1 < entry["eval_effective_rank"] <= 20
    training = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["images_seen"] for entry in training] == [40, 80, 120, 160, 200, 240]


def test_without_labels_there_is_no_knn(digits, tmp_path):
    bare = digits.select(range(100, 120)).remove_columns("label")
    metrics = new_trainer(tmp_path, digits, bare).evaluate()
    assert METRICS - {"knn"} <= {name.removeprefix("eval_") for name in metrics}
    assert "eval_knn" not in metrics


def test_rows_that_are_too_few_are_not_probed(digits, tmp_path):
    metrics = new_trainer(tmp_path, digits, digits.select([])).evaluate()
    assert "eval_loss" in metrics
    assert "eval_effective_rank" not in metrics


def test_a_new_run_forgets_what_was_said_of_other_weights(digits, tmp_path):
    said = [tmp_path / name for name in ("evaluation.json", "report.html", "trainer_state.json")]
    for path in said:
        path.write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "eval_strategy": "no"}
    new_trainer(tmp_path, digits, **saving).train()
    assert not any(path.exists() for path in said)
    assert (tmp_path / "notes.txt").exists()
    said[0].write_text("{}")
    new_trainer(tmp_path, digits, **saving).train("auto")  # it is finished: the same weights
    assert said[0].exists()


def test_the_time_of_training_leaves_evaluations_out(digits, tmp_path, monkeypatch):
    trainer = new_trainer(tmp_path, digits)
    probe = SSLViewsTrainer.probe

    def slow(self):
        time.sleep(0.3)
        return probe(self)

    monkeypatch.setattr(SSLViewsTrainer, "probe", slow)
    start = time.perf_counter()
    trainer.train()
    passed = time.perf_counter() - start
    seconds = [e["train_seconds"] for e in trainer.state.log_history if "train_seconds" in e]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] < passed - 0.9


def test_and_leaves_checkpoints_out(digits, tmp_path, monkeypatch):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer = new_trainer(tmp_path, digits, **saving)
    save = PublishingTrainer._save_checkpoint

    def slow(self, *args, **kwargs):
        time.sleep(0.5)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(PublishingTrainer, "_save_checkpoint", slow)
    start = time.perf_counter()
    trainer.train()
    passed = time.perf_counter() - start
    seconds = [e["train_seconds"] for e in trainer.state.log_history if "train_seconds" in e]
    assert 0 < seconds[-1] < passed - 0.9


def test_a_resumed_run_goes_on_counting(digits, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    first = new_trainer(tmp_path, digits, **saving)
    first.train()
    for path in tmp_path.glob("checkpoint-6"):
        path.rename(tmp_path / "aside")
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    before = state["log_history"][-1]["train_seconds"]
    resumed = new_trainer(tmp_path, digits, **saving)
    resumed.train("auto")
    later = [e for e in resumed.state.log_history if e["step"] > 4 and "train_seconds" in e]
    assert all(entry["train_seconds"] > before for entry in later)
    assert later[-1]["images_seen"] == 240
    same = [
        {name: value for name, value in entry.items() if name not in SPENT}
        for trainer in (first, resumed)
        for entry in evaluations(trainer.state.log_history)[-1:]
    ]
    assert same[0] == same[1]


@pytest.mark.parametrize("metric", ["eval_lidar", "eval_knn"])
def test_the_best_checkpoint_is_kept(digits, tmp_path, metric):
    options = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}
    trainer = new_trainer(tmp_path, digits, metric_for_best_model=metric, **options)
    trainer.train()
    logged = evaluations(trainer.state.log_history)
    best = max(logged, key=lambda entry: (entry[metric], -entry["step"]))  # of equals the first
    assert trainer.state.best_metric == best[metric]
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best['step']}")
    stored = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(stored[name], value), name


def test_tensorboard_gets_every_name(digits, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    trainer = new_trainer(tmp_path, digits, report_to="tensorboard", max_steps=2)
    trainer.train()
    (written,) = tmp_path.rglob("events.out.tfevents.*")
    events = event_accumulator.EventAccumulator(str(written.parent))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert {f"eval/{name}" for name in METRICS} <= names
    assert {"train/loss", "train/invariance", "train/images_seen", "train/train_seconds"} <= names
    (knn,) = events.Scalars("eval/knn")
    logged = evaluations(trainer.state.log_history)[0]["eval_knn"]
    assert (knn.step, knn.value) == (2, pytest.approx(logged))


def arguments(**values):
    defaults = {
        "eval_strategy": IntervalStrategy.NO,
        "train_batch_size": 100,
        "world_size": 2,
        "max_steps": -1,
        "num_train_epochs": 10,
        "eval_steps": None,
    }
    return SimpleNamespace(**{**defaults, **values})


def plan(args, share=0.04, num_images=10_000, cost=6000):
    plan_evaluations(args, share=share, num_images=num_images, num_views=4, cost=cost)


def test_evaluations_stay_below_a_share_of_the_run():
    args = arguments()
    # 500 steps of 200 images give 4 * 3 * 100,000 passes; 4 % of them are 8 evaluations of 6,000.
    plan(args)
    assert args.eval_strategy == IntervalStrategy.STEPS
    assert args.eval_steps == 63
    assert describe_evaluations(args, WatchArguments()).startswith(
        "evaluated every 63 steps, without test labels"
    )
    often = arguments()
    plan(often, share=1)
    assert often.eval_steps == 25  # 20 evaluations
    by_steps = arguments(max_steps=500, num_train_epochs=99)
    plan(by_steps)
    assert by_steps.eval_steps == 63


@pytest.mark.parametrize(
    ("args", "share", "line"),
    [
        (arguments(), 0, "not evaluated while it trains: evaluation_share is 0"),
        (arguments(num_train_epochs=1), 0.04, "not evaluated while it trains: the run is short"),
        (
            arguments(eval_strategy=IntervalStrategy.EPOCH),
            0.04,
            "evaluated every epoch, without test labels",
        ),
        (arguments(eval_strategy=IntervalStrategy.STEPS, eval_steps=0.1), 0.04, "every 0.1 of the"),
    ],
)
def test_evaluations_that_are_not_planned(args, share, line):
    before = vars(args).copy()
    plan(args, share=share)
    assert vars(args) == before
    assert line in describe_evaluations(args, WatchArguments(share))


class TestWhatIsWatched:
    def choose(self, splits, *, best=False, **flags):
        train, test = splits
        args = SimpleNamespace(load_best_model_at_end=best, metric_for_best_model=None)
        return choose_watched(train, test, WatchArguments(**flags), args)

    def test_training_images_are_held_out_for_it(self, splits):
        watched = self.choose(splits, probe_images=500, eval_images=70)
        assert abs(len(watched.evaluated) - 70) <= 1
        seen = set(watched.compared["index"]) | set(watched.classified["index"])
        assert seen <= set(splits[0]["index"])
        assert abs(len(seen) - 500) <= 1
        assert len(watched.classified) == pytest.approx(len(seen) / 5, abs=1)
        assert watched.num_passes(4) == 4 * len(watched.evaluated) + len(seen) + 4 * 256

    def test_or_test_images_where_that_is_wanted(self, splits):
        watched = self.choose(splits, probe_images=200, probe_test=True)
        assert set(watched.compared["index"]) <= set(splits[0]["index"])
        assert set(watched.classified["index"]) <= set(splits[1]["index"])
        assert (len(watched.compared), len(watched.classified)) == (200, 200)
        args = arguments(eval_strategy=IntervalStrategy.STEPS, eval_steps=7)
        assert "7 steps, with test labels" in describe_evaluations(
            args, WatchArguments(probe_test=True)
        )

    def test_refuses_to_choose_by_test_labels(self, splits):
        with pytest.raises(ValueError, match="by which nothing may be chosen"):
            self.choose(splits, best=True, probe_test=True)
        self.choose(splits, best=True)

    @pytest.mark.parametrize("name", ["probe_images", "eval_images"])
    def test_refuses_to_look_at_nothing(self, splits, name):
        with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
            self.choose(splits, **{name: 0})


@pytest.fixture(scope="module")
def splits():
    return load_train_and_test("digits")


def test_an_interval_alone_is_obeyed():
    args = arguments(eval_steps=7)
    plan(args)
    assert (args.eval_strategy, args.eval_steps) == (IntervalStrategy.STEPS, 7)


def test_a_wrong_share_gets_a_sentence():
    with pytest.raises(ValueError, match=r"evaluation_share must be in \[0, 1\]; got 2"):
        plan(arguments(), share=2)


def pretrain(folder, rows, permute):
    test = rows["test"]
    if permute:
        test = test.remove_columns("label").add_column("label", test["label"][::-1])
        test = test.cast_column("label", rows["train"].features["label"])
    DatasetDict(train=rows["train"], test=test).save_to_disk(folder / "data")
    words = [
        "--backbone", "test_resnet", "--image_size", 32, "--num_views", 2, "--projector_dim", 16,
        "--recipe", "digits", "--per_device_train_batch_size", 40, "--num_train_epochs", 2,
        "--eval_strategy", "steps", "--eval_steps", 2, "--save_strategy", "steps",
        "--save_steps", 2, "--load_best_model_at_end", "--metric_for_best_model", "eval_knn",
    ]  # fmt: skip
    words += ["--dataset", folder / "data", "--output_dir", folder / "run"]
    assert main(["pretrain", *map(str, words)]) == 0
    state = json.loads((folder / "run" / "trainer_state.json").read_text())
    history = [
        {name: value for name, value in entry.items() if name not in SPENT}
        for entry in evaluations(state["log_history"])
    ]
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return (folder / "run" / "model.safetensors").read_bytes(), history, summary


def test_test_labels_choose_no_checkpoint(digits, tmp_path, capsys):
    """Other test labels change the final accuracies, and nothing else of a run."""
    rows = {"train": digits.select(range(120)), "test": digits.select(range(120, 160))}
    rows = {name: part.remove_columns("index") for name, part in rows.items()}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    weights, history, summary = pretrain(tmp_path / "a", rows, permute=False)
    assert len(history) == 3  # every second of 6 steps
    assert all("eval_knn" in entry for entry in history)
    other = pretrain(tmp_path / "b", rows, permute=True)
    assert other[0] == weights
    assert other[1] == history
    accuracies = [s["trained backbone"]["knn"] for s in (summary, other[2])]
    assert accuracies[0] > accuracies[1] + 0.1
