"""The examples run, at small size."""

import importlib.util
from pathlib import Path

import yaml

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stock_trainer(image_folder, tmp_path, capsys):
    words = [
        "--backbone",
        "test_resnet",
        "--image_size",
        "32",
        "--batch_size",
        "8",
        "--max_steps",
        "2",
    ]
    load("stock_trainer").main([str(image_folder), *words, "--output_dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "encoder" / "config.json").is_file()


def test_loss_in_your_own_loop(capsys):
    load("loss_in_your_own_loop").main(["--epochs", "1"])
    assert "epoch 0: {'invariance'" in capsys.readouterr().out


def test_every_recipe_is_read(tmp_path, image_folder, capsys):
    from ssl_views.cli import main

    for path in EXAMPLES.glob("*.yaml"):
        assert "dataset" not in yaml.safe_load(path.read_text())
        words = [
            "--dataset",
            str(image_folder),
            "--max_steps",
            "1",
            "--per_device_train_batch_size",
            "4",
        ]
        assert main(["pretrain", str(path), *words, "--output_dir", str(tmp_path / path.stem)]) == 0
