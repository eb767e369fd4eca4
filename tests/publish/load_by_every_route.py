"""Load what is published by every route, in a process of its own.

python load_by_every_route.py publish|with|without RESULTS SOURCES COMMITS, in the environment of
the Hub. "publish" publishes first, and writes COMMITS; the others wait for that. "without" is a
process that cannot import ssl_views. RESULTS: {id: {route: {"state", "output"}}}.
"""

import os
import sys
import time
from pathlib import Path

if sys.argv[1:2] == ["without"]:
    sys.modules["ssl_views"] = None  # importing it fails

import timm
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()  # a new classifier has new weights, as asked
torch.set_num_threads(1)
CHECKPOINT = "tester/checkpoint"
OFFLINE = os.environ["HF_HUB_OFFLINE"] == "1"


def picture():
    pixels = torch.rand(50, 70, 3, generator=torch.Generator().manual_seed(0))
    return Image.fromarray((pixels * 255).byte().numpy())


def of_timm(model, x):
    return {"state": model.state_dict(), "output": model.eval()(x)}


def of_auto(model, x):
    output = model.eval()(x)
    value = output.logits if "logits" in output else output.pooler_output
    return {"state": model.timm_model.state_dict(), "output": value}


def without_the_package(repo_id, x, sha):
    """Yield (route, what it gives)."""
    yield "AutoModel", of_auto(AutoModel.from_pretrained(repo_id), x)
    for revision in ("v1", sha):
        loaded = AutoModel.from_pretrained(repo_id, revision=revision)
        yield f"AutoModel {revision}", of_auto(loaded, x)
        loaded = timm.create_model(f"hf-hub:{repo_id}@{revision}", pretrained=True)
        yield f"timm {revision}", of_timm(loaded, x)
    labelled = AutoModelForImageClassification.from_pretrained(repo_id, num_labels=7)
    yield "classifier", of_auto(labelled, x)

    def of(**kwargs):
        return timm.create_model(f"hf-hub:{repo_id}", pretrained=True, **kwargs)

    encoder = of()
    yield "timm", of_timm(encoder, x)
    yield "timm classifier", of_timm(of(num_classes=7), x)
    yield "timm grey", of_timm(of(in_chans=1), x[:, :1])
    yield "timm maps", of_timm(of(features_only=True), x)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder))
    yield "timm transform", {"output": transform(picture())}
    processor = AutoImageProcessor.from_pretrained(repo_id)
    yield "processor", {"output": processor(picture())["pixel_values"][0]}
    features = pipeline("image-feature-extraction", model=repo_id, pool=True)(picture())
    yield "pipeline", {"output": torch.tensor(features)}


def with_the_package(repo_id, x, sha):
    """Yield (route, what it gives)."""
    from ssl_views import SSLViewsForPreTraining, export_encoder
    from ssl_views.encoders import from_encoder, load_encoder
    from ssl_views.timm_backbone import TimmEncoderBackbone

    if repo_id == CHECKPOINT:
        model = SSLViewsForPreTraining.from_pretrained(repo_id).eval()
        yield "checkpoint", {"state": model.state_dict()}
        model = AutoModel.from_pretrained(repo_id).eval()
        output = model(x).pooler_output
        yield "AutoModel", {"state": model.backbone.state_dict(), "output": output}
        processor = AutoImageProcessor.from_pretrained(repo_id)
        yield "processor", {"output": processor(picture())["pixel_values"][0]}
        folder = export_encoder(repo_id, Path(sys.argv[2]).with_suffix(".encoder"))
        yield "exported", of_timm(load_encoder(folder), x)
        return
    routes = {"TimmEncoderBackbone": TimmEncoderBackbone}
    if not OFFLINE:  # newer versions ask the Hub, whatever is in the cache
        routes["AutoBackbone"] = AutoBackbone
    for name, route in routes.items():
        backbone = route.from_pretrained(repo_id, out_indices=[1, -1]).eval()
        assert type(backbone) is TimmEncoderBackbone
        state = backbone.timm_model.state_dict()
        yield name, {"state": state, "output": backbone(x).feature_maps}
    yield "load_encoder", of_timm(load_encoder(repo_id), x)
    yield "load_encoder v1", of_timm(load_encoder(repo_id, revision="v1"), x)
    model = from_encoder(repo_id, num_views=2).eval()
    assert model.config.initial_weights == repo_id
    yield "from_encoder", of_timm(model.ssl_views.backbone, x)


def publish(sources):
    """Publish the encoders and push the training checkpoint; return {id: commit}."""
    from ssl_views import SSLViewsForPreTraining
    from ssl_views.hub import publish_encoder

    commits = {}
    for repo_id, source in sources.items():
        if repo_id == CHECKPOINT:
            pushed = SSLViewsForPreTraining.from_pretrained(source["folder"]).push_to_hub(repo_id)
            commits[repo_id] = pushed.oid
        else:
            commits[repo_id] = publish_encoder(source["folder"], repo_id, tag="v1").commit
    return commits


def main(what, results, sources, commits):
    stored, commits = torch.load(sources), Path(commits)
    if what == "publish":
        unfinished = commits.with_suffix(".unfinished")
        torch.save(publish(stored), unfinished)
        unfinished.rename(commits)
    deadline = time.monotonic() + 120
    while not commits.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    shas = torch.load(commits)
    routes = without_the_package if what == "without" else with_the_package
    found = {"commits": shas}
    with torch.no_grad():
        for repo_id, source in stored.items():
            if (what, repo_id) != ("without", CHECKPOINT):
                found[repo_id] = dict(routes(repo_id, source["x"], shas[repo_id]))
    torch.save(found, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
