"""What is written as an encoder folder, from which sources, and what a failure leaves."""

import json
from pathlib import Path

import pytest
import timm
import torch
from card_cases import EVALUATION
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from trained_models import (
    SMALL_VIT,
    assert_same_backbone,
    trained,
    write_checkpoint,
    write_end,
)
from transformers import AutoImageProcessor, AutoModel

from ssl_views import export_encoder
from ssl_views.card_facts import CardDetails, facts_of
from ssl_views.encoder_folder import check_encoder
from ssl_views.evaluation.history import RunHistory
from ssl_views.model_card import render_card

CASES = {
    "grey": ("test_resnet", 1, {}),
    "five channels": ("vit_tiny_patch16_224", 5, {"model_args": SMALL_VIT}),
    "transformer": ("vit_tiny_patch16_224", 3, {"model_args": SMALL_VIT}),
    "convolutions": ("convnext_atto", 3, {"model_args": {"depths": [1, 1, 2, 1]}}),
    "enlarged": ("resnet18", 3, {"upscale": 2, "model_args": {"layers": [1, 1, 1, 1]}}),
}


@pytest.mark.parametrize("case", CASES)
def test_both_loaders_give_our_features(case, tmp_path):
    backbone, channels, values = CASES[case]
    model = trained(backbone, channels, **values)
    folder = str(export_encoder(model, tmp_path / "encoder"))
    side = model.config.image_size * model.config.upscale
    x = torch.randn(3, channels, side, side)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    by_auto = AutoModel.from_pretrained(folder).eval()
    assert_same_backbone(by_timm, model)
    assert_same_backbone(by_auto.timm_model.state_dict(), model)
    with torch.no_grad():
        ours = model.ssl_views.backbone(x)
        torch.testing.assert_close(by_timm(x), ours, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(by_auto(x).pooler_output, ours, atol=1e-5, rtol=1e-3)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.data_config["input_size"] == (channels, side, side)
    if channels != 5:
        picture = Image.new("RGB" if channels == 3 else "L", (70, 50), 90)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(by_timm))
        assert torch.equal(transform(picture), processor(picture)["pixel_values"][0])


def test_timm_gives_the_encoder_another_head_and_channels(tmp_path):
    model = trained("resnet18", model_args={"layers": [1, 1, 1, 1]})
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
    modes = {p.stat().st_mode for p in folder.iterdir()}
    assert len(modes) == 1  # others may read the weights too
    config = json.loads((folder / "config.json").read_text())
    assert config["num_classes"] == 0
    assert not {"num_classes", "pretrained"} & config["model_args"].keys()
    assert config["dtype"] == "float32"


def test_half_precision_models_are_exported_in_float32(tmp_path):
    folder = export_encoder(trained("test_resnet").to(torch.bfloat16).ssl_views, tmp_path)
    state = load_file(folder / "model.safetensors")
    assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}


def test_training_only_arguments_are_left_out(tmp_path):
    model = trained("resnet18", model_args={"drop_path_rate": 0.1, "layers": [1, 1, 1, 1]})
    config = json.loads((export_encoder(model, tmp_path) / "config.json").read_text())
    assert config["model_args"] == {"in_chans": 3, "layers": [1, 1, 1, 1]}


