"""An encoder folder is checked in full: each thing that can be wrong with it gets its sentence."""

import json
import re
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from trained_models import trained, write_checkpoint

from ssl_views import SSLViewsConfig, SSLViewsModel, encoder_folder, export_encoder
from ssl_views.encoder_folder import (
    ENCODER_FILES,
    REQUIRED_FILES,
    EncoderError,
    EncoderInfo,
    check_encoder,
    read_encoder_config,
    registered_by,
)

LYING = {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}


@pytest.fixture
def folder(small_encoder, tmp_path):
    shutil.copytree(small_encoder, tmp_path / "encoder")
    return tmp_path / "encoder"


def change_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def write_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def refused(folder, message):
    with pytest.raises(EncoderError, match=message):
        check_encoder(folder)


def test_the_layout_is_frozen():
    assert REQUIRED_FILES == ("config.json", "model.safetensors", "README.md")
    assert ENCODER_FILES == (*REQUIRED_FILES, "model.onnx", "spectrum.png")


def test_a_good_folder_is_described(small_encoder, small_model):
    info = check_encoder(small_encoder)
    count = sum(p.numel() for p in small_model.backbone.parameters())
    assert info == EncoderInfo("test_resnet", 96, count, (3, 32, 32), None)
    assert read_encoder_config(str(small_encoder))["architecture"] == "test_resnet"


def test_a_check_changes_no_random_numbers(small_encoder, monkeypatch):
    before = torch.get_rng_state()
    check_encoder(small_encoder)
    assert torch.equal(torch.get_rng_state(), before)
    # Nor does it where the architecture cannot be built without memory.
    real = encoder_folder.timm.create_model

    def picky(*args, **kwargs):
        if torch.empty(0).is_meta:
            raise NotImplementedError("no meta tensors")
        return real(*args, **kwargs)

    monkeypatch.setattr(encoder_folder.timm, "create_model", picky)
    assert check_encoder(small_encoder).num_features == 96
    assert torch.equal(torch.get_rng_state(), before)


def test_building_takes_no_memory(small_encoder, monkeypatch):
    devices = []
    real = encoder_folder.timm.create_model

    def seen(*args, **kwargs):
        devices.append(torch.empty(0).device.type)
        return real(*args, **kwargs)

    monkeypatch.setattr(encoder_folder.timm, "create_model", seen)
    check_encoder(small_encoder)
    assert devices == ["meta"]


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, rf"must hold config.json, model.safetensors, README.md; {name} is missing")


