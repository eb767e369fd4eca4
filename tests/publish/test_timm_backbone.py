"""The encoder as a backbone: timm's own maps of it, from the same folder."""

import copy
import json

import pytest
import timm
import timm_families
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from ssl_views import SSLViewsConfig, SSLViewsModel, export_encoder
from ssl_views.timm_backbone import TimmEncoderBackbone

SWIN = {"window_size": 2, "embed_dim": 24, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8]}
CASES = {
    "test_resnet": {},
    "resnet18": {"model_args": {"layers": [1, 1, 1, 1]}, "num_channels": 5},
    "efficientnet_b0": {},
    "convnext_atto": {"num_channels": 1},
    "vit_tiny_patch16_224": {"model_args": {"depth": 3}},
    "vit_small_patch16_dinov3": {"model_args": {"depth": 4}, "image_size": 64},
    "eva02_tiny_patch14_224": {"model_args": {"depth": 4}, "image_size": 42},
    "swin_tiny_patch4_window7_224": {"model_args": SWIN, "image_size": 64},
    "swinv2_tiny_window8_256": {"model_args": SWIN, "image_size": 64},
}
# Buffers that no checkpoint has, shared tensors, stages of one name, or no maps before timm 1.0.31.
UNUSUAL = [
    "beit", "coat", "crossvit", "densenet", "efficientformer_v2", "eva", "gcvit", "levit",
    "swin_transformer_v2_cr", "tiny_vit", "tresnet", "vision_transformer_relpos", "volo",
]  # fmt: skip


def trained(architecture, **values):
    """A model whose weights and running statistics no initialisation gives."""
    torch.manual_seed(0)
    config = SSLViewsConfig(backbone=architecture, **{"image_size": 32, **values})
    model = SSLViewsModel(config)
    for _ in range(2):
        model(1 + torch.randn(4, config.num_channels, config.image_size, config.image_size))
    return model.eval()


def images(config, batch=2):
    return torch.randn(batch, config.num_channels, config.image_size, config.image_size)


def timm_maps(model, x, **options):
    with torch.no_grad():
        return model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW", **options)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A source and its encoder folder."""
    model = trained("test_resnet")
    return model, export_encoder(model, tmp_path_factory.mktemp("backbone") / "encoder")


