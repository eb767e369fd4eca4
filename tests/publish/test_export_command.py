"""`ssl-views export`: what it says, and that the card says what the run and the flags say."""

import json
import re

import pytest
import timm
import torch
from datasets import DatasetDict
from huggingface_hub import ModelCard
from PIL import Image

from ssl_views.cli import main
from ssl_views.data.sources import load_images
from ssl_views.evaluation.history import RunHistory

SMALL = [
    "--max_steps", "2", "--per_device_train_batch_size", "16", "--backbone", "test_resnet",
    "--recipe", "digits", "--image_size", "32", "--projector_dim", "8", "--num_views", "2",
    "--evaluation_share", "0", "--save_strategy", "steps", "--save_steps", "1",
]  # fmt: skip


def run(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "secret name"
    rows = load_images("digits").remove_columns("index")
    parts = DatasetDict(train=rows.select(range(80)), test=rows.select(range(80, 120)))
    parts.save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    words = ["--dataset", str(data), "--output_dir", str(folder)]
    assert main(["pretrain", *SMALL, *words]) == 0
    return folder


@pytest.fixture(scope="module")
def evaluated(data, trained):
    """The evaluation of the run; the fixture leaves the run as it was."""
    words = ["--dataset", str(data), "--report", "false", "--feature_cache", "none"]
    assert main(["evaluate", str(trained), *words]) == 0
    text = (trained / "evaluation.json").read_text()
    (trained / "evaluation.json").unlink()
    return text


def test_without_evaluation_and_details(capsys, trained, tmp_path):
    encoder = tmp_path / "encoder"
    code, out, _ = run(capsys, "export", trained, encoder)
    assert code == 0
    assert f"{encoder} holds test_resnet: 0.4 M parameters, 96 features, input 1 x 32 x 32" in out
    said = "licence (--license), training images (--data), limits (--limits)\n"
    assert f"not stated in the card: {said}" in out
    assert "not evaluated, as the card says" in out
    assert f"evaluate {trained} --dataset IMAGES" in out
    assert f'timm.create_model("local-dir:{encoder}", pretrained=True)' in out
    assert f"publish {encoder} USER/NAME" in out
    for path in encoder.iterdir():
        assert re.search(rf"{path.name} +{path.stat().st_size:,} bytes", out)
    timm.create_model(f"local-dir:{encoder}", pretrained=True)
    text = ModelCard.load(encoder / "README.md").text
    assert "This encoder was not evaluated." in text
    assert "| Steps | 2 |" in text
    assert "| Images seen | 32 |" in text
    assert "| Seed | 42 |" in text
    device = json.loads((trained / "hardware.json").read_text())["device"]
    assert device.split("(")[0] in text
    assert str(trained.parent) not in text


def test_flags_and_evaluation_are_in_the_card(capsys, trained, evaluated, tmp_path):
    (trained / "evaluation.json").write_text(evaluated)
    code, out, _ = run(
        capsys, "export", trained, tmp_path / "encoder", "--license", "mit", "--data", "Scans.",
        "--datasets", "user/one", "user/two", "--evaluation_data", "other scans", "--title",
        "me/encoder", "--limits", "None known.",
    )  # fmt: skip
    (trained / "evaluation.json").unlink()
    assert code == 0
    assert "not stated" not in out
    metrics = json.loads(evaluated)
    card = ModelCard.load(tmp_path / "encoder" / "README.md")
    assert f"evaluated: {len(card.data.eval_results)} metrics are in the card" in out
    assert "publish" in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith("me/encoder")
    assert card.data.license == "mit"
    assert card.data.datasets == ["user/one", "user/two"]
    assert card.data.eval_results[0].metric_value == round(metrics["knn"], 6)
    assert card.data.eval_results[0].dataset_name == "other scans"
    for text in ("Scans.", "other scans", "None known.", "# me/encoder", "hf-hub:me/encoder"):
        assert text in card.text
    assert f"{100 * metrics['knn']:.1f} %" in card.text


def test_evaluation_images_that_nobody_knows_are_asked_for(capsys, trained, evaluated, tmp_path):
    (trained / "evaluation.json").write_text(evaluated)
    code, out, _ = run(capsys, "export", trained, tmp_path / "encoder", "--datasets", "a/b")
    (trained / "evaluation.json").unlink()
    assert code == 0
    assert "secret" in evaluated
    assert "secret" not in (tmp_path / "encoder" / "README.md").read_text()
    assert "licence (--license), evaluation images (--evaluation_data), limits (--limits)\n" in out


def test_a_checkpoint_says_that_training_went_on(capsys, trained, tmp_path):
    code, _, _ = run(capsys, "export", trained / "checkpoint-1", tmp_path / "encoder")
    assert code == 0
    text = ModelCard.load(tmp_path / "encoder" / "README.md").text
    assert "| Steps | 1 of 2 |" in text
    assert "The training had not ended" in text
    assert RunHistory.read(trained).hardware["device"].split("(")[0] in text  # of the manifest


def test_wrong_words_get_a_sentence(capsys, trained, tmp_path):
    for words, sentence in (
        (["--datasets", "../x"], "datasets must be Hub ids such as 'user/name'; got '../x'"),
        (["--license", " "], "license must say something; got ' '. Leave it out."),
        (["--licence", "mit"], "has no argument '--licence'. Did you mean '--license'?"),
    ):
        code, _, err = run(capsys, "export", trained, tmp_path / "encoder", *words)
        assert code == 2
        assert sentence in err
        assert not (tmp_path / "encoder").exists()


def test_a_damaged_evaluation_is_not_published(capsys, trained, evaluated, tmp_path):
    (trained / "evaluation.json").write_text(json.dumps({**json.loads(evaluated), "knn": "high"}))
    code, _, err = run(capsys, "export", trained, tmp_path / "encoder")
    (trained / "evaluation.json").unlink()
    assert code == 2
    assert "of this one 'high' is none. Run ssl-views evaluate again." in err
    assert not (tmp_path / "encoder").exists()


def test_what_the_card_says_to_do_works(capsys, trained, tmp_path):
    assert run(capsys, "export", trained, tmp_path / "encoder")[0] == 0
    text = ModelCard.load(tmp_path / "encoder" / "README.md").text
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    found = []
    for block in blocks:
        names = {"image": Image.new("L", (40, 50), 90)}
        exec(block.replace("THIS_FOLDER", str(tmp_path / "encoder")), names)
        found.append(names)
    by_timm, by_auto = (names["features"].detach() for names in found[:2])
    assert by_timm.shape == (1, 96)
    torch.testing.assert_close(by_auto, by_timm, atol=1e-5, rtol=1e-3)
    assert found[2]["model"].config.backbone == "test_resnet"
    maps = found[2]["backbone"](torch.zeros(1, 1, 32, 32)).feature_maps
    assert [x.shape[1] for x in maps] == found[2]["backbone"].channels
