"""`ssl-views evaluate`: what it prints and writes, and what it says of data it cannot judge."""

import importlib.util
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, DatasetDict
from PIL import Image
from safetensors.torch import load_file
from transformers import set_seed

from ssl_views import SSLViewsConfig, SSLViewsForPreTraining
from ssl_views.cli import evaluate, main
from ssl_views.data.sources import load_images


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").shuffle(seed=0).select(range(200)).remove_columns("index")


@pytest.fixture
def untrained(tmp_path):
    set_seed(0)
    config = SSLViewsConfig(
        backbone="test_resnet", image_size=32, num_channels=1, num_views=2, recipe="digits"
    )
    SSLViewsForPreTraining(config).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def data(digits, tmp_path):
    DatasetDict(train=digits.select(range(150)), test=digits.select(range(150, 200))).save_to_disk(
        tmp_path / "data"
    )
    return tmp_path / "data"


def run(capsys, *words):
    capsys.readouterr()
    code = main(["evaluate", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.titles, self.pictures, self._inside = [], 0, False
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self._inside = self._inside or tag == "h3"
        self.pictures += tag == "img"

    def handle_data(self, data):
        if self._inside and data.strip():
            self.titles.append(data)

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "h3"


def test_metrics_and_report(capsys, untrained, data):
    words = (untrained, "--dataset", data, "--k", 5, "--temperature", 0.2)
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "150 images to learn from, 50 to evaluate, one clean view; kNN: k = 5, temp" in out
    stored = json.loads((untrained / "evaluation.json").read_text())
    assert stored["protocol"] == {
        "features": "one clean view", "feature_views": 1, "precision": "float32", "k": 5,
        "temperature": 0.2, "compared_views": 4, "view_images": 50, "dataset": str(data),
        "split": "train", "test_split": None,
    }  # fmt: skip
    assert stored["data"] is None  # a path says nothing to others
    assert len(stored["eigenspectrum"]) == 50  # of 96 features, as many as images
    assert stored["eigenspectrum"] == sorted(stored["eigenspectrum"], reverse=True)
    features = [load_file(p)["features"] for p in (untrained / "features").iterdir()]
    test = min(features, key=len)
    expected = np.linalg.eigvalsh(np.cov(test.double().T.numpy(), bias=True))[::-1][:50]
    np.testing.assert_allclose(stored["eigenspectrum"], expected, rtol=1e-5, atol=1e-9)
    assert f"{100 * stored['knn']:.1f} %" in out
    assert f"{100 * stored['linear_probe']:.1f} %" in out
    assert set(stored["few_labels"]) == {"0.1"}  # one in a hundred is not one of each class
    few = stored["few_labels"]["0.1"]
    assert few["low"] < few["mean"] < few["high"]
    assert few["n"] == 5
    assert f"10 % of the labels: {100 * few['mean']:.1f} %" in out
    assert f"LiDAR {stored['lidar']:.1f}" in out
    page = Page(untrained / "report.html")
    assert page.titles == ["Nearest images", "Views", "Eigenspectrum", "Map", "Confusion"]
    assert page.pictures == 5
    assert "No pictures of the training: a run must hold trainer_state.json" in page.text


def test_features_are_kept_in_the_run(capsys, untrained, data, monkeypatch):
    words = (untrained, "--dataset", data, "--report", "false")
    first = run(capsys, *words)
    assert len(list((untrained / "features").iterdir())) == 2
    monkeypatch.setattr(evaluate, "view_representations", lambda *a, **k: torch.randn(2, 9, 4))
    extracted = []
    monkeypatch.setattr(
        "ssl_views.evaluation.feature_sets.features_and_places", lambda *a: extracted.append(a)
    )
    again = run(capsys, *words, "--k", 3)
    assert (first[0], again[0]) == (0, 0)
    assert not extracted
    assert not (untrained / "report.html").exists()


@pytest.mark.slow
def test_averaged_features_have_files_of_their_own(capsys, untrained, data):
    words = (untrained, "--dataset", data, "--feature_cache", "none", "--precision", "bfloat16")
    assert run(capsys, *words, "--report", "false")[0] == 0
    one = (untrained / "evaluation.json").read_text()
    code, out, _ = run(capsys, *words, "--feature_views", 3)
    assert code == 0
    assert "50 to evaluate, mean of 3 views; kNN" in out
    averaged = json.loads((untrained / "evaluation_mean_of_3_views.json").read_text())
    assert averaged["protocol"]["features"] == "mean of 3 views"
    assert averaged["protocol"]["precision"] == "bfloat16"
    assert (untrained / "report_mean_of_3_views.html").is_file()
    assert (untrained / "evaluation.json").read_text() == one
    assert not (untrained / "features").exists()


@pytest.mark.slow
def test_a_trained_run_has_pictures_of_its_training(capsys, data, tmp_path):
    words = ["--dataset", data, "--output_dir", tmp_path / "run", "--backbone", "test_resnet"]
    words += ["--num_views", 2, "--per_device_train_batch_size", 50, "--num_train_epochs", 4]
    words += ["--recipe", "digits", "--image_size", 32, "--projector_dim", 8, "--logging_steps", 2]
    words += ["--eval_strategy", "epoch", "--save_strategy", "no"]
    assert main(["pretrain", *map(str, words)]) == 0
    assert run(capsys, tmp_path / "run", "--dataset", data)[0] == 0
    page = Page(tmp_path / "run" / "report.html")
    assert page.titles[2:4] == ["Loss and its terms", "Effective rank"]
    assert "on 600 images in" in page.text  # 4 epochs of 3 steps of 50


def test_without_matplotlib_there_are_numbers(capsys, untrained, data, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    code, out, _ = run(capsys, untrained, "--dataset", data)
    assert code == 0
    assert 'for report.html with pictures: pip install "ssl-views[plots]"' in out
    assert (untrained / "evaluation.json").is_file()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda rows: rows.remove_columns("label"), "the training images have no labels"),
        (
            lambda rows: rows.map(
                lambda row, i: {"label": None if i < 3 else row["label"]}, with_indices=True
            ),
            "3 of 150 training images have no label",
        ),
        (
            lambda rows: rows.map(lambda row: {"label": 7}),
            "all 150 training images have one label, '7'",
        ),
    ],
)
def test_labels_that_say_nothing(capsys, untrained, digits, tmp_path, change, why):
    changed = change(digits.select(range(150)))
    test = digits.select(range(150, 200))
    if "label" not in changed.column_names:
        test = test.remove_columns("label")
    DatasetDict(train=changed, test=test).save_to_disk(tmp_path / "data")
    code, out, _ = run(capsys, untrained, "--dataset", tmp_path / "data")
    assert code == 0
    assert f"50 images, one clean view; no accuracies, for {why}" in out
    stored = json.loads((untrained / "evaluation.json").read_text())
    assert stored["knn"] is None
    assert stored["few_labels"] is None
    assert stored["effective_rank"] > 1
    page = Page(untrained / "report.html")
    assert "Confusion" not in page.titles
    assert {"Nearest images", "Map"} <= set(page.titles)
    assert "training images" in page.text


