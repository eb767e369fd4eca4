"""Features kept on disk, so that images are seen once however often they are evaluated."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssl_views.data.image_limits import ImageLimits
from ssl_views.evaluation.features import FeatureProtocol
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.views import ViewRecipe

_FORMAT = 1


class FeatureCache:
    """A folder of features, found again by what they were made of.

    That is: the weights and configuration of the backbone, the fingerprint that `datasets` keeps of
    the rows, the recipe, the limits and the protocol. Rows without a fingerprint are not kept. A
    file that is damaged counts as absent.

    Args:
        folder: made when something is kept.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._weights: tuple[SSLViewsModel, str] | None = None

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
        if self._weights is None or self._weights[0] is not model:
            self._weights = model, _digest(model)
        parts = {
            "format": _FORMAT,
            "weights": self._weights[1],
            "upscale": model.config.upscale,
            "rows": fingerprint,
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
        """Keep features; the file appears whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key)
        aside = path.with_suffix(f".{os.getpid()}")
        try:
            save_file(
                {"features": features.contiguous(), "places": places}, aside, metadata={"key": key}
            )
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.safetensors"


def _digest(model: SSLViewsModel) -> str:
    """Return a hash of the weights and buffers of a backbone, and of the architecture's name."""
    digest = hashlib.sha256(f"{model.config.backbone} {model.config.model_args}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
