"""The commands, at small size, and what they say about wrong input."""

import json

import numpy as np
import pytest
import yaml
from datasets import Array3D, Dataset, Features
from PIL import Image

from ssl_views.cli import COMMANDS, main

SMALL = ["--max_steps", "2", "--per_device_train_batch_size", "16", "--backbone", "test_resnet"]


def run(capsys, *words):
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["pretrain", *SMALL, "--output_dir", str(output_dir)]) == 0
    return output_dir


def test_pretrain_compares_and_says_what_is_next(capsys, tmp_path):
    code, out, _ = run(capsys, "pretrain", *SMALL, "--output_dir", tmp_path / "run")
    assert code == 0
    for line in (
        "raw pixels",
        "untrained backbone",
        "trained backbone",
        "kNN",
        "linear probe",
        "effective rank",
    ):
        assert line in out
    assert "1,438 images from digits, 359 others to evaluate" in out
    assert "1,438 images to learn from, 359 to evaluate" in out
    assert f"evaluate {tmp_path / 'run'} --dataset digits" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["raw pixels"]["knn"] > 0.9
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_export(capsys, trained_run, tmp_path):
    code, out, _ = run(capsys, "export", trained_run, tmp_path / "encoder")
    assert code == 0
    assert f'timm.create_model("local-dir:{tmp_path / "encoder"}", pretrained=True)' in out


def test_preview_draws_a_grid(capsys, image_folder, tmp_path):
    words = ["--dataset", image_folder, "--num_images", 3, "--num_views", 5, "--image_size", 64]
    code, out, _ = run(capsys, "preview", *words, "--output", tmp_path / "deep" / "views.png")
    assert code == 0
    with Image.open(tmp_path / "deep" / "views.png") as picture:
        assert picture.size == (6 * 132 + 4, 3 * 132 + 16)  # one column per view, one for the image
    assert "3 images, 5 views per image, 3 x 64 x 64, recipe cifar" in out


def test_a_folder_without_labels(capsys, tmp_path, image_folder):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))):
        path.rename(flat / f"{i}.png")
    code, out, _ = run(
        capsys, "pretrain", "--dataset", flat, *SMALL, "--output_dir", tmp_path / "run"
    )
    assert code == 0
    assert "no accuracies, for the training images have no labels" in out