@pytest.mark.parametrize("architecture", CASES)
def test_the_maps_are_those_of_timm(architecture, tmp_path):
    model = trained(architecture, **CASES[architecture])
    source, x = model.backbone, images(model.config)
    folder = export_encoder(model, tmp_path / "encoder")
    backbone = TimmEncoderBackbone.from_pretrained(folder, out_indices=[0, -2, -1])
    assert not backbone.training
    kept = dict(backbone.timm_model.named_buffers())
    for name, value in source.named_buffers():
        assert torch.equal(kept[name], value), name
    assert all(p.dtype == torch.float32 for p in backbone.parameters())
    with torch.no_grad():
        maps = backbone(x).feature_maps
    expected = timm_maps(source, x)
    expected = [expected[i] for i in (0, -2, -1)]
    for ours, theirs, channels, stride in zip(
        maps, expected, backbone.channels, backbone.strides, strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
        assert ours.shape[1] == channels
        assert ours.shape[2] == ours.shape[3] == -(-x.shape[-1] // stride)


@pytest.mark.slow
@pytest.mark.parametrize("family", UNUSUAL)
def test_unusual_families_give_maps_or_say_that_they_do_not(family, tmp_path):
    case = timm_families.FAMILIES[family]
    values = {"model_args": case.model_args, "image_size": case.image_size}
    model = SSLViewsModel(SSLViewsConfig(backbone=case.architecture, **values)).eval()
    config = TimmWrapperConfig(
        architecture=case.architecture, model_args=model.config.backbone_args
    )
    if not hasattr(model.backbone, "forward_intermediates"):
        with pytest.raises(ValueError, match="must have timm's forward_intermediates"):
            TimmEncoderBackbone(config)
        return
    folder = export_encoder(model, tmp_path / "encoder")
    every = list(range(len(TimmEncoderBackbone(config).stage_names)))
    backbone = TimmEncoderBackbone.from_pretrained(folder, out_indices=every)
    x = images(model.config)
    with torch.no_grad():
        maps = backbone(x).feature_maps
    assert [m.shape[1] for m in maps] == backbone.channels
    for ours, theirs in zip(maps, timm_maps(model.backbone, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
    backbone.save_pretrained(tmp_path / "again")
    stored = load_file(tmp_path / "again" / "model.safetensors")
    assert stored.keys() == model.backbone.state_dict().keys()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(stored[name], value), name


def test_stages_are_chosen_by_number_and_by_name(encoder):
    _, folder = encoder
    load = TimmEncoderBackbone.from_pretrained
    assert load(folder).out_features == ["layer4"]
    backbone = load(folder, out_indices=(1, -1))
    assert backbone.out_indices == [1, 4]
    assert backbone.out_features == ["layer1", "layer4"]
    assert backbone.channels == [32, 96]
    assert backbone.strides == [4, 32]
    assert backbone.out_feature_channels["layer2"] == backbone.num_features[2] == 48
    assert load(folder, out_features=["layer1", "layer4"]).out_indices == [1, 4]
    assert load(folder, out_features=["layer1"], out_indices=[1]).out_indices == [1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"out_indices": [5]}, r"must lie from -5 to 4, since test_resnet has 5 .*; got \[5\]"),
        ({"out_indices": [-6]}, r"must lie from -5 to 4.*got \[-6\]"),
        ({"out_indices": [2, 1]}, r"each once and the early ones first; got stages \[2, 1\]"),
        ({"out_indices": [4, -1]}, r"each once .*; got stages \[4, 4\]"),
        ({"out_indices": []}, r"must name one stage or more.*got stages \[\]"),
        ({"out_features": ["layer9"]}, r"must be stages of test_resnet; got \['layer9'\]"),
        (
            {"out_features": ["layer1"], "out_indices": [2]},
            r"must name the same stages; got \[2\] and \[1\]",
        ),
    ],
)
def test_stages_that_do_not_exist_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoderBackbone(TimmWrapperConfig(architecture="test_resnet"), **asked)


def test_an_architecture_without_maps_is_refused(monkeypatch):
    monkeypatch.delattr(timm.models.resnet.ResNet, "forward_intermediates")
    with pytest.raises(ValueError, match=r"'test_resnet' has none.*features_only=True"):
        TimmEncoderBackbone(TimmWrapperConfig(architecture="test_resnet"))


def test_the_stages_are_part_of_the_configuration(encoder, tmp_path):
    _, folder = encoder
    config = AutoConfig.from_pretrained(folder)
    config.out_features = ["layer2", "layer3"]
    before = copy.deepcopy(config.to_dict())
    backbone = AutoBackbone.from_config(config)
    assert type(backbone) is TimmEncoderBackbone
    assert backbone.out_indices == backbone.config.out_indices == [2, 3]
    assert config.to_dict() == before
    backbone.save_pretrained(tmp_path)
    assert TimmEncoderBackbone.from_pretrained(tmp_path).out_indices == [2, 3]
    assert TimmEncoderBackbone.from_pretrained(tmp_path, out_indices=[0]).out_indices == [0]
    by_name = TimmEncoderBackbone.from_pretrained(tmp_path, out_features=["layer1"])
    assert by_name.out_indices == [1]


def test_all_maps_or_a_tuple_on_request(encoder):
    model, folder = encoder
    backbone = TimmEncoderBackbone.from_pretrained(folder, out_indices=[1, 3])
    x = images(model.config)
    output = backbone(x, output_hidden_states=True)
    assert [h.shape[1] for h in output.hidden_states] == backbone.num_features
    for chosen, stage in zip(output.feature_maps, (1, 3), strict=True):
        assert chosen is output.hidden_states[stage]
        torch.testing.assert_close(chosen, timm_maps(model.backbone, x)[stage])
    assert backbone(x).hidden_states is None
    assert [m.shape for m in backbone(x, return_dict=False)[0]] == [
        m.shape for m in backbone(x).feature_maps
    ]
    filtered = backbone.forward_with_filtered_kwargs(
        x, output_attentions=True, interpolate_pos_encoding=True, output_hidden_states=True
    )
    assert len(filtered.hidden_states) == 5
    with pytest.raises(ValueError, match="timm models return no attentions"):
        backbone(x, output_attentions=True)


def test_what_it_saves_is_an_encoder_of_both_libraries(encoder, tmp_path):
    model, folder = encoder
    backbone = TimmEncoderBackbone.from_pretrained(folder, out_indices=[1, 3])
    with torch.no_grad():
        backbone.timm_model.conv1[0].weight += 1
    backbone.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == model.backbone.state_dict().keys()
    encoders = [
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
        AutoModel.from_pretrained(tmp_path).timm_model,
        TimmEncoderBackbone.from_pretrained(tmp_path).timm_model,
    ]
    for loaded in encoders:
        assert loaded.state_dict().keys() == stored.keys()
        for name, value in backbone.timm_model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
    kept = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert (
        json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"].items()
        >= {
            name: kept[name] for name in ("input_size", "mean", "std", "interpolation", "crop_pct")
        }.items()
    )


def test_auto_model_is_not_changed(encoder):
    _, folder = encoder
    assert type(AutoModel.from_pretrained(folder)) is TimmWrapperModel


def test_from_a_configuration_it_starts_as_timm_does():
    config = TimmWrapperConfig(architecture="test_convnext")
    torch.manual_seed(3)
    expected = timm.create_model("test_convnext", num_classes=0)
    torch.manual_seed(3)
    backbone = AutoBackbone.from_config(config)
    for name, value in expected.state_dict().items():
        assert torch.equal(backbone.timm_model.state_dict()[name], value), name


def test_it_trains(encoder):
    _, folder = encoder
    backbone = TimmEncoderBackbone.from_pretrained(folder, out_indices=[2, 4]).train()
    before = copy.deepcopy(dict(backbone.named_buffers()))
    sum(m.pow(2).mean() for m in backbone(torch.randn(4, 3, 32, 32)).feature_maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
    assert backbone.timm_model.conv1[0].weight.grad.abs().sum() > 0
    same = [name for name, value in backbone.named_buffers() if value.equal(before[name])]
    assert not same


def test_the_stock_backbone_of_transformers_loses_the_statistics(encoder):
    """What the documentation says of it; when this fails, the sentence there is outdated."""
    from transformers import TimmBackbone

    model, folder = encoder
    stock = TimmBackbone.from_pretrained(f"local-dir:{folder}")
    name = "layer1.0.bn1.running_mean"
    expected = model.backbone.state_dict()[name]
    found = {key.rsplit("_backbone.")[-1]: value for key, value in stock.state_dict().items()}
    assert not torch.allclose(found[name], expected)
    ours = TimmEncoderBackbone.from_pretrained(folder).timm_model.state_dict()
    assert torch.equal(ours[name], expected)


def test_a_vision_transformer_takes_other_sizes_on_request(tmp_path):
    model = trained("vit_tiny_patch16_224", model_args={"depth": 2})
    folder = export_encoder(model, tmp_path / "encoder")
    config = AutoConfig.from_pretrained(folder)
    config.model_args["dynamic_img_size"] = True
    backbone = TimmEncoderBackbone.from_pretrained(folder, config=config)
    small, large = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(
        backbone(small).feature_maps[0], timm_maps(model.backbone, small)[-1]
    )
    assert backbone(large).feature_maps[0].shape == (1, 192, 4, 6)


def test_a_head_of_transformers_takes_it(encoder, tmp_path):
    model, folder = encoder
    backbone = TimmEncoderBackbone.from_pretrained(folder, out_indices=[1, 2, 3, 4])
    config = UperNetConfig(
        backbone_config=backbone.config,
        hidden_size=8,
        use_auxiliary_head=False,
        num_labels=3,
        pool_scales=[1, 2],
    )
    segmenter = UperNetForSemanticSegmentation(config).eval()
    assert type(segmenter.backbone) is TimmEncoderBackbone
    segmenter.backbone.load_state_dict(backbone.state_dict())
    x = images(model.config)
    logits = segmenter(x).logits
    assert logits.shape == (2, 3, 32, 32)
    segmenter.train()(x, labels=torch.zeros(2, 32, 32, dtype=torch.long)).loss.backward()
    assert segmenter.backbone.timm_model.conv1[0].weight.grad.abs().sum() > 0
    segmenter.eval().save_pretrained(tmp_path)
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert again.backbone.out_indices == [1, 2, 3, 4]
    torch.testing.assert_close(again(x).logits, segmenter(x).logits)
    expected = timm_maps(again.backbone.timm_model, x)[1]
    assert F.mse_loss(again.backbone(x).feature_maps[0], expected) < 1e-10
