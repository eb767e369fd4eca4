"""Features kept on disk, so that images are seen once however often they are evaluated."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from ssl_views.data.dataset import MultiViewDataset
from ssl_views.data.image_limits import BadImage, ImageLimits
from ssl_views.data.image_roots import readable_path
from ssl_views.evaluation.features import FeatureProtocol
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.run_record import describe_data
from ssl_views.views import ViewRecipe

_FORMAT = 1
_AT_ONCE = 1024  # rows

logger = logging.get_logger(__name__)


class FeatureCache:
    """A folder of features, found again by what they were made of.

    That is: the weights and configuration of the backbone, the rows, the recipe, the limits and the
    protocol. Rows are known by the fingerprint that `datasets` keeps of them, the content of up to
    256 images, and size and time of image files; those without a fingerprint are not kept. A file
    that is damaged counts as absent.

    Args:
        folder: made when something is kept.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def key(
        self,
        model: SSLViewsModel,
        rows: Any,
        recipe: ViewRecipe,
        protocol: FeatureProtocol,
        limits: ImageLimits,
    ) -> str | None:
        """Return the name of features that are made of these, or None if they are not kept."""
        fingerprint = getattr(rows, "_fingerprint", None)
        if fingerprint is None:
            return None
        parts = {
            "format": _FORMAT,
            "weights": _digest(model),
            "upscale": model.config.upscale,
            "rows": [fingerprint, _describe(rows)],
            "recipe": asdict(recipe),
            "protocol": asdict(protocol),
            "limits": asdict(limits),
        }
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, key: str) -> tuple[Tensor, Tensor] | None:
        """Return features (n, D) and the places (n,) of their rows, or None."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != key:
                    return None
                return file.get_tensor("features"), file.get_tensor("places")
        except (SafetensorError, OSError):
            return None

    def write(self, key: str, features: Tensor, places: Tensor) -> None:
        """Keep features; the file appears whole, or a warning says why it does not."""
        path = self._path(key)
        aside = path.with_suffix(f".{os.getpid()}")
        content = {"features": features.contiguous(), "places": places}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                save_file(content, aside, metadata={"key": key})
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            logger.warning("Features are not kept for the next time: %s", error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.safetensors"


def _describe(rows: Any) -> str:
    """Return a hash of some images, and of size and time of the files that rows name.

    The fingerprint of `datasets` follows from how rows were made, not from what they hold.
    """
    dataset = MultiViewDataset(rows)
    digest = hashlib.sha256(json.dumps(describe_data(dataset)).encode())
    for start in range(0, len(dataset), _AT_ONCE):
        values, _ = dataset.read(range(start, min(start + _AT_ONCE, len(dataset))))
        if not all(isinstance(v, Mapping) and v.get("bytes") is None for v in values):
            break  # the images are in the rows
        for value in values:
            try:
                found = readable_path(str(value.get("path"))).stat()
            except (BadImage, OSError):
                continue
            digest.update(f"{found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()


def _digest(model: SSLViewsModel) -> str:
    """Return a hash of the weights and buffers of a backbone, and of the architecture's name."""
    digest = hashlib.sha256(f"{model.config.backbone} {model.config.model_args}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