def test_yaml_and_flags(capsys, tmp_path, image_folder):
    settings = {
        "dataset": str(image_folder),
        "backbone": "test_resnet",
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "num_views": 3,
        "projector_hidden_dims": [8, 8],
        "projector_dim": 4,
        "learning_rate": "1e-3",
        "recipe_args": {"crop_scale": [0.5, 1.0]},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    code, out, _ = run(
        capsys,
        "pretrain",
        tmp_path / "run.yaml",
        "--num_views",
        2,
        "--loss_args",
        '{"all_pairs": true}',
    )
    assert code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["num_views"] == 2
    assert config["projector_hidden_dims"] == [8, 8]
    assert config["recipe_args"] == {"crop_scale": [0.5, 1.0]}
    assert config["loss_args"] == {"all_pairs": True}
    assert "2 views per image" in out


def test_fraction_and_streaming(capsys, tmp_path, image_folder):
    words = ["pretrain", "--dataset", image_folder, "--max_steps", 2, "--backbone", "test_resnet"]
    words += ["--per_device_train_batch_size", 8, "--output_dir", tmp_path / "run"]
    code, out, _ = run(capsys, *words, "--fraction", 0.5)
    assert code == 0
    assert "12 images from" in out
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "data.images: 12 -> 24" in err
    words += ["--streaming", "--save_strategy", "no", "--output_dir", tmp_path / "stream"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "a stream of images from" in out


def test_five_bands(capsys, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 5), dtype=np.uint8)
    features = Features({"image": Array3D((32, 32, 5), "uint8")})
    Dataset.from_dict({"image": list(pixels)}, features=features).save_to_disk(tmp_path / "bands")
    words = ["--dataset", tmp_path / "bands", "--num_views", 2]
    code, out, _ = run(capsys, "pretrain", *words, *SMALL, "--output_dir", tmp_path / "run")
    assert code == 0
    assert "5 x 32 x 32" in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe_args"]["mean"] == pytest.approx([0.5] * 5, abs=0.02)  # measured
    assert run(capsys, "export", tmp_path / "run", tmp_path / "encoder")[0] == 0
    picture = tmp_path / "views.png"
    assert run(capsys, "preview", *words, "--output", picture)[0] == 0


def test_photographs(capsys, photos, tmp_path):
    words = [
        "--dataset",
        photos,
        "--max_steps",
        1,
        "--per_device_train_batch_size",
        4,
        "--num_views",
        2,
    ]
    code, out, _ = run(
        capsys, "pretrain", *words, "--backbone", "test_resnet", "--output_dir", tmp_path
    )
    assert code == 0
    assert "3 x 224 x 224, recipe imagenet" in out


def test_a_recipe_brings_its_number_of_views(capsys, tmp_path):
    words = ["--recipe", "global_local", "--num_channels", 3, "--image_size", 32]
    for more, count in (([], 8), (["--num_views", 3], 3)):
        code, out, _ = run(capsys, "preview", *words, *more, "--output", tmp_path / "views.png")
        assert code == 0
        assert f"{count} views per image" in out


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_a_cache_changes_no_weight(capsys, trained_run, tmp_path, cache):
    place = tmp_path / "cache" if cache == "folder" else cache
    for name in ("first", "again") if cache == "folder" else ("first",):
        words = ["pretrain", *SMALL, "--output_dir", tmp_path / name, "--cache", place]
        code, out, _ = run(capsys, *words)
        assert code == 0
        stored = name == "again"
        assert ("decoded images take 0.00 GB; at most 8 are allowed" in out) != stored
        weights = (tmp_path / name / "model.safetensors").read_bytes()
        assert weights == (trained_run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "--backbone", "resnet81"], "got 'resnet81'. Did you mean"),
        (["pretrain", "--dataset", "no/such/folder/x"], "no file or folder 'no/such/folder/x'"),
        (
            ["pretrain", "--image_column", "img"],
            "no column 'img'; it has image (Image), label (ClassLabel)",
        ),
        (["pretrain", "--split", "tran"], "Did you mean 'train'"),
        (["pretrain", "--num_views", "1"], "num_views must be at least 2; got 1"),
        (
            ["pretrain", "--projector_dim", "0"],
            "projector_dim and projector_hidden_dims must be at least 1",
        ),
        (
            ["pretrain", "--per_device_train_batch_size", "5000"],
            "got 5000 images per train step and 1438 images",
        ),
        (["pretrain", "--fraction", "0"], "fraction must be in (0, 1]"),
        (["pretrain", "--streaming"], "Set --max_steps"),
        (
            ["pretrain", "--streaming", "--max_steps", "2", "--fraction", "0.5"],
            "Use one of the two",
        ),
        (["pretrain", "--recipe_args", "{crop"], "recipe_args must be JSON; got '{crop'"),
        (["pretrain", "--loss_args", "[1]"], "loss_args must be a JSON object"),
        (["pretrain", "--orthogonality_weight", "big"], "or 'auto'; got 'big'"),
        (
            ["pretrain", "--num_vews", "4"],
            "has no argument '--num_vews'. Did you mean '--num_views'",
        ),
        (
            ["pretrain", "--resume_from_checkpoint", "true"],
            "holds no checkpoint that can be resumed from",
        ),
        (
            ["pretrain", "--streaming", "--max_steps", "2", "--test_split", "a"],
            "test_split would be ignored",
        ),
        (
            ["pretrain", "--streaming", "--max_steps", "2", "--probe_test"],
            "probe_test would be ignored",
        ),
        (
            ["pretrain", "--streaming", "--max_steps", "2", "--cache", "memory"],
            "streaming has none, and got 'memory'",
        ),
        (["pretrain", "--view_threads", "-1"], "view_threads must be at least 0; got -1"),
        (
            ["pretrain", "--render_on_device", "--view_threads", "0"],
            "render_on_device needs view_threads and no worker processes; got 0 threads and 0",
        ),
        (
            ["pretrain", "--cache", "memory", "--cache_limit_gb", "0.00009"],
            "the decoded images must fit into the cache; they take 92,032 bytes, and 90,000",
        ),
        (["pretrain", "no.yaml"], "there is no file 'no.yaml'"),
        (
            ["evaluate", "no/run", "--dataset", "digits"],
            "'no/run' holds no config.json of a run",
        ),
        (["preview", "--recipe", "cifer"], "Did you mean 'cifar'"),
        (["pretrian"], "no command 'pretrian'. Did you mean 'pretrain'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_input_gets_a_sentence(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob("runs/**/*") if path.is_file()]  # nothing trained


def test_a_misspelt_yaml_key_gets_a_sentence(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("num_vews: 4\n")
    code, _, err = run(capsys, "pretrain", tmp_path / "run.yaml")
    assert code == 2
    assert "unknown key 'num_vews'. Did you mean 'num_views'" in err


def break_images(folder, *places):
    """Overwrite some images of a folder, and return their paths."""
    paths = [sorted(folder.rglob("*.png"))[place] for place in places]
    for path in paths:
        path.write_bytes(b"not an image")
    return paths


def test_preview_leaves_bad_images_out(capsys, tmp_path, image_folder):
    words = ["preview", "--dataset", image_folder, "--num_images", 3]
    run(capsys, *words, "--output", tmp_path / "whole.png")
    (broken,) = break_images(image_folder, 1)
    code, out, _ = run(capsys, *words, "--output", tmp_path / "v.png")
    assert code == 0
    assert f"1 of 3 images cannot be used and are left out:\n  image 1 ({broken}): the bytes" in out
    assert "2 images, 4 views per image" in out
    with Image.open(tmp_path / "whole.png") as whole, Image.open(tmp_path / "v.png") as picture:
        whole, picture = np.asarray(whole), np.asarray(picture)
    row = (len(picture) - 16) // 2  # the views are those of a run with this seed
    assert np.array_equal(picture[16 + row :], whole[16 + 2 * row :])


def test_no_usable_image_gets_a_sentence(capsys, tmp_path, image_folder):
    break_images(image_folder, *range(30))
    for command in ("preview", "pretrain"):
        code, _, err = run(capsys, command, "--dataset", image_folder)
        assert code == 2
        assert "none of the first " in err
        assert "images can be used. First image 0 (" in err


def test_the_first_images_may_be_bad(capsys, tmp_path, image_folder):
    break_images(image_folder, *range(20))
    words = ["preview", "--dataset", image_folder, "--num_images", 25]
    code, out, _ = run(capsys, *words, "--output", tmp_path / "v.png")
    assert code == 0
    assert "5 images, 4 views per image, 3 x 32 x 32, recipe cifar" in out


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_unreadable_image_is_named_where_that_is_asked_for(
    capsys, tmp_path, image_folder, streaming, workers
):
    (broken,) = break_images(image_folder, 29)
    words = ["--dataset", image_folder, "--max_steps", 9, "--per_device_train_batch_size", 8]
    words += ["--backbone", "test_resnet", "--dataloader_num_workers", workers]
    words += ["--on_bad", "raise", "--streaming", streaming]
    code, _, err = run(capsys, "pretrain", *words, "--output_dir", tmp_path / "run")
    assert code == 2
    sentence = err.partition("ssl-views: ")[2].splitlines()[0]
    assert sentence.startswith("image ")
    assert f"({broken}): the bytes cannot be decoded" in sentence
    assert "Traceback" not in err


def test_a_run_goes_on_with_bad_images(capsys, tmp_path, image_folder):
    broken = break_images(image_folder, 0, 7, 14)
    words = ["--dataset", image_folder, "--max_steps", 9, "--per_device_train_batch_size", 8]
    words += ["--backbone", "test_resnet", "--output_dir", tmp_path / "run"]
    code, out, _ = run(capsys, "pretrain", *words)
    assert code == 0
    assert "trained backbone" in out
    listed = [path for path in (tmp_path / "run").rglob("*.jsonl") if "bad" in path.name]
    assert len(listed) == 1
    assert broken[1].name in listed[0].read_text()
    code, _, _ = run(capsys, "evaluate", tmp_path / "run", "--dataset", image_folder)
    assert code == 0


def test_image_flags_reach_every_command(capsys, tmp_path, image_folder, trained_run):
    for words, message in (
        (["--min_image_side", 21], "both sides must be at least 21 pixels; got 20 x 24"),
        (["--max_image_pixels", 479], "at most 479 pixels; got 20 x 24"),
    ):
        for command in (["preview"], ["pretrain"], ["evaluate", trained_run]):
            code, _, err = run(capsys, *command, "--dataset", image_folder, *words)
            assert code == 2
            assert message in err
    code, _, err = run(capsys, "preview", "--min_image_side", 0)
    assert code == 2
    assert "min_side must be at least 1; got 0" in err


def test_links_out_of_a_folder_need_an_image_root(capsys, tmp_path, image_folder):
    (tmp_path / "links").mkdir()
    for path in image_folder.rglob("*.png"):
        (tmp_path / "links" / path.name).symlink_to(path)
    words = ["preview", "--dataset", tmp_path / "links", "--output", tmp_path / "v.png"]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "If it may be read, pass --image_root" in err
    code, _, err = run(capsys, *words, "--image_root", tmp_path / "none")
    assert code == 2
    assert "an existing folder only" in err
    assert run(capsys, *words, "--image_root", image_folder)[0] == 0
    code, out, _ = run(
        capsys, "pretrain", *words[1:3], *SMALL, "--image_root", image_folder, "--output_dir",
        tmp_path / "run", "--min_image_side", 9, "--per_device_train_batch_size", 8,
    )  # fmt: skip
    assert code == 0
    assert f"--image_root {image_folder} --min_image_side 9" in out


def test_an_encoder_folder_is_not_a_run(capsys, trained_run, tmp_path):
    assert run(capsys, "export", trained_run, tmp_path / "encoder")[0] == 0
    code, _, err = run(capsys, "evaluate", tmp_path / "encoder", "--dataset", "digits")
    assert code == 2
    assert "holds no config.json of a run" in err


@pytest.mark.slow
def test_a_run_is_resumed(capsys, tmp_path):
    words = [
        "pretrain",
        *SMALL,
        "--output_dir",
        tmp_path,
        "--save_strategy",
        "steps",
        "--save_steps",
        1,
    ]
    assert run(capsys, *words)[0] == 0
    code, _, err = run(capsys, *words, "--max_steps", 3)
    assert code == 2
    assert "training.max_steps: 2 -> 3" in err
    code, _, _ = run(capsys, *words, "--max_steps", 3, "--allow_changed_run")
    assert code == 0
    assert (tmp_path / "checkpoint-3").is_dir()
    code, _, err = run(capsys, *words, "--max_steps", 3, "--resume_from_checkpoint", "false")
    assert code == 2
    assert "holds checkpoint-2, checkpoint-3. Resume" in err


def test_our_own_bugs_keep_their_traceback(monkeypatch):
    import ssl_views.cli.preview as preview

    monkeypatch.setattr(preview, "run", lambda argv: __import__("json").loads("{"))
    with pytest.raises(ValueError, match="Expecting"):
        main(["preview"])


def test_help_lists_the_commands(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    for command in COMMANDS:
        assert command in out