def test_class_names_that_differ(capsys, untrained, digits, tmp_path):
    train, test = digits.select(range(150)), digits.select(range(150, 200))
    names = [*"012345678", "nine"]
    test = test.remove_columns("label").add_column("label", test["label"])
    test = test.cast_column("label", ClassLabel(names=names))
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "data")
    code, _, err = run(capsys, untrained, "--dataset", tmp_path / "data")
    assert code == 2
    assert "class names" in err
    assert "nine" in err
    assert "Traceback" not in err


def test_a_run_that_cannot_be_written_gets_a_sentence(capsys, untrained, data, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    code, _, err = run(capsys, untrained, "--dataset", data)
    assert code == 2
    assert "results are written into the run's folder, which must allow it; got" in err
    assert "features:" not in err  # nothing was extracted


def test_checkpoints_of_a_run_without_a_model_are_named(capsys, untrained, data):
    untrained.rename(untrained.with_name("checkpoint-7"))
    untrained.mkdir()
    untrained.with_name("checkpoint-7").rename(untrained / "checkpoint-7")
    code, _, err = run(capsys, untrained, "--dataset", data)
    assert code == 2
    assert f"Its newest checkpoint is {str(untrained / 'checkpoint-7')!r}: give that." in err


def test_images_of_a_folder_with_hostile_names(capsys, untrained, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("<b>&\"'", "$x_$ \N{RIGHT-TO-LEFT OVERRIDE}y"):  # noise: they are confused
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    code, _, _ = run(capsys, untrained, "--dataset", tmp_path / "images")
    assert code == 0
    text = (untrained / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--feature_views", 0], "feature_views must be at least 1; got 0"),
        (["--precision", "int8"], "precision must be one of"),
        (["--k", 0], "k must be"),
        (["--batch_size", 0], "batch_size and num_threads must be at least 1; got 0"),
        (["--feature_cache", ""], "feature_cache must be a folder, auto or none"),
        (["--temperature", 0], "temperature must be"),
    ],
)
def test_wrong_flags_get_a_sentence(capsys, untrained, data, words, message):
    code, _, err = run(capsys, untrained, "--dataset", data, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
