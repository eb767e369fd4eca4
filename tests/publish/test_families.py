"""Every family of timm, exported and loaded by timm and transformers without ssl_views."""

import json

import pytest
import timm
import torch
from family_runs import Loaders, expected_file, export_case, outcomes
from timm_families import FAMILIES, LOADERS, Case, cases, known_failure

# With buffers that are not stored, attention windows, BatchNorm.
FEW = ("levit", "swin_transformer", "test_convnext", "test_efficientnet", "test_vit")
NAMES = sorted(FAMILIES.keys() | cases().keys())


@pytest.fixture(scope="module")
def loaders():
    with Loaders() as process:
        yield process


@pytest.fixture(scope="module")
def few(loaders, tmp_path_factory):
    chosen = {name: case for name, case in cases().items() if name in FEW}
    return dict(outcomes(chosen, loaders, tmp_path_factory.mktemp("few")))


@pytest.fixture(scope="module")
def others(loaders, tmp_path_factory):
    chosen = {name: case for name, case in cases().items() if name not in FEW}
    return dict(outcomes(chosen, loaders, tmp_path_factory.mktemp("others")))


def _param(name, loader):
    marks = [] if name in FEW else [pytest.mark.slow]
    if reason := known_failure(name, loader):
        marks.append(pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason))
    return pytest.param(name, loader, marks=marks, id=f"{name}-{loader}")


@pytest.mark.parametrize(
    ("name", "loader"), [_param(name, loader) for name in NAMES for loader in LOADERS]
)
def test_family_is_loaded_as_it_was(name, loader, request):
    if name not in cases():
        pytest.skip(f"timm {timm.__version__} does not have {name}")
    found = request.getfixturevalue("few" if name in FEW else "others")
    assert found[name][loader] == "ok"


def test_every_module_of_timm_is_listed():
    others = {"my_backbones", "small_stem"}  # which another test and this package register
    assert set(timm.list_modules()) - FAMILIES.keys() - others == set()
    for family, case in FAMILIES.items():
        if family in cases():
            assert case.architecture in timm.list_models(module=family)


def test_what_differs_is_noticed(loaders, tmp_path):
    path = tmp_path / "encoder"
    export_case(Case("test_resnet"), path)
    assert loaders.outcome(path) == dict.fromkeys(LOADERS, "ok")

    stored = torch.load(expected_file(path), weights_only=False)
    running = stored["state"]["bn1.running_mean"]
    running[0] = running[0].nextafter(torch.tensor(9.0))
    torch.save(stored, expected_file(path))
    assert loaders.outcome(path) == dict.fromkeys(LOADERS, "state: bn1.running_mean differs")

    export_case(Case("test_resnet"), path)
    config = json.loads((path / "config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = 0.9
    (path / "config.json").write_text(json.dumps(config))
    assert loaders.outcome(path) == dict.fromkeys(LOADERS, "preprocessing")

    stored = torch.load(expected_file(path), weights_only=False)
    stored["features"][0, 0] += 0.1
    torch.save(stored, expected_file(path))
    assert all(text.startswith("features: ") for text in loaders.outcome(path).values())

    (path / "model.safetensors").unlink()
    assert all(text.startswith("load: ") for text in loaders.outcome(path).values())
