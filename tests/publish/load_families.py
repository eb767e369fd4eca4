"""Load encoder folders by timm and by transformers, where ssl_views cannot be imported.

python load_families.py    # a folder per line comes in, a JSON object per line goes out

Beside a folder lies FOLDER-expected.pt: inputs, and what must come of them. The object says for
each loader "ok", or what failed first.
"""

import json
import os
import sys

sys.modules["ssl_views"] = None  # importing it fails, and so do libraries that would

import timm  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from timm.data import create_transform, resolve_model_data_config  # noqa: E402
from transformers import AutoImageProcessor, AutoModel  # noqa: E402

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever the libraries print is no answer
transformers.utils.logging.disable_progress_bar()


def _move(model):
    """Take weights out of the mapped file, where other addresses make other rounding errors.

    Untrained networks of many layers, as here, can multiply those by thousands.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def by_timm(folder, expected):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    _move(model)
    return model.state_dict(), model(expected["pixels"]), transform(expected["picture"])


def by_transformers(folder, expected):
    model = AutoModel.from_pretrained(folder).eval()
    _move(model)
    features = model(expected["pixels"]).pooler_output
    processor = AutoImageProcessor.from_pretrained(folder)
    picture = processor(expected["picture"])["pixel_values"][0]
    return model.timm_model.state_dict(), features, picture


def compared(state, features, picture, expected):
    """Return "ok", or what is not as expected."""
    if state.keys() != expected["state"].keys():
        different = sorted(state.keys() ^ expected["state"].keys())
        return f"state: {len(different)} names differ, {', '.join(different[:2])}"
    for name, tensor in expected["state"].items():
        if state[name].dtype != tensor.dtype or not torch.equal(state[name], tensor):
            return f"state: {name} differs"
    if features.shape != expected["features"].shape:
        return f"features: shape {tuple(features.shape)}, not {tuple(expected['features'].shape)}"
    if not torch.allclose(features, expected["features"], atol=1e-5, rtol=1e-3):
        error = (features - expected["features"]).abs().max().item()
        return f"features: {error:.1g} apart of {expected['features'].abs().max().item():.1g}"
    if picture.shape != expected["preprocessed"].shape or not torch.equal(
        picture, expected["preprocessed"]
    ):
        return "preprocessing"
    return "ok"


def outcome(load, folder, expected):
    try:
        with torch.no_grad():
            return compared(*load(folder, expected), expected)
    except Exception as error:  # noqa: BLE001 (any failure to load is an outcome)
        lines = str(error).strip().splitlines() or [""]
        return f"load: {type(error).__name__}: {' '.join(line.strip() for line in lines)[:160]}"


for line in sys.stdin:
    folder = line.strip()
    expected = torch.load(f"{folder}-expected.pt", weights_only=False)
    outcomes = {
        "timm": outcome(by_timm, folder, expected),
        "transformers": outcome(by_transformers, folder, expected),
    }
    print(json.dumps(outcomes), file=answers, flush=True)
