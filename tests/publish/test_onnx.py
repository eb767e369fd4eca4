"""model.onnx gives the features of the encoder, for any number of images, from one file."""

import importlib.util

import numpy as np
import pytest
import timm
import torch
from trained_models import SMALL_VIT, trained

from ssl_views import export_encoder, onnx_export
from ssl_views.encoders import load_encoder
from ssl_views.onnx_export import write_onnx

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
CASES = {
    "test_resnet": {},
    "resnet18": {"layers": [1, 1, 1, 1]},
    "vit_tiny_patch16_224": SMALL_VIT,
    "convnext_atto": {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]},
}


@pytest.fixture
def _installed():
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("backbone", CASES)
def test_the_features_are_those_of_torch(backbone, tmp_path):
    import onnxruntime

    model = trained(backbone, model_args=CASES[backbone])
    folder = export_encoder(model, tmp_path / "encoder", onnx=True)
    assert {p.name for p in folder.iterdir()} == {
        "README.md", "config.json", "model.onnx", "model.safetensors",
    }  # fmt: skip
    session = onnxruntime.InferenceSession(
        (folder / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )
    assert [each.name for each in session.get_inputs()] == ["pixel_values"]
    assert [each.name for each in session.get_outputs()] == ["features"]
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            expected = load_encoder(folder)(x)
        features = session.run(["features"], {"pixel_values": x.numpy()})[0]
        np.testing.assert_allclose(features, expected.numpy(), atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("_installed")
def test_a_second_export_without_it_removes_it(tmp_path):
    model = trained()
    export_encoder(model, tmp_path, onnx=True)
    assert (tmp_path / "model.onnx").is_file()
    export_encoder(model, tmp_path)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.usefixtures("_installed")
def test_the_model_and_the_random_numbers_stay(tmp_path):
    model = trained("vit_tiny_patch16_224", model_args=SMALL_VIT).train().to(torch.bfloat16)
    before, fused = torch.get_rng_state(), model.ssl_views.backbone.blocks[0].attn.fused_attn
    export_encoder(model, tmp_path, onnx=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert model.ssl_views.backbone.blocks[0].attn.fused_attn is fused
    assert next(model.parameters()).dtype == torch.bfloat16
    write_onnx(model.ssl_views.backbone, tmp_path / "x.onnx", (3, 32, 32))
    assert all(module.training for module in model.modules())
    assert model.ssl_views.backbone.blocks[0].attn.fused_attn is fused
    assert next(model.parameters()).dtype == torch.bfloat16


@pytest.mark.usefixtures("_installed")
@pytest.mark.slow
@pytest.mark.skipif(TORCH < (2, 9), reason="the newer way was not yet the default")
def test_the_newer_way_is_taken_where_tracing_fails(tmp_path, monkeypatch):
    def fails(model, images):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(onnx_export, "_traced", fails)
    model = timm.create_model("test_resnet", num_classes=0).eval()
    write_onnx(model, tmp_path / "x.onnx", (3, 32, 32))
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


@pytest.mark.usefixtures("_installed")
def test_what_differs_from_torch_is_refused(tmp_path, monkeypatch):
    traced = onnx_export._traced

    def changed(model, images):
        content = traced(model, images)
        with torch.no_grad():
            next(model.parameters()).mul_(2)
        return content

    def fails(model, images):
        raise TypeError("no such\n operator")

    monkeypatch.setattr(onnx_export, "_traced", changed)
    monkeypatch.setattr(onnx_export, "_exported", fails)
    folder = tmp_path / "encoder"
    with pytest.raises(
        ValueError, match=r"in both ways: for 1 images the file gives other .* no such operator"
    ):
        export_encoder(trained(), folder, onnx=True)
    assert not folder.exists()


def test_missing_packages_get_a_sentence(tmp_path, monkeypatch):
    found = importlib.util.find_spec

    def without(name, *args):
        return None if name == "onnxruntime" else found(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(ValueError, match=r'; onnxruntime cannot .*pip install "ssl-views\[onnx\]"'):
        export_encoder(trained(), tmp_path / "encoder", onnx=True)
    assert not (tmp_path / "encoder").exists()
