"""The encoder folder, loaded by timm and transformers in a process that cannot import ssl_views."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard

from ssl_views import SSLViewsConfig, SSLViewsForPreTraining, export_encoder

LOADER = """
import json, sys
sys.modules["ssl_views"] = None  # importing it fails
import timm, torch
from transformers import AutoImageProcessor, AutoModel
results = {}
for folder in sys.argv[2:]:
    x = torch.load(folder + "-input.pt")
    by_timm = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    by_auto = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(by_timm))
    from PIL import Image
    picture = Image.new("RGB" if x.shape[1] == 3 else "L", (70, 50), 90)
    with torch.no_grad():
        results[folder] = {
            "timm": by_timm(x), "auto": by_auto(x).pooler_output,
            "timm_state": by_timm.state_dict(), "auto_state": by_auto.timm_model.state_dict(),
            "size": processor.data_config["input_size"],
            "same_pixels": x.shape[1] == 5
            or torch.equal(transform(picture), processor(picture)["pixel_values"][0]),
        }
torch.save(results, sys.argv[1])
"""
BACKBONES = ["test_resnet", "resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0"]


def trained(backbone, num_channels=3, **values):
    """A model with running statistics and weights that no initialisation gives."""
    torch.manual_seed(0)
    config = SSLViewsConfig(
        backbone=backbone,
        image_size=32,
        num_channels=num_channels,
        num_views=2,
        projector_dim=8,
        **values,
    )
    model = SSLViewsForPreTraining(config)
    for _ in range(2):
        model(torch.randn(4, 2, num_channels, 32, 32) + 1)
    return model.eval()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Export every backbone and load all in one process without ssl_views."""
    folder = tmp_path_factory.mktemp("encoders")
    cases = {
        (name, channels): trained(name, channels) for name in BACKBONES for channels in (1, 3, 5)
    }
    cases["upscaled", 3] = trained("resnet18", upscale=2, model_args={"layers": [1, 1, 1, 1]})
    paths = {}
    for (name, channels), model in cases.items():
        path = paths[name, channels] = str(folder / f"{name}-{channels}")
        export_encoder(model, path)
        side = model.config.image_size * model.config.upscale
        torch.save(torch.randn(3, channels, side, side), path + "-input.pt")
    output = folder / "results.pt"
    subprocess.run(
        [sys.executable, "-c", LOADER, str(output), *paths.values()], check=True, cwd=folder
    )
    results = torch.load(output)
    return {
        case: (cases[case], torch.load(path + "-input.pt"), results[path])
        for case, path in paths.items()
    }


@pytest.mark.parametrize(
    "case", [*((n, c) for n in BACKBONES for c in (1, 3, 5)), ("upscaled", 3)], ids=str
)
def test_both_loaders_give_our_features(loaded, case):
    model, x, result = loaded[case]
    backbone = model.ssl_views.backbone
    for state in (result["timm_state"], result["auto_state"]):
        assert state.keys() == backbone.state_dict().keys()
        for name, value in backbone.state_dict().items():
            assert torch.equal(state[name], value), name
    with torch.no_grad():
        ours = backbone(x)
    for theirs in (result["timm"], result["auto"]):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-3)
    assert result["size"] == tuple(x.shape[1:])
    assert result["same_pixels"]


def test_timm_gives_the_encoder_another_head_and_channels(tmp_path):
    import timm

    model = trained("resnet18")
    folder = export_encoder(model, tmp_path)
    classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    assert classifier.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert torch.equal(
        classifier.layer1[0].conv1.weight, model.ssl_views.backbone.layer1[0].conv1.weight
    )
    grey = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=1)
    torch.testing.assert_close(
        grey.conv1.weight, model.ssl_views.backbone.conv1.weight.sum(1, keepdim=True)
    )


def test_the_folder_holds_three_files_and_no_projector(tmp_path):
    folder = export_encoder(trained("test_resnet"), tmp_path / "encoder")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 0
    assert not {"num_classes", "pretrained"} & config["model_args"].keys()
    assert config["dtype"] == "float32"


def test_half_precision_models_are_exported_in_float32(tmp_path):
    from safetensors.torch import load_file

    folder = export_encoder(trained("test_resnet").to(torch.bfloat16).ssl_views, tmp_path)
    state = load_file(folder / "model.safetensors")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}


def test_training_only_arguments_are_left_out(tmp_path):
    model = trained("resnet18", model_args={"drop_path_rate": 0.1, "layers": [1, 1, 1, 1]})
    config = json.loads((export_encoder(model, tmp_path) / "config.json").read_text())
    assert config["model_args"] == {"in_chans": 3, "layers": [1, 1, 1, 1]}


def test_the_card_says_what_is_known(tmp_path):
    export_encoder(trained("resnet18", upscale=2), tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.license is None
    assert "enlarged 2 times" in card.text
    assert "Training data, licence and evaluation: not stated." in card.text


def test_writing_again_is_fine_but_not_over_other_files(tmp_path):
    model = trained("test_resnet")
    export_encoder(model, tmp_path)
    export_encoder(model, tmp_path)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(
        ValueError, match=r"must be an empty or new folder; it holds \['thesis.tex'\]"
    ):
        export_encoder(model, tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path):
    model = trained("test_resnet")
    with torch.no_grad():
        next(model.ssl_views.backbone.parameters())[0] = torch.nan
    with pytest.raises(ValueError, match="holds values that are not finite"):
        export_encoder(model, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
