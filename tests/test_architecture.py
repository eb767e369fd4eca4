"""Imports go down only, importing is light, and what the documents say runs."""

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ssl_views

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssl_views"
FLOORS = [
    {
        "naming",
        "checked_values",
        "counter_random",
        "finite",
        "statistics",
        "native",
        "pixels",
        "torch_engine",
        "torch_operations",
        "view_engines",
        "view_records",
    },
    {
        "augmentation_graph",
        "losses",
        "named_recipes",
        "recipe_checks",
        "correlation_forms",
        "covariance_forms",
        "loss_modules",
        "projector",
        "spectrum",
        "theory",
        "view_drawing",
        "views",
    },
    {
        "batchnorm",
        "configuration_ssl_views",
        "data",
        "encoder_config",
        "encoder_folder",
        "modeling_ssl_views",
        "small_stem",
        "timm_backbone",
        "timm_weights",
    },
    {
        "callbacks",
        "checkpoints",
        "evaluation",
        "guards",
        "hardware",
        "micro_batches",
        "plots",
        "resumable_trainer",
        "resuming",
        "run_record",
        "sweep",
        "termination",
        "timm_task",
        "train_clock",
        "trainer_checks",
        "training_args",
        "watched_trainer",
    },
    {
        "card_facts",
        "card_licences",
        "card_loading",
        "card_parts",
        "card_sections",
        "card_text",
        "encoders",
        "export",
        "hub",
        "hub_calls",
        "hub_repository",
        "model_card",
        "onnx_export",
    },
    {"publishing_trainer", "trainer"},
    {"cli", "__main__"},
]
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages([str(PACKAGE)], "ssl_views.")
    if m.name != "ssl_views.native._views"  # a library that Python does not import
)


def floor(module):
    name = module.split(".")[1]
    return next(number for number, names in enumerate(FLOORS) if name in names)


def imports_of(path):
    """Modules of the package that a file imports, those for type checkers left out."""
    tree = ast.parse(path.read_text())
    checked = [
        n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)
    ]
    skipped = {id(inner) for node in checked for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "ssl_views":
            found += [f"ssl_views.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.startswith("ssl_views.")]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    path = PACKAGE.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for imported in imports_of(path):
        assert floor(imported) <= floor(module), f"{module} imports {imported}"


def test_files_are_short():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path


def test_the_lower_floors_need_torch_only():
    """F1 and F2 import neither transformers nor timm nor datasets."""
    for module in MODULES:
        if floor(module) > 1:
            continue
        tree = ast.parse(Path(importlib.import_module(module).__file__).read_text())
        for node in tree.body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith(("transformers", "timm", "datasets")), (module, name)


IMPORTS = """
import sys, warnings
warnings.simplefilter("error")

def heavy():
    names = ("datasets", "sklearn", "matplotlib", "transformers.trainer")
    print([name for name in names if name in sys.modules])

import timm; from transformers import AutoModel, PreTrainedModel; heavy()
import ssl_views; heavy()
ssl_views.SSLViewsTrainer; heavy()
"""


def test_importing_is_light():
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )
    base, ours, trainer = result.stdout.strip().split("\n")
    assert ours == base
    assert "datasets" in trainer


def test_every_public_name_exists():
    for name in ssl_views.__all__:
        assert getattr(ssl_views, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ssl_views.nothing


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module):
    names = {"torch": torch, "np": np, **{n: getattr(ssl_views, n) for n in ssl_views.__all__}}
    if module == "ssl_views.__main__":
        return
    results = doctest.testmod(importlib.import_module(module), extraglobs=names)
    assert results.failed == 0


@pytest.mark.parametrize(
    "document", ["README.md", "docs/views.md", "docs/evaluation.md", "docs/publishing.md"]
)
def test_python_blocks_of_the_documents_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / document).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        exec(block, names)


def test_the_version_is_one():
    assert f'version = "{ssl_views.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {ssl_views.__version__}" in (ROOT / "CHANGELOG.md").read_text()
