"""The model keeps timm's weights, survives a round trip, and says what is wrong."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining

from ssl_views import SSLViewsConfig, SSLViewsForPreTraining, SSLViewsModel

BACKBONES = ["test_resnet", "resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0"]
HARD = [
    "swin_tiny_patch4_window7_224",
    "eva02_tiny_patch14_224",
    "levit_128s",
]  # non-persistent buffers


def config(backbone="test_resnet", **values):
    defaults = {"image_size": 32, "num_views": 2, "projector_dim": 16}
    return SSLViewsConfig(backbone=backbone, **{**defaults, **values})


def state(module):
    return {**module.state_dict(), **dict(module.named_buffers())}  # with non-persistent ones


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(
    "backbone", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
@pytest.mark.parametrize("model_class", [SSLViewsModel, SSLViewsForPreTraining])
def test_a_new_backbone_is_bitwise_timms(backbone, model_class):
    size = {"image_size": 64} if "swin" in backbone else {}
    cfg = config(backbone, **size)
    torch.manual_seed(3)
    theirs = timm.create_model(backbone, num_classes=0, **cfg.backbone_args)
    torch.manual_seed(3)
    ours = model_class(cfg)
    assert_same(state(ours.base_model.backbone), state(theirs))


@pytest.mark.parametrize("backbone", [*BACKBONES, *HARD])
def test_round_trip_is_bitwise(backbone, tmp_path):
    cfg = config(backbone, image_size=224 if backbone in HARD else 32)
    model = SSLViewsForPreTraining(cfg).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.5)
    model.save_pretrained(tmp_path)
    loaded = SSLViewsForPreTraining.from_pretrained(tmp_path)
    assert_same(state(loaded), state(model))
    assert not any("_kept_tensors" in module.__dict__ for module in loaded.modules())
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    x = torch.randn(2, 3, cfg.image_size, cfg.image_size)
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, SSLViewsModel)
    torch.testing.assert_close(base(x).pooler_output, model.ssl_views(x).pooler_output)


@pytest.mark.parametrize("backbone", ["test_resnet", *HARD])
def test_a_partial_checkpoint_loads_finite(backbone, tmp_path):
    SSLViewsForPreTraining(config(backbone, image_size=224)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: w for i, (name, w) in enumerate(sorted(weights.items())) if i % 2}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = SSLViewsForPreTraining.from_pretrained(tmp_path)
    for name, value in state(loaded).items():
        assert torch.isfinite(value.float()).all(), name
        if name in kept:
            assert torch.equal(value, kept[name])
    for name, value in loaded.ssl_views.backbone.named_parameters():
        if value.ndim > 1:  # as timm initialises, not whatever memory held
            assert value.std() < 1, name


@pytest.mark.parametrize("num_channels", [1, 3, 5])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_backbone_and_channel_count_learns(backbone, num_channels):
    model = SSLViewsForPreTraining(config(backbone, num_channels=num_channels, num_views=3))
    output = model(torch.randn(4, 3, num_channels, 32, 32))
    output.loss.backward()
    assert output.embeddings.shape == (3, 4, 16)
    assert output.representations.shape == (3, 4, model.ssl_views.representation_dim)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_views_of_an_image_stay_together():
    """Rows of the backbone are views first; embeddings [v, b] belong to pixel_values [b, v]."""
    model = SSLViewsForPreTraining(config()).eval()
    pixels = torch.randn(3, 2, 3, 32, 32)
    embeddings = model(pixels).embeddings
    for b in range(3):
        for v in range(2):
            alone = model.projector(model.ssl_views(pixels[b, v][None]).pooler_output)[0]
            torch.testing.assert_close(embeddings[v, b], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", ["barlow_twins", "vicreg", "kernel"])
def test_the_loss_is_that_of_the_embeddings(loss):
    model = SSLViewsForPreTraining(config(loss=loss))
    output = model(torch.randn(8, 2, 3, 32, 32))
    torch.testing.assert_close(output.loss, model.loss(output.embeddings).total)
    assert output.terms.keys() == model.loss(output.embeddings).terms.keys()
    assert model(torch.randn(8, 2, 3, 32, 32), return_loss=False).loss is None


def test_upscale_enlarges_before_the_backbone():
    model = SSLViewsModel(config(upscale=2)).eval()
    x = torch.randn(2, 3, 32, 32)
    enlarged = nn.functional.interpolate(x, size=(64, 64), mode="bilinear")
    torch.testing.assert_close(
        model(x).pooler_output, model.backbone(enlarged), atol=1e-5, rtol=1e-4
    )
    assert model.config.pretrained_cfg["input_size"] == [3, 64, 64]


def test_the_configuration_round_trips(tmp_path):
    cfg = config(
        "vit_tiny_patch16_224",
        model_args={"patch_size": 4},
        num_channels=5,
        projector_hidden_dims=[32, 24],
        orthogonality_weight=0.1,
        loss_args={"all_pairs": True},
        recipe="cifar",
        recipe_args={"crop_scale": [0.3, 1.0]},
    )
    cfg.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is SSLViewsConfig
    assert loaded.to_diff_dict() == cfg.to_diff_dict()
    assert loaded.backbone_args == {"in_chans": 5, "img_size": 32, "patch_size": 4}
    stored = json.loads((tmp_path / "config.json").read_text())
    assert str(tmp_path) not in json.dumps(stored)
    assert stored["projector_hidden_dims"] == [32, 24]


def test_auto_classes_know_the_model(tmp_path):
    model = SSLViewsForPreTraining(config())
    model.save_pretrained(tmp_path)
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is SSLViewsForPreTraining
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.data_config["input_size"] == (3, 32, 32)
    assert processor.data_config["mean"] == tuple(model.config.pretrained_cfg["mean"])


def test_projector_widths_are_free():
    model = SSLViewsForPreTraining(config(projector_hidden_dims=[24, 20], projector_dim=12))
    widths = [m.weight.shape for m in model.projector if isinstance(m, nn.Linear)]
    assert widths == [(24, 96), (20, 24), (12, 20)]
    assert [m.bias is None for m in model.projector if isinstance(m, nn.Linear)] == [
        True,
        True,
        False,
    ]
    single = SSLViewsForPreTraining(config(projector_hidden_dims=[]))
    assert [type(m) for m in single.projector] == [nn.Linear]
    default = SSLViewsForPreTraining(config()).projector
    assert [type(m) for m in default] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert default[0].out_features == default[3].out_features == 16


def test_gradient_checkpointing_keeps_the_gradient():
    torch.manual_seed(0)
    model = SSLViewsForPreTraining(config())
    x = torch.randn(8, 2, 3, 32, 32)
    grads = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(x).loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert model.ssl_views.backbone.grad_checkpointing
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "resnet81"}, r"got 'resnet81'. Did you mean 'resnet.*timm.list_models"),
        ({"backbone": "zzz"}, "got 'zzz'.*timm.list_models"),
        ({"model_args": {"num_classes": 7}}, "model_args must not hold 'num_classes'"),
        ({"model_args": {"checkpoint_path": "w"}}, "model_args must not hold 'checkpoint_path'"),
        ({"model_args": {"init": "C:/Users/me"}}, "none may be a path; 'init' is"),
        ({"model_args": {"img_size": 64}}, "model_args must not hold 'img_size'.*image_size"),
        ({"model_args": {"in_chans": 1}}, "model_args must not hold 'in_chans'.*num_channels"),
        ({"num_views": 1}, "num_views must be at least 2; got 1"),
        ({"projector_dim": 0}, "projector_dim and projector_hidden_dims must be at least 1; got 0"),
        ({"projector_hidden_dims": [8, 0]}, r"at least 1; got 16 and \[8, 0\]"),
        ({"upscale": 0}, "upscale must be a whole number >= 1; got 0"),
        ({"loss": "barlow"}, "Did you mean 'barlow_twins'"),
        ({"orthogonality_weight": -2}, "number >= 0 or 'auto'; got -2"),
        ({"loss_args": {"temperature": 1}}, "loss_args do not fit 'barlow_twins'"),
        ({"recipe": "imagnet"}, "Did you mean 'imagenet'"),
        ({"recipe_args": {"hu": 0.1}}, "no number 'hu'"),
        ({"recipe_args": {"num_views": 8}}, "recipe_args must not hold 'num_views'"),
        ({"projecter_dim": 8}, "no field 'projecter_dim'. Did you mean 'projector_dim'"),
    ],
)
def test_wrong_configurations_get_a_sentence(values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_a_misspelt_model_argument_gets_a_sentence():
    with pytest.raises(ValueError, match=r"model_args do not fit 'vit_tiny.*pach_size"):
        SSLViewsModel(config("vit_tiny_patch16_224", model_args={"pach_size": 4}))


def test_wrong_pixels_get_a_sentence():
    model = SSLViewsForPreTraining(config())
    with pytest.raises(ValueError, match=r"shape \(B, V, C, S, S\); got \[\(4, 3, 32, 32\)\]"):
        model(torch.zeros(4, 3, 32, 32))
    with pytest.raises(ValueError, match=r"shape \(N, 3, S, S\); got \(4, 1, 32, 32\)"):
        model.ssl_views(torch.zeros(4, 1, 32, 32))


def test_the_configuration_says_what_a_backbone_started_from(monkeypatch, tmp_path):
    create = timm.create_model
    monkeypatch.setattr(  # no download
        timm, "create_model", lambda *a, pretrained, **k: create(*a, pretrained=False, **k)
    )
    model = SSLViewsForPreTraining(config("resnet18"), pretrained_backbone=True)
    assert model.config.initial_weights == "resnet18.a1_in1k"
    model.save_pretrained(tmp_path)
    loaded = SSLViewsForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.initial_weights == "resnet18.a1_in1k"
    assert SSLViewsForPreTraining(loaded.config).config.initial_weights is None


def test_a_backbone_without_features_is_refused(monkeypatch):
    create = timm.create_model

    def with_empty_layer(*args, **kwargs):  # as inception_next before timm 1.0.31
        model = create(*args, **kwargs)
        model.last = nn.Linear(4, 1)
        model.last.weight = nn.Parameter(torch.empty(0, 4))
        return model

    monkeypatch.setattr(timm, "create_model", with_empty_layer)
    with pytest.raises(ValueError, match="test_resnet must give features without a classifier"):
        SSLViewsForPreTraining(config())
