"""`push_to_hub` in training publishes encoders, and disturbs nothing."""

import logging
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load

from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    SSLViewsConfig,
    SSLViewsForPreTraining,
    SSLViewsTrainer,
    SSLViewsTrainingArguments,
    ViewRecipe,
    export,
    publishing_trainer,
)
from ssl_views import hub as hub_module
from ssl_views.card_facts import CardDetails
from ssl_views.cli import main
from ssl_views.encoder_folder import ENCODER_FILES
from ssl_views.hub import PublishError

REPO = "tester/mine"


def make(folder, **values):
    config = SSLViewsConfig(
        backbone="test_resnet", image_size=32, num_views=2, projector_dim=8, recipe="cifar"
    )
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    options = {
        "per_device_train_batch_size": 8, "max_steps": 4, "save_strategy": "steps",
        "save_steps": 2, "disable_tqdm": True, "use_cpu": True, "view_threads": 0, **values,
    }  # fmt: skip
    return SSLViewsTrainer(
        SSLViewsForPreTraining(config),
        SSLViewsTrainingArguments(str(folder), **options),
        train_dataset=MultiViewDataset([{"image": image} for image in pixels]),
        eval_dataset=MultiViewDataset([{"image": image} for image in pixels], epoch=0),
        data_collator=MultiViewCollator(ViewRecipe.for_config(config), 0),
    )


def pushing(folder, **values):
    return make(folder, push_to_hub=True, hub_model_id=REPO, **values)


def backbone_of(trainer):
    return trainer.model.ssl_views.backbone.state_dict()


def assert_published(hub, trainer):
    stored = load(hub.files(REPO)["model.safetensors"])
    assert stored.keys() == backbone_of(trainer).keys()
    assert all(torch.equal(stored[name], value) for name, value in backbone_of(trainer).items())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def test_every_save_publishes_an_encoder_and_nothing_else(hub, tmp_path):
    trainer = pushing(tmp_path, hub_always_push=True)
    trainer.train()
    trainer.save_model()
    assert_published(hub, trainer)
    commits = hub.repositories[REPO]
    assert [m for m in commits.messages.values() if m.startswith("Training")] == [
        "Training in progress, step 2",
        "Training in progress, step 4",
    ]
    for files in commits.commits.values():
        assert set(files) <= {*ENCODER_FILES, ".gitattributes"}
        assert not any(hub.token.encode() in file.content for file in files.values())
    card = hub.files(REPO)["README.md"].decode()
    assert f'"hf-hub:{REPO}"' in card
    assert "not evaluated" in card
    assert str(tmp_path) not in card
    assert hub.token not in "".join(p.read_text() for p in tmp_path.rglob("*.json"))


def test_at_the_end_only(hub, tmp_path):
    trainer = pushing(tmp_path, hub_strategy="end", hub_private_repo=True)
    assert hub.repositories[REPO].private
    trainer.train()
    assert "model.safetensors" not in hub.files(REPO)
    trainer.save_model()
    assert_published(hub, trainer)


def test_a_failure_changes_no_weight_and_is_reported(hub, tmp_path, caplog):
    quiet = make(tmp_path / "quiet")
    quiet.train()
    trainer = pushing(tmp_path / "pushing", hub_always_push=True)
    hub.fail("commit", 403)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    failures = [r.message for r in caplog.records if "is not on the Hub" in r.message]
    assert len(failures) == 2
    assert failures[0].startswith("The encoder of step 2 is not on the Hub: could not")
    for name, value in backbone_of(quiet).items():
        assert torch.equal(value, backbone_of(trainer)[name]), name
    with pytest.raises(PublishError, match="Nothing was published"):
        trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_slow_push_is_not_queued_behind(hub, tmp_path, monkeypatch):
    messages, go_on = [], threading.Event()

    def slow(*args, message, **kwargs):
        messages.append(message)
        assert go_on.wait(30)

    monkeypatch.setattr(publishing_trainer, "publish_encoder", slow)
    trainer = pushing(tmp_path, max_steps=6)
    finish = trainer._finish_current_push

    def release_and_finish():
        go_on.set()
        finish()

    trainer._finish_current_push = release_and_finish
    trainer.train()
    assert messages == ["Training in progress, step 2"]
    trainer.push_to_hub()
    assert messages[1:] == ["End of training"]