def test_no_folder(tmp_path):
    refused(tmp_path / "none", "config.json is missing")
    with pytest.raises(EncoderError, match=r"config.json is missing"):
        read_encoder_config(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "config.json must hold JSON; it cannot be read: Expecting"),
        (b"\xff\xfe", "must hold JSON; it cannot be read: 'utf-8' codec"),
        (b"[" * 200_000, "config.json must hold JSON; it cannot be read"),
        (b"[1]", "must hold a JSON object; it holds list"),
        (b'{"num_classes": 9, "num_classes": 0}', "the key 'num_classes' is there twice"),
    ],
    ids=["half", "binary", "deep", "list", "twice"],
)
def test_a_config_that_is_not_an_object(folder, content, message):
    (folder / "config.json").write_bytes(content)
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(num_classes=10), "num_classes in config.json must be 0.*it is 10"),
        (lambda c: c.pop("num_classes"), "num_classes in config.json must be 0.*it is None"),
        (lambda c: c.update(num_classes=False), "num_classes in config.json must be 0.*False"),
        (lambda c: c.update(architecture=7), "architecture in .* must be a name of timm; it is 7"),
        (lambda c: c.update(model_args=[1]), r"model_args in .* a JSON object; it is \[1\]"),
        (lambda c: c["model_args"].update(num_classes=0), "it holds 'num_classes', which the load"),
        (lambda c: c["model_args"].update(pretrained=True), "it holds 'pretrained', which the lo"),
        (lambda c: c["model_args"].update(checkpoint_path="/x"), "it holds 'checkpoint_path'"),
        (lambda c: c["model_args"].update(in_chans=1), "in_chans in .* must be 3, as in input_siz"),
        (lambda c: c.update(auto_map={"AutoModel": "evil.Model"}), "of its own.*'auto_map'"),
        (lambda c: c.update(custom_pipelines={}), "no code of its own.*'custom_pipelines'"),
        (lambda c: c.update(model_type="ssl_views"), "is a training checkpoint, with the proj"),
        (lambda c: c.update(model_type="resnet"), "model_type in .*'timm_wrapper'; it is 'resnet'"),
        (lambda c: c.update(pretrained_cfg=None), "pretrained_cfg in config.json must be a JSON o"),
        (lambda c: c.update(num_features=5), "num_features must be the width of .*, 96; it is 5"),
        (lambda c: c["pretrained_cfg"].update(url="http://x"), "name other weights; it has 'url'"),
        (lambda c: c["pretrained_cfg"].update(num_classes=3), "pretrained_cfg.num_classes in"),
        (lambda c: c["pretrained_cfg"].pop("input_size"), "input_size .* width.; it is None"),
        (lambda c: c["pretrained_cfg"].update(input_size=[3, 0, 32]), r"it is \[3, 0, 32\]"),
        (lambda c: c["pretrained_cfg"].update(mean=[0.5]), r"each of 3 channels; it is \[0.5\]"),
        (lambda c: c["pretrained_cfg"].update(std=[1, 1, 0]), r"std in .* it is \[1, 1, 0\]"),
        (lambda c: c["pretrained_cfg"].update(mean=[1, 1, float("nan")]), "mean in .* nan"),
        (lambda c: c["pretrained_cfg"].update(mean="x" * 500), r"mean in .*; it is 'x{56}\.\.\."),
        (lambda c: c["pretrained_cfg"].pop("interpolation"), "interpolation in .* must be a name"),
        (lambda c: c["pretrained_cfg"].update(crop_pct=0), "crop_pct in .* above 0; it is 0"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_of_an_encoder(folder, change, message):
    change_config(folder, change)
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(architecture="test_resnat"), "'test_resnat' is not. Did you mean"),
        (lambda c: c.update(architecture="a_net", registered_by="her_nets"), "'her_nets': impor"),
        (lambda c: c.update(architecture="a_net", registered_by="rm -r /"), "another package reg"),
        (lambda c: c["model_args"].update(wdth=3), "build 'test_resnet' with model_args.*'wdth'"),
        (lambda c: c["model_args"].update(layers="abc"), "must be able to build 'test_resnet'"),
    ],
)  # fmt: skip
def test_an_architecture_that_timm_cannot_build(folder, change, message):
    change_config(folder, change)
    refused(folder, message)


def drop(weights):
    del weights["conv1.0.weight"]


def half(weights):
    weights["conv1.0.weight"] = weights["conv1.0.weight"].half()


def not_finite(name, value):
    def change(weights):
        weights[name].view(-1)[0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "no more and no less; it lacks 1: conv1.0.weight"),
        (lambda w: w.update({"fc.weight": torch.zeros(2)}), "it has in surplus 1: fc.weight"),
        (lambda w: w.update({"projector.0.weight": torch.zeros(2)}), "is a training checkpoint"),
        (lambda w: w.update({"conv1.0.weight": torch.zeros(2)}), r"the shape \[.*; it has \[2\]"),
        (half, r"type of conv1.0.weight must be torch.float32; it is F16"),
        (lambda w: w.update({"bn1.num_batches_tracked": torch.tensor(1.0)}), "int64; it is F32"),
        (not_finite("conv1.0.weight", torch.nan), "must be finite; conv1.0.weight holds values th"),
        (not_finite("conv1.0.weight", torch.inf), "must be finite; conv1.0.weight holds values th"),
        (not_finite("bn1.running_mean", -torch.inf), "must be finite; bn1.running_mean holds"),
    ],
)  # fmt: skip
def test_weights_that_are_not_those_of_the_architecture(folder, change, message):
    change_weights(folder, change)
    refused(folder, message)


