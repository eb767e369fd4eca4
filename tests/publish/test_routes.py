"""What was published is loaded from the Hub by every route, and then from the cache without it."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hub_stand_in import HubStandIn
from load_by_every_route import CHECKPOINT

from ssl_views import SSLViewsConfig, SSLViewsForPreTraining, export_encoder

SCRIPT = Path(__file__).with_name("load_by_every_route.py")
RESNET, VIT = "tester/resnet", "tester/vit"
BACKBONES = {
    RESNET: {"backbone": "resnet18", "model_args": {"layers": [1, 1, 1, 1]}},
    VIT: {"backbone": "vit_tiny_patch16_224", "model_args": {"depth": 4}},
    CHECKPOINT: {"backbone": "test_resnet"},
}
CONV = {RESNET: "conv1.weight", VIT: "patch_embed.proj.weight"}
HEAD = {RESNET: "fc", VIT: "head"}


def trained(**values):
    """A model with running statistics that no initialisation gives."""
    torch.manual_seed(0)
    config = SSLViewsConfig(image_size=32, num_views=2, projector_dim=8, **values)
    model = SSLViewsForPreTraining(config)
    for _ in range(2):
        model(torch.randn(4, 2, 3, 32, 32) + 1)
    return model.eval()


@contextmanager
def processes(hub, folder, **environment):
    """Yield a function that starts the script; those that still run at the end are killed."""
    running = []

    def start(what, home):
        results = folder / f"{home}-{len(environment)}.pt"
        words = [what, results, folder / "sources.pt", folder / "commits.pt"]
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, words)],
            env={**hub.environment(folder / home), "OMP_NUM_THREADS": "1", **environment},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)

        def results_of():
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
            return torch.load(results)

        return results_of

    try:
        yield start
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Publish, load by all routes, stop the Hub, load again; return sources, files and results."""
    folder = tmp_path_factory.mktemp("routes")
    models = {repo_id: trained(**values) for repo_id, values in BACKBONES.items()}
    sources = {}
    for repo_id, model in models.items():
        source = folder / repo_id.split("/")[1]
        if repo_id == CHECKPOINT:
            model.save_pretrained(source)
        else:
            export_encoder(model, source)
        sources[repo_id] = {"folder": str(source), "x": torch.randn(2, 3, 32, 32)}
    torch.save(sources, folder / "sources.pt")
    results = {}
    with HubStandIn() as hub, processes(hub, folder) as start:
        ours, others = start("publish", "friend"), start("without", "stranger")
        results["with"], results["without"] = ours(), others()
        files = {repo_id: hub.files(repo_id) for repo_id in sources}
        unknown = list(hub.unknown)
    # The server is down.
    with processes(hub, folder, HF_HUB_OFFLINE="1") as start:
        ours, others = start("with", "friend"), start("without", "stranger")
        results["with, offline"], results["without, offline"] = ours(), others()
    return {
        "models": models,
        "sources": sources,
        "commits": results["with"]["commits"],
        "results": results,
        "files": files,
        "unknown": unknown,
    }


def assert_same_state(found, expected, without=()):
    names = [name for name in expected if not name.startswith(tuple(without))]
    assert set(names) <= found.keys()
    for name in names:
        assert torch.equal(found[name], expected[name]), name


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("network", ["without", "without, offline"])
@pytest.mark.parametrize("repo_id", [RESNET, VIT])
def test_timm_and_transformers_load_the_encoder_without_this_package(published, repo_id, network):
    backbone = published["models"][repo_id].ssl_views.backbone
    x, sha = published["sources"][repo_id]["x"], published["commits"][repo_id]
    routes = published["results"][network][repo_id]
    state = backbone.state_dict()
    with torch.no_grad():
        features = backbone(x)
        maps = backbone.forward_intermediates(x, intermediates_only=True)
    plain = [
        "AutoModel",
        "timm",
        *(f"{way} {r}" for way in ("AutoModel", "timm") for r in ("v1", sha)),
    ]
    for route in plain:
        assert routes[route]["state"].keys() == state.keys(), route
        assert_same_state(routes[route]["state"], state)
        close(routes[route]["output"], features)
    for route in ("classifier", "timm classifier"):
        assert_same_state(routes[route]["state"], state)
        new = routes[route]["state"].keys() - state.keys()
        assert new == {f"{HEAD[repo_id]}.weight", f"{HEAD[repo_id]}.bias"}
        assert routes[route]["output"].shape == (2, 7)
    grey = routes["timm grey"]["state"]
    assert_same_state(grey, state, [CONV[repo_id]])
    close(grey[CONV[repo_id]], state[CONV[repo_id]].sum(1, keepdim=True))
    with_maps = routes["timm maps"]
    bare = {name.removeprefix("model."): value for name, value in with_maps["state"].items()}
    assert bare.keys() <= state.keys()
    assert_same_state(bare, {name: state[name] for name in bare})
    for found, expected in zip(with_maps["output"], maps[-len(with_maps["output"]) :], strict=True):
        close(found, expected)
    pixels = routes["timm transform"]["output"]
    assert torch.equal(routes["processor"]["output"], pixels)
    with torch.no_grad():
        close(routes["pipeline"]["output"], backbone(pixels[None]))


@pytest.mark.parametrize("network", ["with", "with, offline"])
@pytest.mark.parametrize("repo_id", [RESNET, VIT])
def test_this_package_loads_the_encoder(published, repo_id, network):
    backbone = published["models"][repo_id].ssl_views.backbone
    x = published["sources"][repo_id]["x"]
    routes = published["results"][network][repo_id]
    for route in routes.values():
        assert route["state"].keys() == backbone.state_dict().keys()
        assert_same_state(route["state"], backbone.state_dict())
    with torch.no_grad():
        for name in ("load_encoder", "load_encoder v1", "from_encoder"):
            close(routes[name]["output"], backbone(x))
        maps = backbone.forward_intermediates(x, intermediates_only=True)
    for name in {"TimmEncoderBackbone", "AutoBackbone"} & routes.keys():
        for found, expected in zip(routes[name]["output"], (maps[1], maps[-1]), strict=True):
            close(found, expected)
    assert ("AutoBackbone" in routes) == (network == "with")


@pytest.mark.parametrize("network", ["with", "with, offline"])
def test_a_training_checkpoint_comes_back_from_the_hub(published, network):
    model = published["models"][CHECKPOINT]
    backbone, x = model.ssl_views.backbone, published["sources"][CHECKPOINT]["x"]
    routes = published["results"][network][CHECKPOINT]
    assert_same_state(routes["checkpoint"]["state"], model.state_dict())
    for name in ("AutoModel", "exported"):
        assert routes[name]["state"].keys() == backbone.state_dict().keys()
        assert_same_state(routes[name]["state"], backbone.state_dict())
        with torch.no_grad():
            close(routes[name]["output"], backbone(x))
    assert routes["processor"]["output"].shape == (3, 32, 32)


def test_nothing_else_is_uploaded(published):
    encoder = {"config.json", "model.safetensors", "README.md"}
    for repo_id in (RESNET, VIT):
        assert published["files"][repo_id].keys() == encoder
    # Without a pickle, and without code.
    assert published["files"][CHECKPOINT].keys() <= encoder
    assert published["files"][CHECKPOINT].keys() >= {"config.json", "model.safetensors"}


def test_the_stand_in_knows_every_request(published):
    assert not published["unknown"]