def test_the_card_says_what_is_known(tmp_path):
    details = CardDetails(license="mit", data="Pictures of my cat.")
    export_encoder(trained(upscale=2), tmp_path / "a")
    export_encoder(trained(), tmp_path / "b", details=details)
    card = ModelCard.load(tmp_path / "a" / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.license is None
    assert "enlarged" in card.text
    assert "not stated" in card.text.lower()
    card = ModelCard.load(tmp_path / "b" / "README.md")
    assert card.data.license == "mit"
    assert "Pictures of my cat." in card.text


def test_writing_again_is_fine_but_not_over_other_files(tmp_path):
    model = trained("test_resnet")
    export_encoder(model, tmp_path)
    export_encoder(model, tmp_path)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(
        ValueError, match=r"must be an empty or new folder; it holds \['thesis.tex'\]"
    ):
        export_encoder(model, tmp_path)


@pytest.fixture
def spoilt():
    model = trained()
    with torch.no_grad():
        next(model.ssl_views.backbone.parameters())[0] = torch.nan
    return model


class TestFailures:
    def test_values_that_are_not_finite_are_refused(self, tmp_path, spoilt):
        with pytest.raises(ValueError, match="holds values that are not finite"):
            export_encoder(spoilt, tmp_path / "encoder")
        assert not (tmp_path / "encoder").exists()

    def test_a_failure_leaves_the_earlier_encoder(self, tmp_path, spoilt):
        export_encoder(trained(), tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ValueError, match="not finite"):
            export_encoder(spoilt, tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_what_a_kill_has_left_is_no_obstacle(self, tmp_path):
        (tmp_path / "_staging").mkdir()
        for name in ("model.safetensors", "model.onnx"):
            (tmp_path / "_staging" / name).write_bytes(b"half")
        export_encoder(trained(), tmp_path)
        check_encoder(tmp_path)
        assert not (tmp_path / "_staging").exists()
        assert not (tmp_path / "model.onnx").exists()

    def test_what_is_no_model_gets_a_sentence(self, tmp_path):
        with pytest.raises(ValueError, match=r"an SSLViewsModel.*or a path; got Linear"):
            export_encoder(torch.nn.Linear(2, 2), tmp_path / "encoder")
        with pytest.raises(ValueError, match=r"revision must be left out.* got 'main'"):
            export_encoder(trained(), tmp_path / "encoder", revision="main")
        assert not (tmp_path / "encoder").exists()


def test_the_model_and_the_random_numbers_stay(tmp_path):
    model = trained().train().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    export_encoder(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_tensors_that_share_memory_are_stored_each(tmp_path):
    """safetensors refuses such tensors; CoaT has them."""
    model = trained()
    norm = model.ssl_views.backbone.layer1[0].bn1
    norm.bias = norm.weight
    folder = export_encoder(model, tmp_path)
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(stored["layer1.0.bn1.bias"], norm.weight)
    assert torch.equal(stored["layer1.0.bn1.weight"], norm.weight)


def test_files_of_an_earlier_encoder_are_removed(tmp_path):
    for name in ("model.onnx", "spectrum.png"):
        (tmp_path / name).write_bytes(b"of another one")
    export_encoder(trained(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_foreign_backbone_is_exported_and_said(tmp_path, caplog):
    import my_backbones  # noqa: F401 (registers)

    model = trained("my_tiny_net", model_args={"width": 12})
    folder = export_encoder(model, tmp_path)
    assert "must install and import my_backbones first" in caplog.text
    assert "import my_backbones" in (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["registered_by"] == "my_backbones"
    assert config["model_args"] == {"in_chans": 3, "width": 12}
    caplog.clear()
    folder = export_encoder(trained(), tmp_path / "other")
    assert "registered_by" not in json.loads((folder / "config.json").read_text())
    assert caplog.text == ""


def exported(source, folder, **values):
    """Return the weights of an export."""
    return load_file(export_encoder(source, folder, **values) / "model.safetensors")


class TestSources:
    def test_a_run_that_has_ended(self, tmp_path):
        model, run = trained(), tmp_path / "run"
        write_checkpoint(run, 2, trained(seed=1))
        write_end(run, 4, model)
        assert_same_backbone(exported(run, tmp_path / "a"), model)
        assert_same_backbone(exported(str(run), tmp_path / "b"), model)
        card = (tmp_path / "a" / "README.md").read_text()
        assert card == (tmp_path / "b" / "README.md").read_text()
        assert card != render_card(facts_of(model.ssl_views, None))  # the run is known
        assert card == render_card(facts_of(model.ssl_views, RunHistory.read(run)))

    def test_a_run_that_goes_on(self, tmp_path, caplog):
        model, run = trained(), tmp_path / "run"
        write_checkpoint(run, 1, trained(seed=1))
        newest = write_checkpoint(run, 2, model)
        assert_same_backbone(exported(run, tmp_path / "a"), model)
        card = (tmp_path / "a" / "README.md").read_text()
        assert card == render_card(facts_of(model.ssl_views, RunHistory.read(newest)))
        # One that ended before, and was resumed.
        write_end(run, 1, trained(seed=3))
        assert_same_backbone(exported(run, tmp_path / "a"), model)

    def test_a_newest_checkpoint_that_is_damaged(self, tmp_path, caplog):
        model, run = trained(), tmp_path / "run"
        write_checkpoint(run, 2, model)
        newest = write_checkpoint(run, 3, trained(seed=1))
        (newest / "optimizer.pt").unlink()
        assert_same_backbone(exported(run, tmp_path / "a"), model)
        assert "checkpoint-3 is not exported: its optimizer.pt is missing" in caplog.text
        write_end(run, 2, trained(seed=2))
        with pytest.raises(ValueError, match=r"of .*run' none newer than its.* checkpoint-3: its"):
            export_encoder(run, tmp_path / "b")

    def test_a_run_whose_checkpoints_have_no_manifest(self, tmp_path):
        model, run = trained(), tmp_path / "run"
        place = write_checkpoint(run, 2, model, sealed=False)
        with pytest.raises(
            ValueError, match=r"must have a checkpoint that is whole.* checkpoint-2"
        ):
            export_encoder(run, tmp_path / "a")
        assert_same_backbone(exported(place, tmp_path / "a"), model)

    def test_a_checkpoint(self, tmp_path):
        model = trained()
        place = write_checkpoint(tmp_path / "run", 2, model)
        assert_same_backbone(exported(place, tmp_path / "a"), model)
        plain = tmp_path / "plain"
        model.save_pretrained(plain)
        assert_same_backbone(exported(plain, tmp_path / "b"), model)
        card = (tmp_path / "b" / "README.md").read_text()
        assert card == render_card(facts_of(model.ssl_views, None))

    def test_an_evaluated_run_gets_a_picture(self, tmp_path):
        pytest.importorskip("matplotlib")
        run = write_end(tmp_path / "run", 4, trained())
        (run / "evaluation.json").write_text(json.dumps(EVALUATION))
        folder = export_encoder(run, tmp_path / "encoder")
        assert (folder / "spectrum.png").read_bytes().startswith(b"\x89PNG")
        assert "(spectrum.png)" in (folder / "README.md").read_text()

    def test_a_live_model_with_its_history(self, tmp_path):
        model = trained()
        history = RunHistory.read(write_end(tmp_path / "run", 4, model))
        export_encoder(model, tmp_path / "a", history=history)
        card = (tmp_path / "a" / "README.md").read_text()
        assert card == render_card(facts_of(model.ssl_views, history))

    def test_the_hub(self, tmp_path, hub):
        old, new = trained(), trained(seed=1)
        revisions = []
        for model in (old, new):
            place = write_checkpoint(tmp_path / "run", 2, model)
            files = {path.name: path.read_bytes() for path in place.iterdir()}
            revisions.append(hub.add_repository("someone/run", files))
        assert_same_backbone(exported("someone/run", tmp_path / "a"), new)
        assert_same_backbone(exported("someone/run", tmp_path / "b", revision=revisions[0]), old)
        assert not [path for _, path in hub.requests if "optimizer.pt" in path]
        with pytest.raises(ValueError, match=r"'someone/runs' must be a folder, or a repository"):
            export_encoder("someone/runs", tmp_path / "c")
        with pytest.raises(ValueError, match=r"that can be read at 'v9'"):
            export_encoder("someone/run", tmp_path / "c", revision="v9")

    def test_an_encoder_is_one_already(self, tmp_path, small_encoder):
        with pytest.raises(ValueError, match=r"is an encoder already. Publish it with ssl-views p"):
            export_encoder(small_encoder, tmp_path / "encoder")

    @pytest.mark.parametrize("source", ["no_run", "./no/run", "a/b/c", Path("no/run")], ids=str)
    def test_no_such_folder(self, tmp_path, source):
        with pytest.raises(ValueError, match=r"there must be a folder '.*', and there is none"):
            export_encoder(source, tmp_path / "encoder")

    @pytest.mark.parametrize("content", [None, "{", "[]", '{"model_type": "resnet"}'])
    def test_a_folder_of_something_else(self, tmp_path, content):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"holds no config.json of one. Give the --output_dir"):
            export_encoder(tmp_path, tmp_path / "encoder")

    def test_a_revision_of_a_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"revision must be left out for a folder;.* 'main'"):
            export_encoder(tmp_path, tmp_path / "encoder", revision="main")

    def test_weights_that_do_not_load(self, tmp_path):
        trained().save_pretrained(tmp_path / "run")
        path = tmp_path / "run" / "model.safetensors"
        weights = load_file(path)
        del weights["ssl_views.backbone.conv1.0.weight"]
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"lacks 1, backbone.conv1.0.weight among them"):
            export_encoder(tmp_path / "run", tmp_path / "encoder")
        path.write_bytes(b"\x80\x02}q\x00.")
        with pytest.raises(ValueError, match=r"those of '.*run' do not: "):
            export_encoder(tmp_path / "run", tmp_path / "encoder")
        path.unlink()
        with pytest.raises(ValueError, match=r"those of '.*run' do not: "):
            export_encoder(tmp_path / "run", tmp_path / "encoder")


def test_a_readme_of_something_else_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(ValueError, match=r"it holds a README.md of something else"):
        export_encoder(trained("test_resnet"), tmp_path)
    assert (tmp_path / "README.md").read_text() == "my project"
