"""Checkpoint folders by themselves: sealing, verifying, and what a wrong one is told."""

import json

import pytest

from ssl_views import checkpoints
from ssl_views.checkpoints import CheckpointError
from ssl_views.trainer_checks import check_processes
from ssl_views.training_args import SSLViewsTrainingArguments

FACTS = {"step": 3, "world_size": 1, "run": {"seed": 1}}


def make(folder, facts=FACTS, without=()):
    folder.mkdir()
    names = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
    for name in (*names, "rng_state.pth", "rng_state_0.pth", "rng_state_1.pth"):
        if name not in without:
            (folder / name).write_text(f"content of {name}")
    checkpoints.seal(folder, facts)
    return folder


def test_what_was_sealed_verifies_and_gives_its_facts(tmp_path):
    manifest = checkpoints.verify(make(tmp_path / "checkpoint-3"))
    assert {name: manifest[name] for name in FACTS} == FACTS
    assert len(manifest["files"]) == 7


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_what_cannot_be_resumed_from_is_not_sealed(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"it holds no {name}, which resuming needs"):
        make(tmp_path / "checkpoint-3", without=(name,))
    assert not (tmp_path / "checkpoint-3" / "MANIFEST.json").exists()


def test_every_process_must_have_written_its_random_state(tmp_path):
    facts = {**FACTS, "world_size": 2}
    make(tmp_path / "checkpoint-3", facts, without=("rng_state.pth",))
    with pytest.raises(CheckpointError, match=r"it holds no rng_state_1\.pth"):
        make(tmp_path / "checkpoint-4", facts, without=("rng_state_1.pth",))


def test_the_name_must_be_that_of_the_step(tmp_path):
    with pytest.raises(CheckpointError, match="it is that of step 3, whatever its name"):
        checkpoints.verify(make(tmp_path / "checkpoint-30"))
    checkpoints.verify(make(tmp_path / "copied"))  # no step in its name
    with pytest.raises(ValueError, match="a checkpoint is named checkpoint-STEP; got 'copied'"):
        checkpoints.step_of(tmp_path / "copied")


@pytest.mark.parametrize(
    "content",
    [
        {"files": {}},
        {"world_size": "two", "files": {}},
        {"world_size": 1, "files": 5},
        {**FACTS, "files": dict.fromkeys(("model.safetensors", "optimizer.pt"), 1)},
    ],
)
def test_a_manifest_without_sense_is_no_manifest(tmp_path, content):
    folder = make(tmp_path / "checkpoint-3")
    (folder / "MANIFEST.json").write_text(checkpoints._rendered({"format": 1, **content}))
    with pytest.raises(CheckpointError, match=r"it cannot be read|it holds no scheduler"):
        checkpoints.verify(folder)


def test_a_file_outside_the_folder_is_not_part_of_it(tmp_path):
    folder = make(tmp_path / "checkpoint-3")
    outside = (folder / "optimizer.pt").rename(tmp_path / "optimizer.pt")
    (folder / "optimizer.pt").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"its optimizer\.pt is missing"):
        checkpoints.verify(folder)


def test_processes_that_were_started_together_must_train_together(tmp_path, monkeypatch):
    args = SSLViewsTrainingArguments(str(tmp_path))
    check_processes(args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"must train together; WORLD_SIZE is 2, and .* make it 1"):
        check_processes(args)


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    path = make(tmp_path / "checkpoint-3") / "MANIFEST.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored))  # the same values in another form
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        checkpoints.verify(path.parent)