def test_weights_whose_sum_is_not_finite_are_fine(folder):
    def huge(weights):
        weights["conv1.0.weight"].fill_(3e38)

    change_weights(folder, huge)
    assert check_encoder(folder).num_features == 96


def test_a_limit_may_be_infinite(tmp_path):
    import my_backbones  # noqa: F401 (registers)

    model = SSLViewsModel(SSLViewsConfig(backbone="my_tiny_net", image_size=32))
    folder = export_encoder(model, tmp_path)
    assert load_file(folder / "model.safetensors")["limit"] == torch.inf
    change_weights(folder, lambda w: w.update(limit=torch.tensor(torch.nan)))
    refused(folder, "must be finite; limit holds values that are not finite")


def test_a_training_checkpoint(tmp_path):
    place = write_checkpoint(tmp_path, 2, trained())
    (place / "README.md").write_text("x")
    refused(place, "is a training checkpoint, with the projector. Use ssl-views export")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"abc"), "it is truncated"),
        (lambda path: path.write_bytes(struct.pack("<Q", 2**63) + b"{}"), "it is truncated"),
        (lambda path: write_header(path, b"[]"), "its header is no object"),
        (lambda path: write_header(path, b"[" * 200_000), "must be a safetensors file"),
        (lambda path: write_header(path, {"a": 1}), "must be a safetensors file"),
        (lambda path: write_header(path, {"a": LYING}, b"0000"), "must be a safetensors file"),
        (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "it is truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "must be a safetensors file"),
        (lambda path: (path.unlink(), path.mkdir()), "model.safetensors is missing"),
    ],
    ids=["empty", "short", "long", "list", "deep", "number", "lying", "pickle", "cut", "folder"],
)  # fmt: skip
def test_a_file_of_weights_that_is_damaged(folder, write, message):
    write(folder / "model.safetensors")
    refused(folder, message)


def test_a_name_that_is_there_twice(folder):
    """Readers take the first or the last of two, so what was checked need not be what is used."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].decode().rstrip()
    entry = re.search(r'"conv1\.0\.weight":\{[^}]*\}', header)[0]
    write_header(path, f"{header[:-1]},{entry}}}".encode(), data[8 + length :])
    refused(folder, r"the key 'conv1\.0\.weight' is there twice")


@pytest.mark.parametrize("seed", range(3))
def test_any_damage_of_the_header_is_an_encoder_error(folder, seed):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    rng = np.random.default_rng(seed)
    length = struct.unpack("<Q", data[:8])[0]
    told = 0
    for _ in range(60):
        broken = bytearray(data)
        for place in rng.integers(0, 8 + length, 3):
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        try:
            check_encoder(folder)
        except EncoderError:
            told += 1
    assert told > 30  # some damage is in the spaces, or in the metadata


def test_who_registered_an_architecture():
    import my_backbones  # noqa: F401 (registers)

    assert registered_by("resnet18") is None
    assert registered_by("my_tiny_net") == "my_backbones"
    with pytest.raises(EncoderError, match=r"must be known to timm .*; 'no_such_net' is not"):
        registered_by("no_such_net")


def test_a_foreign_architecture_says_which_import_is_missing(tmp_path, monkeypatch):
    import my_backbones  # noqa: F401 (registers)

    model = SSLViewsModel(SSLViewsConfig(backbone="my_tiny_net", image_size=32))
    folder = export_encoder(model, tmp_path)
    assert check_encoder(folder).needs == "my_backbones"
    with monkeypatch.context() as patch:  # as where my_backbones was not imported
        patch.setattr(encoder_folder.timm, "is_model", lambda name: False)
        refused(folder, r"is not. It was registered by the module 'my_backbones': import that firs")


def test_an_architecture_of_a_script_is_refused(monkeypatch):
    import my_backbones

    monkeypatch.setattr(my_backbones.my_tiny_net, "__module__", "__main__")
    with pytest.raises(EncoderError, match="must be registered in a module that others can import"):
        registered_by("my_tiny_net")
