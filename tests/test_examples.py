"""The examples run, at small size."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from transformers import AutoModelForImageClassification

from ssl_views import (
    SSLViewsConfig,
    SSLViewsForPreTraining,
    ViewRecipe,
    export_encoder,
    load_images,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = "--backbone test_resnet --image_size 32 --batch_size 8"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *words):
    """Run an example; a word may be several flags."""
    split = [part for word in words for part in shlex.split(str(word))]
    load(name).main(split)


def encoder_of(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """A folder that holds 500 of the digits."""
    folder = tmp_path_factory.mktemp("digits")
    load_images("digits").select(range(500)).save_to_disk(folder)
    return folder


@pytest.fixture
def digits_model():
    """An untrained model for the digits."""
    torch.manual_seed(1)
    config = SSLViewsConfig(
        backbone="test_resnet", image_size=16, num_channels=1, projector_dim=16, recipe="digits"
    )
    return SSLViewsForPreTraining(config)


def test_the_readme_has_every_example():
    rows = (EXAMPLES / "README.md").read_text()
    commands = re.findall(r"^\|.*\| \[(.+?)\]\(\1\) \| `(.+)` \|$", rows, flags=re.MULTILINE)
    files = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".yaml")]
    assert sorted(name for name, _ in commands) == sorted(files)
    for name, command in commands:
        assert f"examples/{name}" in command
        header = (EXAMPLES / name).read_text().lower()
        assert re.split(" runs/| path", command)[0].lower() in header


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_tells_its_flags(path, capsys):
    with pytest.raises(SystemExit, match="0"):
        load(path.stem).main(["--help"])
    assert "usage" in capsys.readouterr().out


def test_own_images(image_folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "run"
    flags = f"{SMALL} --epochs 2 --num_workers 0 --output_dir {output}"
    run("own_images", image_folder, flags)
    first, *hits = capsys.readouterr().out.split("nearest to ")[1].splitlines()
    assert hits[0] == f"1.000  {first.removesuffix(':')}"
    assert len(hits) == 6
    state = json.loads((output / "checkpoint-6" / "trainer_state.json").read_text())
    evaluations = [entry for entry in state["log_history"] if "eval_loss" in entry]
    assert len(evaluations) == 2
    assert all(0 <= entry["eval_knn"] <= 1 for entry in evaluations)
    assert encoder_of(output / "encoder")(torch.zeros(1, 3, 32, 32)).shape == (1, 96)

    # Again, it only searches.
    known = (output / "index.pt").stat().st_mtime_ns
    example = load("own_images")
    monkeypatch.delattr(example, "pretrain")
    query = image_folder / "dog" / "0.png"
    example.main([str(image_folder), *shlex.split(flags), "--query", str(query)])
    assert f"1.000  {query}" in capsys.readouterr().out.splitlines()[1]
    assert (output / "index.pt").stat().st_mtime_ns == known


def test_few_labels(digits_model, few_digits, tmp_path, capsys):
    digits_model.config.image_size = 8  # probes of few pixels take less time
    digits_model.save_pretrained(tmp_path / "run")
    flags = f"--dataset {few_digits} --shares 0.05 0.2 --num_draws 2"
    run("few_labels", tmp_path / "run", flags)
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[-1].strip() == "20 % of 400 labels"
    cell = r" +([\d.]+)% \(([\d.]+)% to ([\d.]+)%\)"
    found = {}
    for line in lines:
        name, *numbers = re.fullmatch(rf"(\D+?){cell}{cell}", line).groups()
        few, low, high, more, _, _ = found[name] = [float(number) for number in numbers]
        assert low <= few <= high
        assert few < more
    assert list(found) == ["raw pixels", "untrained backbone", "trained backbone"]
    assert found["raw pixels"][0] > 70  # of digits


def test_few_labels_loads_a_run_and_its_encoder(digits_model, tmp_path):
    digits_model.save_pretrained(tmp_path / "run")
    export_encoder(digits_model, tmp_path / "encoder")
    model, encoder = map(load("few_labels").load, (tmp_path / "run", tmp_path / "encoder"))
    recipes = [ViewRecipe.for_config(each.config) for each in (model, encoder)]
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(model.eval()(x).pooler_output, encoder.eval()(x).pooler_output)
    for name in ("image_size", "num_channels", "mean", "std"):
        assert getattr(recipes[0], name) == getattr(recipes[1], name)


def test_few_labels_needs_labels(digits_model, tmp_path, capsys, image_folder):
    for number, path in enumerate(image_folder.rglob("*.png")):
        path.rename(image_folder / f"{number}.png")
    for folder in ("cat", "dog"):
        (image_folder / folder).rmdir()
    digits_model.save_pretrained(tmp_path / "run")
    with pytest.raises(SystemExit, match="2"):
        run("few_labels", tmp_path / "run", f"--dataset {image_folder}")
    assert "have no labels" in capsys.readouterr().err
    folder = export_encoder(digits_model, tmp_path / "encoder")
    with pytest.raises(SystemExit, match="2"):
        run("fine_tune", folder, f"--dataset {image_folder}")
    assert "has no column of classes" in capsys.readouterr().err


def test_fine_tune(digits_model, few_digits, tmp_path, capsys):
    folder = export_encoder(digits_model, tmp_path / "encoder")
    flags = f"--dataset {few_digits} --fraction 0.8 --epochs 8 --batch_size 32 --learning_rate 5e-3"
    run("fine_tune", folder, flags, f"--num_workers 0 --output_dir {tmp_path / 'run'}")
    out = capsys.readouterr().out
    assert "320 labelled images, 100 to evaluate" in out
    before, after = map(float, re.findall(r"([\d.]+)% (?:before|after)", out))
    assert before < 30
    assert after > 40
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert classifier.config.id2label == {i: str(i) for i in range(10)}


def test_segmentation(digits_model, tmp_path, capsys):
    folder = export_encoder(digits_model, tmp_path / "encoder")
    output = tmp_path / "run"
    flags = f"--max_steps 2 --num_canvases 30 --out_indices 1 -1 --output_dir {output}"
    run("segmentation", folder, flags)
    out = capsys.readouterr().out
    found = re.findall(r"(\w+) encoder, frozen: mean IoU ([\d.]+)%", out)
    assert [name for name, _ in found] == ["untrained", "pretrained"]
    assert all(0 <= float(iou) < 50 for _, iou in found)
    assert Image.open(output / "segmentation.png").size == (6 * 64 * 2, 4 * 64 * 2)


def test_segmentation_counts_pixels():
    example = load("segmentation")
    truth = np.arange(11).repeat(4).reshape(11, 2, 2)
    assert example.mean_iou(truth, truth) == 1
    half = truth.copy()
    half[:, 0] = (half[:, 0] + 1) % 11  # of 4 pixels 2 are right; the union has 6
    assert example.mean_iou(half, truth) == pytest.approx(1 / 3)
    digits = [{"image": Image.new("L", (8, 8), 255), "label": 7}]
    pixels, classes = example.make_canvases(digits, 3, seed=0)
    assert set(np.unique(classes)) == {7, 10}
    assert pixels[classes == 7].min() > pixels[classes == 10].mean() + 0.2
    np.testing.assert_array_equal(example.make_canvases(digits, 3, seed=0)[0], pixels)


@pytest.fixture
def tiles(tmp_path):
    """Twenty tiles (24, 20, 5) uint16 in two class folders; band b lies around 1000 * b."""
    rng = np.random.default_rng(0)
    for i in range(20):
        folder = tmp_path / "tiles" / ("field" if i % 2 else "water")
        folder.mkdir(parents=True, exist_ok=True)
        bands = 1000 * np.arange(5) + rng.integers(0, 500, (24, 20, 5))
        np.save(folder / f"{i}.npy", bands.astype(np.uint16))
    return tmp_path / "tiles"


def test_satellite(tiles, tmp_path, capsys):
    output = tmp_path / "run"
    run("satellite", tiles, f"{SMALL} --epochs 1 --output_dir {output}")
    assert "a tile (24, 20, 5) gives features (1, 96)" in capsys.readouterr().out
    assert encoder_of(output / "encoder")(torch.zeros(1, 5, 32, 32)).shape == (1, 96)
    rows = load_images(str(output / "dataset"))
    assert rows.features["label"].names == ["field", "water"]
    image = rows[0]["image"]
    assert image.dtype == np.uint8
    assert image.min() == 0
    assert image.max() == 255
    config = json.loads((output / "checkpoint-2" / "config.json").read_text())
    assert np.abs(np.array(config["recipe_args"]["mean"]) - 0.5).max() < 0.05
    history = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text())[
        "log_history"
    ]
    assert "eval_knn" in history[-1]


def test_satellite_scales_bands_by_what_was_measured(tiles, tmp_path):
    example = load("satellite")
    low, high = np.array([0.0, 10.0]), np.array([100.0, 10.0])
    tile = np.array([[[50, 10], [200, 11]]], dtype=np.uint16)
    np.testing.assert_array_equal(example.to_uint8(tile, low, high), [[[128, 0], [255, 255]]])
    done = tile.astype(np.uint8)
    assert example.to_uint8(done, low, high) is done
    for path in tiles.rglob("*.npy"):
        path.rename(tiles / path.name)
    example.convert(tiles, tmp_path / "unlabelled")
    assert load_images(str(tmp_path / "unlabelled")).column_names == ["image", "index"]
    with pytest.raises(SystemExit, match=r"holds no \.npy files"):
        example.convert(tmp_path / "unlabelled", tmp_path / "none")


def test_pretrained_start(image_folder, tmp_path, capsys, monkeypatch):
    create_model, asked = timm.create_model, []

    def without_download(name, pretrained=False, **kwargs):
        asked.append((name, pretrained))
        return create_model(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", without_download)
    run("pretrained_start", image_folder, f"{SMALL} --epochs 1 --output_dir {tmp_path / 'run'}")
    assert asked[0] == ("test_resnet", True)
    assert not any(pretrained for _, pretrained in asked[1:])  # the check of the encoder
    out = capsys.readouterr().out
    assert re.search(r"^knn: [\d.]+% before, [\d.]+% after$", out, flags=re.MULTILINE)
    assert re.search(r"^effective_rank: [\d.]+ before, [\d.]+ after$", out, flags=re.MULTILINE)
    config = json.loads((tmp_path / "run" / "encoder" / "config.json").read_text())
    expected = timm.get_pretrained_cfg("test_resnet")
    assert config["pretrained_cfg"]["mean"] == list(expected.mean)
    assert config["pretrained_cfg"]["std"] == list(expected.std)


@pytest.mark.slow
def test_several_gpus(image_folder, tmp_path):
    losses = []
    for number, launcher in enumerate(
        ["", "-m torch.distributed.run --standalone --nproc_per_node 2"]
    ):
        output = tmp_path / str(number)
        words = f"{launcher} {EXAMPLES / 'several_gpus.py'} {image_folder} {SMALL} --max_steps 4"
        command = [sys.executable, *shlex.split(words), "--output_dir", str(output)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert f"processes: {number + 1}, images per step: 8" in done.stdout
        losses.append(float(re.search(r"final loss: ([\d.]+)", done.stdout)[1]))
        assert encoder_of(output / "encoder")(torch.zeros(1, 3, 32, 32)).shape == (1, 96)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # float32


def test_several_gpus_shares_the_batch_evenly(image_folder, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit, match="2"):
        run("several_gpus", image_folder, SMALL)
    assert "must be a multiple of 3" in capsys.readouterr().err


def test_stock_trainer(image_folder, tmp_path):
    run("stock_trainer", image_folder, f"{SMALL} --max_steps 2 --output_dir {tmp_path / 'run'}")
    assert (tmp_path / "run" / "encoder" / "config.json").is_file()


def test_loss_in_your_own_loop(capsys, monkeypatch):
    example = load("loss_in_your_own_loop")
    monkeypatch.setattr(example, "load_images", lambda name: load_images(name).select(range(300)))
    example.main(["--epochs", "1"])
    assert "epoch 0: {'invariance'" in capsys.readouterr().out


def test_every_recipe_is_read(tmp_path, image_folder):
    from ssl_views.cli import main

    for path in EXAMPLES.glob("*.yaml"):
        assert "dataset" not in yaml.safe_load(path.read_text())
        small = "--max_steps 1 --per_device_train_batch_size 4 --image_size 16"
        flags = f"--dataset {image_folder} {small}"
        output = ["--output_dir", str(tmp_path / path.stem)]
        assert main(["pretrain", str(path), *shlex.split(flags), *output]) == 0
