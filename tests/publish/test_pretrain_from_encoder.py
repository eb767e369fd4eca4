"""`ssl-views pretrain --from_encoder` goes on from an encoder."""

import pytest
import torch

from ssl_views import SSLViewsModel, load_encoder
from ssl_views.cli import main

SHORT = ("--num_views", "2", "--per_device_train_batch_size", "16", "--max_steps", "1",
         "--projector_dim", "8")  # fmt: skip


def pretrain(images, output, *flags):
    words = ["--dataset", str(images), "--output_dir", str(output), *SHORT]
    return main(["pretrain", *words, *map(str, flags)])


def test_backbone_and_views_follow_from_it(small_encoder, image_folder, tmp_path, capsys):
    flags = ("--from_encoder", small_encoder, "--learning_rate", 0, "--weight_decay", 0)
    assert pretrain(image_folder, tmp_path / "run", *flags) == 0
    assert "pretrained backbone" in capsys.readouterr().out
    model = SSLViewsModel.from_pretrained(tmp_path / "run")
    assert model.config.initial_weights == "an encoder in a local folder"
    assert (model.config.backbone, model.config.image_size) == ("test_resnet", 32)
    encoder = dict(load_encoder(small_encoder).named_parameters())
    for name, value in model.backbone.named_parameters():
        assert torch.equal(value, encoder[name]), name


def test_recipe_args_are_added_to_its_mean_and_std(small_encoder, image_folder, tmp_path):
    flags = ("--from_encoder", small_encoder, "--recipe_args", '{"crop_scale": [0.5, 1.0]}')
    assert pretrain(image_folder, tmp_path / "run", *flags) == 0
    config = SSLViewsModel.from_pretrained(tmp_path / "run").config
    assert config.recipe_args.keys() == {"crop_scale", "mean", "std"}


@pytest.mark.parametrize(
    "flag",
    [("--backbone", "resnet18"), ("--pretrained_backbone", "true"), ("--model_args", '{"a": 1}')],
)
def test_another_backbone_is_refused(small_encoder, image_folder, tmp_path, capsys, flag):
    assert pretrain(image_folder, tmp_path / "run", "--from_encoder", small_encoder, *flag) == 2
    assert f"{flag[0][2:]} must be left out with from_encoder" in capsys.readouterr().err


def test_a_missing_encoder_is_said(image_folder, tmp_path, capsys):
    assert pretrain(image_folder, tmp_path / "run", "--from_encoder", tmp_path / "none") == 2
    assert "there must be a folder" in capsys.readouterr().err
