"""Export encoders of many families, and have them loaded by a process without ssl_views."""

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm_families import Case
from torch import nn

from ssl_views import SSLViewsConfig, SSLViewsModel, export_encoder

SCRIPT = Path(__file__).parent / "load_families.py"


class Loaders:
    """The process that loads; use it in a `with` statement."""

    def __enter__(self) -> "Loaders":
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        return self

    def __exit__(self, *args: object) -> None:
        self._process.kill()  # it has nothing to finish, and takes seconds to end by itself
        self._process.communicate()

    def outcome(self, path: Path) -> dict[str, str]:
        """Return by loader "ok" or what failed first, for a folder of `export_case`."""
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that loads has died on {path.name}")
        return json.loads(answer)


def outcomes(
    cases: Mapping[str, Case], loaders: Loaders, folder: Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name and the outcome of each case; one encoder is on the disk at a time."""
    for name, case in cases.items():
        path = folder / name
        try:
            export_case(case, path)
        except Exception as error:  # noqa: BLE001 (any failure to export is an outcome)
            failure = f"export: {type(error).__name__}: {error}"
            yield name, {"timm": failure, "transformers": failure}
            continue
        yield name, loaders.outcome(path)
        shutil.rmtree(path)
        expected_file(path).unlink()


def expected_file(path: Path) -> Path:
    """Return where the script finds what must come out of the loaders."""
    return path.with_name(f"{path.name}-expected.pt")


def export_case(case: Case, path: Path) -> None:
    """Export the case as an encoder, and write beside it what must come out of the loaders."""
    torch.manual_seed(zlib.crc32(case.architecture.encode()))
    config = SSLViewsConfig(
        backbone=case.architecture, model_args=case.model_args, image_size=case.image_size
    )
    model = SSLViewsModel(config)
    pixels = torch.randn(4, 3, case.image_size, case.image_size)
    _make_trained(model, pixels)
    with torch.no_grad():
        features = model.backbone(pixels)
    scale = features.abs().max()
    if not 1e-3 < scale < 1e3 or (features - features.mean(0)).abs().max() < 5e-3 * scale:
        raise ValueError(f"features, at most {scale:.1g}, cannot be compared")
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    preprocess = timm.data.create_transform(**config.pretrained_cfg)
    export_encoder(model, path)
    expected = {
        "pixels": pixels,
        "features": features,
        "state": model.backbone.state_dict(),
        "picture": picture,
        "preprocessed": preprocess(picture),
    }
    torch.save(expected, expected_file(path))


@torch.no_grad()
def _make_trained(model: nn.Module, pixels: torch.Tensor) -> None:
    """Give parameters and running statistics values that no initialisation gives."""
    for parameter in model.parameters():
        parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        parameter.add_(torch.randn_like(parameter), alpha=0.01)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the statistics become those of one pass
    model.train()(pixels)
    model.eval()
