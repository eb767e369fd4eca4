"""ResNets with a small stem: as written by hand, and published like any other architecture."""

import copy
import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel

from ssl_views import (
    SSLViewsConfig,
    SSLViewsForPreTraining,
    TimmEncoderBackbone,
    export_encoder,
    load_encoder,
)
from ssl_views.encoder_folder import check_encoder

NAMES = ("ssl_views_resnet18", "ssl_views_resnet34", "ssl_views_resnet50")
THIN = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}


def shaken(model, seed=0):
    """Give every parameter and statistic a value that no initialisation gives."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if name.endswith(("weight", "var")) else noise - 0.5)
    return model


def stages_by_hand(state, x, stem_stride):
    """Stem and stages of a ResNet from its weights, in evaluation; keys say what there is."""

    def conv_norm(x, conv, norm, stride=1):
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

        def of(name):
            return state[f"{norm}.{name}"][:, None, None]

        scale = of("weight") / (of("running_var") + 1e-5).sqrt()
        return (x - of("running_mean")) * scale + of("bias")

    maps = [conv_norm(x, "conv1", "bn1", stem_stride).clamp(min=0)]
    for stage in (1, 2, 3, 4):
        x, block = maps[-1], 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            if f"{at}.conv3.weight" in state:
                y = conv_norm(x, f"{at}.conv1", f"{at}.bn1").clamp(min=0)
                y = conv_norm(y, f"{at}.conv2", f"{at}.bn2", stride).clamp(min=0)
                y = conv_norm(y, f"{at}.conv3", f"{at}.bn3")
            else:
                y = conv_norm(x, f"{at}.conv1", f"{at}.bn1", stride).clamp(min=0)
                y = conv_norm(y, f"{at}.conv2", f"{at}.bn2")
            if f"{at}.downsample.0.weight" in state:
                x = conv_norm(x, f"{at}.downsample.0", f"{at}.downsample.1", stride)
            x, block = (x + y).clamp(min=0), block + 1
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    ("name", "args", "stem_stride", "blocks"),
    [
        ("ssl_views_resnet18", {"channels": [8, 16, 24, 32]}, 1, [2, 2, 2, 2]),
        ("ssl_views_resnet34", {"channels": [8, 8, 8, 8], "stem_width": 8}, 1, [3, 4, 6, 3]),
        ("ssl_views_resnet50", {"channels": [8, 8, 8, 8], "stem_stride": 2}, 2, [3, 4, 6, 3]),
        ("ssl_views_resnet50", {**THIN, "stem_width": 32}, 1, [1, 1, 1, 1]),
        ("ssl_views_resnet50", {**THIN, "channels": [16, 8, 8, 8]}, 1, [1, 1, 1, 1]),
        ("ssl_views_resnet18", {**THIN, "stem_width": 8, "stem_stride": 2}, 2, [1, 1, 1, 1]),
        ("ssl_views_resnet18", {**THIN, "stem_width": 5, "in_chans": 5}, 1, [1, 1, 1, 1]),
    ],
)
def test_equals_a_network_written_by_hand(name, args, stem_stride, blocks, generator):
    model = shaken(timm.create_model(name, num_classes=0, **args)).double().eval()
    assert [len(getattr(model, f"layer{stage}")) for stage in (1, 2, 3, 4)] == blocks
    x = torch.randn(2, args.get("in_chans", 3), 32, 32, generator=generator, dtype=torch.float64)
    expected = stages_by_hand(model.state_dict(), x, stem_stride)
    with torch.no_grad():
        _, maps = model.forward_intermediates(x)
        features = model(x)
    assert len(maps) == len(expected) == 5
    for ours, hand in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, hand, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features, expected[-1].mean((2, 3)), rtol=1e-9, atol=1e-9)
    assert expected[0].eq(0).float().mean() > 0.1  # the stem's ReLU has something to do


@pytest.mark.parametrize("name", NAMES)
def test_the_stock_network_but_for_the_stem(name):
    stock = timm.create_model(name.removeprefix("ssl_views_"), num_classes=10).state_dict()
    ours = timm.create_model(name, num_classes=10).state_dict()
    assert ours.keys() == stock.keys()
    different = [key for key in stock if ours[key].shape != stock[key].shape]
    assert different == ["conv1.weight"]
    assert ours["conv1.weight"].shape == (64, 3, 3, 3)


@pytest.mark.parametrize(
    ("args", "sides", "channels"),
    [
        ({}, [32, 32, 16, 8, 4], [64, 8, 16, 24, 32]),
        ({"stem_stride": 2}, [16, 16, 8, 4, 2], [64, 8, 16, 24, 32]),
        (
            {"stem_stride": 2, "stem_width": 12, "in_chans": 1},
            [16, 16, 8, 4, 2],
            [12, 8, 16, 24, 32],
        ),
        ({"output_stride": 4}, [32, 32, 16, 8, 8], [64, 8, 16, 24, 32]),
        ({"output_stride": 4, "stem_stride": 2}, [16, 16, 8, 8, 8], [64, 8, 16, 24, 32]),
        ({"output_stride": 2, "stem_width": 8, "avg_down": True}, [32, 32, 16, 16, 16], None),
        ({"act_layer": "gelu", "norm_layer": "batchnorm2d", "stem_width": 8}, None, None),
        ({"block_args": {"attn_layer": "se"}, "aa_layer": timm.layers.BlurPool2d}, None, None),
    ],
)
def test_feature_maps_have_the_reductions_that_are_said(args, sides, channels):
    model = timm.create_model("ssl_views_resnet18", features_only=True, **{**THIN, **args})
    maps = model(torch.zeros(2, args.get("in_chans", 3), 32, 32))
    found = [x.shape[-1] for x in maps]
    assert [32 // side for side in found] == model.feature_info.reduction()
    assert [x.shape[1] for x in maps] == model.feature_info.channels()
    assert sides is None or found == sides
    assert channels is None or [x.shape[1] for x in maps] == channels


def test_a_shortcut_through_the_first_block_only_where_channels_are_equal():
    def shortcut(name, **args):
        return timm.create_model(name, **{**THIN, **args}).layer1[0].downsample

    assert shortcut("ssl_views_resnet18", stem_width=8) is None
    assert shortcut("ssl_views_resnet18", stem_width=9)[0].weight.shape == (8, 9, 1, 1)
    assert shortcut("ssl_views_resnet50", stem_width=32) is None
    assert shortcut("ssl_views_resnet50", stem_width=8)[0].weight.shape == (32, 8, 1, 1)


def test_initialised_as_timm_does():
    torch.manual_seed(0)
    model = timm.create_model("ssl_views_resnet18", stem_width=96)
    for conv in (model.conv1, model.layer1[0].conv1, model.layer1[0].downsample[0]):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert float(conv.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert not model.layer1[0].bn2.weight.any()  # the last of a block
    assert model.bn1.weight.eq(1).all()
    assert timm.create_model("ssl_views_resnet18", zero_init_last=False).layer1[0].bn2.weight.any()


def test_the_classifier_can_be_replaced():
    model = timm.create_model("ssl_views_resnet18", **THIN)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)
    model.reset_classifier(7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert model.get_classifier() is model.fc
    model.reset_classifier(0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 32)


def test_gradient_checkpointing_gives_the_same_gradient(generator):
    plain = shaken(timm.create_model("ssl_views_resnet18", num_classes=0, stem_width=12, **THIN))
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = torch.randn(4, 3, 32, 32, generator=generator)
    for model in (plain, saving):
        model.train()(x).square().sum().backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert plain.conv1.weight.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_what_timm_knows_of_them(name):
    cfg = timm.get_pretrained_cfg(name)
    assert (cfg.input_size, cfg.first_conv, cfg.classifier) == ((3, 32, 32), "conv1", "fc")
    assert not cfg.has_weights
    assert not cfg.fixed_input_size
    assert timm.list_models("ssl_views_*") == sorted(NAMES)
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"stem_stride": 4}, r"stem_stride must be 1 or 2.*; got 4. For larger images take a sto"),
        ({"stem_width": 0}, r"stem_width must be at least 1; got 0. 64 is the usual one"),
        ({"output_stride": 3}, r"must be one of \[2, 4, 8\] with stem_stride 1, or more; got 3. L"),
        (
            {"output_stride": 2, "stem_stride": 2},
            r"must be one of \[4, 8, 16\] with stem_stride 2, or more; got 2. Leave it out",
        ),
        (
            {"stem_type": "deep"},
            r"stem_type must be left out, .* got 'deep'. Stock ResNets of timm",
        ),
        ({"replace_stem_pool": True}, r"replace_stem_pool must be left out, .*; got True. Stock"),
    ],
)
def test_arguments_out_of_range(args, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("ssl_views_resnet18", **THIN, **args)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_device_and_dtype(device):
    model = timm.create_model(
        "ssl_views_resnet18", stem_width=12, device=device, dtype=torch.bfloat16, **THIN
    )
    assert {p.device.type for p in model.parameters()} == {device}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


MODEL_ARGS = {**THIN, "stem_width": 12, "stem_stride": 2}


def pretraining_model():
    config = SSLViewsConfig(
        backbone="ssl_views_resnet18",
        model_args=MODEL_ARGS,
        image_size=32,
        num_views=2,
        projector_dim=8,
        recipe="cifar",
    )
    model = SSLViewsForPreTraining(config)
    shaken(model.base_model.backbone)
    return model.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A training checkpoint, and the encoder folder made of it."""
    folder = tmp_path_factory.mktemp("published")
    model = pretraining_model()
    model.save_pretrained(folder / "run")
    export_encoder(folder / "run", folder / "encoder")
    return model, folder


