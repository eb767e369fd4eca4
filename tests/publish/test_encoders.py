"""An encoder is loaded from a folder or the Hub, and is the start of further training."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file
from trained_models import SMALL_VIT, assert_same_backbone, trained

from ssl_views import SSLViewsForPreTraining, export_encoder
from ssl_views.encoder_folder import EncoderError
from ssl_views.encoders import encoder_fields, encoder_path, from_encoder, load_encoder

CASES = {
    "grey": ("test_resnet", 1, {}),
    "colour": ("resnet18", 3, {"model_args": {"layers": [1, 1, 1, 1]}, "recipe_args": {
        "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}}),
    "five channels": ("vit_tiny_patch16_224", 5, {"model_args": SMALL_VIT}),
    "relative positions": ("swin_tiny_patch4_window7_224", 3, {"model_args": {
        "depths": [1, 1], "embed_dim": 24, "num_heads": [1, 2], "window_size": 4}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """The folder and the model of each case."""
    place = tmp_path_factory.mktemp("encoders")
    models = {name: trained(b, channels, **values) for name, (b, channels, values) in CASES.items()}
    return {name: (export_encoder(m, place / name), m) for name, m in models.items()}


def on_hub(hub, folder, repo_id="someone/encoder"):
    return hub.add_repository(repo_id, {path.name: path.read_bytes() for path in folder.iterdir()})


class TestLoading:
    @pytest.mark.parametrize("case", CASES)
    def test_it_is_the_backbone_that_was_trained(self, encoders, case):
        folder, model = encoders[case]
        encoder = load_encoder(folder)
        assert not encoder.training
        assert_same_backbone(encoder, model)
        x = torch.randn(2, model.config.num_channels, 32, 32)
        with torch.no_grad():
            expected = model.ssl_views(x).pooler_output
            torch.testing.assert_close(encoder(x), expected, atol=1e-5, rtol=1e-3)

    def test_it_knows_its_preprocessing(self, encoders):
        folder, model = encoders["grey"]
        data = timm.data.resolve_model_data_config(load_encoder(str(folder)))
        assert tuple(data["input_size"]) == (1, 32, 32)
        assert list(data["mean"]) == model.config.pretrained_cfg["mean"]

    def test_arguments_are_those_of_timm(self, encoders):
        folder, model = encoders["colour"]
        classifier = load_encoder(folder, num_classes=7)
        assert classifier(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
        ours, theirs = model.ssl_views.backbone.conv1.weight, load_encoder(folder, in_chans=1)
        torch.testing.assert_close(theirs.conv1.weight, ours.sum(1, keepdim=True))
        maps = load_encoder(folder, features_only=True)(torch.zeros(1, 3, 32, 32))
        assert [tuple(x.shape[1:]) for x in maps][-1] == (512, 1, 1)
        with pytest.raises(ValueError, match=r"give resnet18 with .*'dpth': 3.*; it says: "):
            load_encoder(folder, dpth=3)

    def test_a_bad_encoder_is_refused(self, encoders, tmp_path):
        folder = shutil.copytree(encoders["grey"][0], tmp_path / "bad")
        (folder / "model.safetensors").write_bytes(b"")
        with pytest.raises(EncoderError, match="must be a safetensors file"):
            load_encoder(folder)
        with pytest.raises(EncoderError, match="must be a safetensors file"):
            from_encoder(folder)

    def test_the_hub(self, encoders, hub):
        folder, model = encoders["grey"]
        old = on_hub(hub, encoders["colour"][0])
        hub.add_repository("someone/encoder", {"evil.py": b"raise SystemExit", "x.bin": b"1"})
        on_hub(hub, folder)
        assert_same_backbone(load_encoder("someone/encoder"), model)
        assert_same_backbone(load_encoder("someone/encoder", revision=old), encoders["colour"][1])
        names = {path.name for path in encoder_path("someone/encoder").iterdir()}
        assert names == {"README.md", "config.json", "model.safetensors"}
        assert not [path for _, path in hub.requests if "evil.py" in path or "x.bin" in path]

    def test_what_cannot_be_found(self, hub, tmp_path):
        with pytest.raises(ValueError, match=r"'no/one' must be a folder, or a repository of"):
            encoder_path("no/one")
        with pytest.raises(ValueError, match=r"there must be a folder 'encoder', and there"):
            encoder_path("encoder")
        with pytest.raises(ValueError, match=r"revision must be left out for a folder; .* 'v1'"):
            encoder_path(tmp_path, revision="v1")

    def test_a_hub_that_cannot_be_reached(self, hub):
        hub.fail("GET|HEAD", "reset")
        with pytest.raises(ValueError, match=r"'no/one' must be a folder, or a repository of"):
            load_encoder("no/one")


class TestFields:
    def test_they_follow_from_the_encoder(self, encoders):
        folder, model = encoders["five channels"]
        assert encoder_fields(folder) == {
            "backbone": "vit_tiny_patch16_224",
            "model_args": SMALL_VIT,
            "num_channels": 5,
            "image_size": 32,
            "recipe_args": {name: model.config.pretrained_cfg[name] for name in ("mean", "std")},
        }

    def test_an_input_that_is_not_square(self, encoders, tmp_path):
        folder = shutil.copytree(encoders["grey"][0], tmp_path / "encoder")
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"]["input_size"] = [1, 32, 64]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(EncoderError, match=r"must be square; it is 32 x 64"):
            encoder_fields(folder)


class TestStarting:
    @pytest.mark.parametrize("case", CASES)
    def test_the_backbone_is_the_encoder(self, encoders, case):
        folder, model = encoders[case]
        torch.manual_seed(5)
        start = from_encoder(folder, num_views=2, projector_dim=16, recipe="cifar")
        assert isinstance(start, SSLViewsForPreTraining)
        assert_same_backbone(start, model)
        assert start.config.initial_weights == "an encoder in a local folder"
        assert str(folder) not in start.config.to_json_string()
        assert (start.config.projector_dim, start.config.upscale) == (16, 1)
        assert start.config.pretrained_cfg["mean"] == model.config.pretrained_cfg["mean"]
        loss = start.train()(torch.randn(4, 2, model.config.num_channels, 32, 32)).loss
        loss.backward()
        torch.optim.SGD(start.parameters(), lr=0.1).step()
        weight = next(iter(model.ssl_views.backbone.state_dict()))
        assert not torch.equal(
            start.ssl_views.backbone.state_dict()[weight],
            model.ssl_views.backbone.state_dict()[weight],
        )

    def test_the_projector_is_new(self, encoders):
        folder, _ = encoders["grey"]
        weights = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            weights.append(from_encoder(folder, projector_dim=8).projector[0].weight)
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_the_hub_id_is_remembered(self, encoders, hub, tmp_path):
        folder, model = encoders["grey"]
        sha = on_hub(hub, folder)
        assert from_encoder("someone/encoder").config.initial_weights == "someone/encoder"
        start = from_encoder("someone/encoder", revision=sha)
        assert_same_backbone(start, model)
        assert start.config.initial_weights == f"someone/encoder@{sha}"
        start.save_pretrained(tmp_path / "run")
        again = SSLViewsForPreTraining.from_pretrained(tmp_path / "run")
        assert again.config.initial_weights == f"someone/encoder@{sha}"
        card = export_encoder(start, tmp_path / "encoder") / "README.md"
        assert "someone/encoder" in card.read_text()

    def test_enlarged_views(self, tmp_path):
        model = trained("vit_tiny_patch16_224", model_args=SMALL_VIT, upscale=2)
        folder = export_encoder(model, tmp_path)
        plain = from_encoder(folder)
        assert (plain.config.image_size, plain.config.upscale) == (64, 1)
        start = from_encoder(folder, image_size=32, upscale=2)
        assert_same_backbone(start, model)
        x = torch.randn(2, 3, 32, 32)
        ours, theirs = start.eval().ssl_views(x), model.ssl_views(x)
        torch.testing.assert_close(ours.pooler_output, theirs.pooler_output)
        with pytest.raises(ValueError, match=r"the 64 pixels that vit_tiny.* got 32 x 1"):
            from_encoder(folder, image_size=32)

    def test_convolutions_take_any_size(self, encoders):
        folder, model = encoders["colour"]
        start = from_encoder(folder, image_size=48)
        assert start.config.image_size == 48
        assert_same_backbone(start, model)

    def test_fields_are_added(self, encoders):
        folder, model = encoders["colour"]
        start = from_encoder(
            folder, backbone="resnet18", num_channels=3, model_args={"drop_path_rate": 0.1},
            recipe_args={"crop_scale": [0.3, 1.0], "mean": [0.1, 0.2, 0.3]},
        )  # fmt: skip
        assert_same_backbone(start, model)
        assert start.config.model_args == {"layers": [1, 1, 1, 1], "drop_path_rate": 0.1}
        assert start.config.recipe_args["crop_scale"] == [0.3, 1.0]
        assert start.config.pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
        assert start.config.pretrained_cfg["std"] == model.config.pretrained_cfg["std"]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"backbone": "resnet34"}, r"must be left out; got backbone. It is resnet18 of 3 chan"),
            ({"num_channels": 1}, r"got num_channels\. It is resnet18 of 3 channels"),
            ({"model_args": {"layers": [2, 2, 2, 2]}}, r"got model_args\['layers'\]"),
            ({"model_args": {"width": 2}}, r"got model_args\['width'\]"),
            ({"initial_weights": "x"}, r"got initial_weights\."),
            ({"projecter_dim": 8}, r"no field 'projecter_dim'"),
        ],
    )
    def test_fields_that_contradict(self, encoders, fields, message):
        with pytest.raises(ValueError, match=message):
            from_encoder(encoders["colour"][0], **fields)

    def test_an_encoder_that_the_configuration_cannot_build(self, tmp_path):
        """One of another program: built for 48 pixels, its preprocessing gives 32."""
        model = trained("vit_tiny_patch16_224", model_args=SMALL_VIT, image_size=48)
        folder = export_encoder(model, tmp_path)
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"]["input_size"] = [3, 32, 32]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"must fit vit_tiny.*as SSLViewsConfig builds it"):
            from_encoder(folder)

    def test_the_weights_are_not_changed_by_the_start(self, encoders):
        folder, model = encoders["grey"]
        start = from_encoder(folder).train()
        start(torch.randn(4, 2, 1, 32, 32))
        stored = load_file(folder / "model.safetensors")
        assert_same_backbone(stored, model)
