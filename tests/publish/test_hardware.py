"""What a run was computed on is written beside it, and is no part of what makes runs the same."""

import getpass
import json
import platform
import socket
import sys

import pytest
import timm
import torch
import transformers

import ssl_views
from ssl_views import (
    MultiViewCollator,
    MultiViewDataset,
    SSLViewsConfig,
    SSLViewsForPreTraining,
    ViewRecipe,
    hardware,
)
from ssl_views.checkpoints import read_manifest
from ssl_views.data.sources import load_images
from ssl_views.evaluation.history import RunHistory
from ssl_views.hardware import describe_hardware
from ssl_views.trainer import SSLViewsTrainer
from ssl_views.training_args import SSLViewsTrainingArguments


def trainer_in(folder, **values):
    torch.manual_seed(0)
    config = SSLViewsConfig(
        backbone="test_resnet", image_size=32, num_channels=1, num_views=2, projector_dim=8,
        recipe="digits",
    )  # fmt: skip
    values = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps", **values}
    args = SSLViewsTrainingArguments(str(folder), per_device_train_batch_size=8, **values)
    rows = load_images("digits").select(range(32))
    model = SSLViewsForPreTraining(config)
    collator = MultiViewCollator(ViewRecipe.for_config(config))
    return SSLViewsTrainer(
        model, args, train_dataset=MultiViewDataset(rows), data_collator=collator
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = trainer_in(folder)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return folder


def test_it_names_device_processes_and_versions():
    found = describe_hardware(3)
    assert found["processes"] == 3
    assert found["versions"] == {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "transformers": transformers.__version__,
        "ssl_views": ssl_views.__version__,
    }
    json.dumps(found)


def test_a_processor_is_named_by_its_model(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Fast \x1b[31mCPU\nmodel name\t: Other\n")
    monkeypatch.setattr(hardware, "_CPU_INFO", info)
    found = describe_hardware(1, torch.device("cpu"))
    assert found["device"] == r"Fast \x1b[31mCPU"
    assert (found["kind"], found["num_devices"]) == ("cpu", hardware._usable_cores())
    info.write_text("model name : " + "x" * 500)
    assert len(describe_hardware(1, torch.device("cpu"))["device"]) == 100
    monkeypatch.setattr(hardware, "_CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert describe_hardware(1, torch.device("cpu"))["device"] == platform.machine()


def test_accelerators_are_counted_by_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.type}")
    found = describe_hardware(8, torch.device("cuda", 1))
    assert (found["kind"], found["device"], found["num_devices"]) == ("cuda", "GPU cuda", 8)
    assert describe_hardware(1, torch.device("mps"))["device"] == "mps"


def test_a_run_and_its_checkpoints_have_it(run):
    stored = json.loads((run / "hardware.json").read_text())
    assert stored == describe_hardware(1, torch.device("cpu"))
    assert read_manifest(run / "checkpoint-2")["hardware"] == stored
    assert not (run / "checkpoint-2" / "hardware.json").exists()
    assert RunHistory.read(run).hardware == stored
    assert RunHistory.read(run / "checkpoint-1").hardware == stored
    (run / "hardware.json").unlink()
    assert RunHistory.read(run).hardware == stored  # of the manifest


def test_it_is_no_part_of_the_record(run, monkeypatch):
    record = json.loads((run / "run.json").read_text())
    assert "hardware" not in record
    monkeypatch.setattr(hardware, "_processor", lambda: "another machine")
    trainer = trainer_in(run)
    trainer.train(resume_from_checkpoint=True)  # refuses a run whose record differs
    assert trainer.state.global_step == 2
    assert trainer._record() == record


def test_it_names_no_host_user_or_path(run):
    text = json.dumps(describe_hardware(1))
    for name in (f'"{socket.gethostname()}"', f'"{getpass.getuser()}"', str(run), sys.prefix):
        assert name not in text


def test_an_older_run_has_none(tmp_path):
    state = {"global_step": 1, "max_steps": 1, "log_history": []}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert RunHistory.read(tmp_path).hardware is None