def test_a_training_checkpoint_is_loaded_as_it_was(published, generator):
    model, folder = published
    loaded = SSLViewsForPreTraining.from_pretrained(folder / "run").eval()
    x = torch.randn(4, 2, 3, 32, 32, generator=generator)
    assert loaded.config.model_args == MODEL_ARGS
    torch.testing.assert_close(loaded(x).embeddings, model(x).embeddings)


def test_an_export_says_what_it_needs(published, tmp_path, caplog):
    model, folder = published
    assert check_encoder(folder / "encoder").needs == "ssl_views.small_stem"
    config = json.loads((folder / "encoder" / "config.json").read_text())
    assert config["architecture"] == "ssl_views_resnet18"
    assert config["model_args"] == {"in_chans": 3, **MODEL_ARGS}
    assert "import ssl_views.small_stem" in (folder / "encoder" / "README.md").read_text()
    export_encoder(model, tmp_path / "encoder")
    assert "timm itself has no ssl_views_resnet18" in caplog.text
    assert "must install and import ssl_views" in caplog.text


def test_an_encoder_is_loaded_by_every_route(published, generator):
    model, folder = published
    path = folder / "encoder"
    backbone = model.base_model.backbone
    x = torch.randn(4, 3, 32, 32, generator=generator)
    expected = backbone(x)
    assert load_file(path / "model.safetensors").keys() == backbone.state_dict().keys()
    by_timm = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    torch.testing.assert_close(by_timm(x), expected)
    torch.testing.assert_close(load_encoder(path).eval()(x), expected)
    by_auto = AutoModel.from_pretrained(path).eval()
    torch.testing.assert_close(by_auto(x).pooler_output, expected)
    stages = TimmEncoderBackbone.from_pretrained(path, out_indices=[0, -1]).eval()
    assert stages.channels == [12, 32]
    torch.testing.assert_close(stages(x).feature_maps[-1].mean((2, 3)), expected)
    grey = timm.create_model(f"local-dir:{path}", pretrained=True, in_chans=1).eval()
    torch.testing.assert_close(grey(x[:, :1]), backbone(x[:, :1].expand(-1, 3, -1, -1)))


@pytest.mark.slow
def test_an_encoder_needs_the_import(published):
    """Without it neither library loads the folder; after it both do."""
    script = f"""
import timm
from transformers import AutoModel
path, failed = {str(published[1] / "encoder")!r}, []
def both():
    yield lambda: timm.create_model("local-dir:" + path, pretrained=True)
    yield lambda: AutoModel.from_pretrained(path)
for load in both():
    try:
        load()
    except Exception as error:
        failed.append(str(error))
import ssl_views
for load in both():
    load()
print(len(failed), all("ssl_views_resnet18" in text for text in failed))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["2", "True"]