def test_a_mistake_of_ours_is_told_and_training_ends_well(hub, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("a mistake")

    told = []
    monkeypatch.setattr(threading, "excepthook", lambda thrown: told.append(thrown.exc_type))
    monkeypatch.setattr(publishing_trainer, "publish_encoder", broken)
    trainer = pushing(tmp_path, hub_always_push=True)
    trainer.train()
    assert told == [TypeError, TypeError]
    assert trainer.state.global_step == 4


def test_random_numbers_of_training_are_not_touched(hub, tmp_path, monkeypatch):
    """No model is built beside the training: that would draw, or set back, its random numbers."""
    checked = []
    check = export.check_encoder

    def noting(folder):
        checked.append(threading.current_thread())
        return check(folder)

    for module in (export, hub_module):
        monkeypatch.setattr(module, "check_encoder", noting)
    pushing(tmp_path, hub_always_push=True).train()
    assert checked == [threading.main_thread()] * 2


def test_sigterm_saves_and_publishes_nothing_more(hub, tmp_path, monkeypatch):
    trainer = pushing(tmp_path, save_steps=100)
    started = []
    monkeypatch.setattr(trainer, "_start_push", lambda: started.append(trainer.state.global_step))
    trainer._termination.on_step_begin = lambda *args, **kwargs: setattr(
        trainer._termination, "told", True
    )
    with pytest.raises(SystemExit, match="75"):
        trainer.train()
    assert (tmp_path / "checkpoint-1" / "MANIFEST.json").is_file()
    assert started == []


def test_the_best_weights_say_which_they_are(hub, tmp_path):
    trainer = pushing(
        tmp_path, hub_strategy="end", load_best_model_at_end=True, eval_strategy="steps",
        eval_steps=2, metric_for_best_model="eval_loss", per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer.train()
    trainer.state.best_global_step = 2  # whichever was the best
    trainer.save_model()
    assert "the weights are the best ones, of step 2" in hub.files(REPO)["README.md"].decode()


def test_details_are_kept_beside_the_name_of_the_repository(hub, tmp_path):
    trainer = pushing(tmp_path, hub_strategy="end")
    trainer.push_to_hub(details=CardDetails(license="mit"))
    card = hub.files(REPO)["README.md"].decode()
    assert f'"hf-hub:{REPO}"' in card
    assert "license: mit" in card


def test_what_cannot_be_exported_at_the_end_is_an_error_of_publishing(hub, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    trainer = pushing(tmp_path, hub_strategy="end")
    monkeypatch.setattr(publishing_trainer, "export_encoder", full)
    with pytest.raises(PublishError, match="could not be: No space left on device"):
        trainer.push_to_hub()


def test_what_cannot_be_exported_is_logged(hub, tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    trainer = pushing(tmp_path)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(publishing_trainer, "export_encoder", full)
        trainer.train()
    assert "The encoder of step 4 is not published: No space left" in caplog.text
    assert (tmp_path / "checkpoint-4" / "MANIFEST.json").is_file()


def test_a_login_that_fails_is_noticed_before_training(hub, tmp_path):
    hub.fail("whoami", 401)
    with pytest.raises(PublishError, match="hf auth login"):
        pushing(tmp_path)


def test_a_token_has_no_place_in_arguments(hub, tmp_path):
    trainer = pushing(tmp_path)
    with pytest.raises(ValueError, match="token must be left out; the login of the Hub is used"):
        trainer.init_hf_repo(token="hf_x")


class TestCommand:
    words = (
        "pretrain", "--backbone", "test_resnet", "--per_device_train_batch_size", "16",
        "--num_views", "2", "--max_steps", "2", "--image_size", "32",
    )  # fmt: skip

    def run(self, images, output, *more):
        return main([*self.words, "--dataset", str(images), "--output_dir", str(output), *more])

    def test_it_publishes(self, hub, image_folder, tmp_path, capsys):
        flags = ("--push_to_hub", "true", "--hub_model_id", REPO, "--hub_strategy", "end")
        assert self.run(image_folder, tmp_path / "run", *flags) == 0
        assert f"published and verified: {hub.url}/{REPO}" in capsys.readouterr().out
        assert set(hub.files(REPO)) >= {"config.json", "model.safetensors", "README.md"}

    def test_a_failure_is_said_at_the_end_and_in_the_exit_code(
        self, hub, image_folder, tmp_path, capsys
    ):
        hub.fail("commit", 500)
        flags = ("--push_to_hub", "true", "--hub_model_id", REPO, "--hub_strategy", "end")
        assert self.run(image_folder, tmp_path / "run", *flags) == 1
        captured = capsys.readouterr()
        assert "Next:" in captured.out
        assert "trained backbone" in captured.out
        assert "the run is saved, but was not published" in captured.out
        assert "Nothing was published" in captured.err.splitlines()[-1]
        assert (tmp_path / "run" / "model.safetensors").is_file()
        hub.heal()  # the command again has nothing to train, and might replace a better card
        assert self.run(image_folder, tmp_path / "run", *flags) == 0
        assert "nothing was trained, so nothing is published" in capsys.readouterr().out
        assert hub.files(REPO) == {}


@pytest.mark.slow
@pytest.mark.parametrize("breaks", [False, True])
def test_of_several_processes_one_publishes(hub, image_folder, tmp_path, breaks):
    if breaks:
        hub.fail("POST .*/commit/", 403)
    flags = ("--push_to_hub", "true", "--hub_model_id", REPO, "--save_strategy", "steps",
             "--save_steps", "1", "--hub_always_push", "true")  # fmt: skip
    words = [*TestCommand.words, "--dataset", image_folder, "--output_dir", tmp_path / "run"]
    words[words.index("16")] = "8"
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
    ]
    result = subprocess.run(
        [*launch, "ssl_views", *map(str, words), *flags],
        env=hub.environment(tmp_path / "home"), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (result.returncode != 0) == breaks, result.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert sum(path.endswith("/repos/create") for _, path in hub.requests) == 1
    if breaks:
        assert "Nothing was published" in result.stderr
    else:
        messages = list(hub.repositories[REPO].messages.values())
        assert [m for m in messages if m.startswith("Training")] == [
            "Training in progress, step 1",
            "Training in progress, step 2",
        ]
