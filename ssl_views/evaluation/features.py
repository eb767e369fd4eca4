"""Frozen features: what a backbone gives for images, without augmentation or averaged over it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_views.data.image_limits import LIMITS, ImageLimits
from ssl_views.evaluation.view_batches import Render, ViewBatches
from ssl_views.modeling_ssl_views import SSLViewsModel
from ssl_views.pixels import PixelBatch
from ssl_views.statistics import gather_rows
from ssl_views.views import ViewRecipe

RAW_PIXEL_SIZE = 32
COMPARED_VIEWS = 4
_SEED = 0  # of views that are averaged or compared: every evaluation sees the same

Precision = Literal["float32", "bfloat16", "float16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class FeatureProtocol:
    """How features are made.

    Attributes:
        feature_views: 1 is one clean view per image, the largest centred square. n > 1 averages
            the representations of the clean view and of n - 1 augmented ones, as
            arXiv 2312.10725 does with n = 16, of training and test images: accuracies are higher,
            and not comparable with those of one clean view.
        precision: of the backbone's computation, by autocast, and of the features.
    """

    feature_views: int = 1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.feature_views < 1:
            raise ValueError(
                f"feature_views must be at least 1; got {self.feature_views}. 1 is one clean view."
            )
        if self.precision not in _DTYPES:
            raise ValueError(
                f"precision must be one of {list(_DTYPES)}; got {self.precision!r}. Use bfloat16 "
                "where float32 is slow."
            )

    @property
    def name(self) -> str:
        """What to call the features."""
        return f"mean of {self.feature_views} views" if self.feature_views > 1 else "one clean view"

    @property
    def dtype(self) -> torch.dtype:
        """Of the features."""
        return _DTYPES[self.precision]

    def renderer(self, recipe: ViewRecipe) -> Render:
        """Return what renders the views that are averaged."""
        more = self.feature_views - 1
        # A recipe has two views at least.
        augmented = replace(recipe, num_views=max(2, more), per_view=()) if more else None

        def render(pixels: PixelBatch, indices: Sequence[int]) -> Tensor:
            clean = recipe.clean_view(pixels)[:, None]
            if augmented is None:
                return clean
            sizes = pixels.heights, pixels.widths
            records = augmented.draw(indices, *sizes, epoch=0, seed=_SEED)
            return torch.cat([clean, augmented.render(pixels, records)[:, :more]], dim=1)

        return render


@dataclass(frozen=True)
class Extraction:
    """How features are extracted, which does not change them.

    Attributes:
        batch_size: views at once.
        num_threads: that decode and render ahead of the backbone.
        limits: which images are used.
        on_batch: called with the number of images done since the last call.
    """

    batch_size: int = 256
    num_threads: int = 1
    limits: ImageLimits = LIMITS
    on_batch: Callable[[int], object] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_threads < 1:
            raise ValueError(
                "batch_size and num_threads must be at least 1; got "
                f"{self.batch_size} and {self.num_threads}. 256 and 1 are the defaults."
            )


ONE_CLEAN_VIEW = FeatureProtocol()
EXTRACTION = Extraction()


def extract_features(
    model: SSLViewsModel,
    rows: Sequence[Any] | Any,
    recipe: ViewRecipe,
    *,
    protocol: FeatureProtocol = ONE_CLEAN_VIEW,
    extraction: Extraction = EXTRACTION,
) -> Tensor:
    """Return the pooled backbone output of images, in evaluation mode.

    The model is left in the mode it had. Images that cannot be used are left out, and a warning
    names them. With several processes, each computes its share, and all get the whole.

    Args:
        model: gives representations.
        rows: N mappings with an encoded "image", as from `load_images`.
        recipe: of the model: image size, channels and normalization, and views where they are
            averaged.
        protocol: what the features are.
        extraction: how they are made.

    Returns:
        (n, D_h) in the precision of the protocol, on the CPU; n is N less the images left out.

    Raises:
        PixelFormatError: with the index and path of an image for which the user has to decide.
        ValueError: if no image can be used.
    """
    return features_and_places(model, rows, recipe, protocol, extraction)[0]


def features_and_places(
    model: SSLViewsModel,
    rows: Sequence[Any] | Any,
    recipe: ViewRecipe,
    protocol: FeatureProtocol,
    extraction: Extraction,
) -> tuple[Tensor, Tensor]:
    """Return what `extract_features` does, and the places (n,) of the rows, in order."""
    render = protocol.renderer(recipe)
    values, places = _represent(model, rows, render, protocol, extraction)
    return values[:, 0], places


def view_representations(
    model: SSLViewsModel,
    rows: Sequence[Any] | Any,
    recipe: ViewRecipe,
    *,
    precision: Precision = "float32",
    extraction: Extraction = EXTRACTION,
) -> Tensor:
    """Return the representations of augmented views, for statistics of how they differ.

    Always of as many views, whatever a run trains on, for LiDAR depends on their number; drawn from
    the numbers that the recipe's views share, and the same every time.

    Args:
        model: see `extract_features`.
        rows: see `extract_features`.
        recipe: of the model.
        precision: see `FeatureProtocol`.
        extraction: see `extract_features`.

    Returns:
        (COMPARED_VIEWS, n, D_h), on the CPU.
    """
    augmented = replace(recipe, num_views=COMPARED_VIEWS, per_view=())

    def render(pixels: PixelBatch, indices: Sequence[int]) -> Tensor:
        records = augmented.draw(indices, pixels.heights, pixels.widths, epoch=0, seed=_SEED)
        return augmented.render(pixels, records)

    protocol = FeatureProtocol(COMPARED_VIEWS, precision)
    values, _ = _represent(model, rows, render, protocol, extraction, average=False)
    return values.transpose(0, 1)


@torch.no_grad()
def _represent(
    model: SSLViewsModel,
    rows: Any,
    render: Render,
    protocol: FeatureProtocol,
    extraction: Extraction,
    average: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return representations (n, F, D_h), F = 1 if `average`, and the places (n,) of their rows."""
    num_views, dtype = protocol.feature_views, protocol.dtype
    batches = ViewBatches(
        rows,
        model.config.num_channels,
        render,
        images_at_once=max(1, extraction.batch_size // num_views),
        num_threads=extraction.num_threads,
        limits=extraction.limits,
    )
    kept = 1 if average else num_views
    device, dim = model.device, model.representation_dim
    reduced = protocol.precision != "float32"
    was_training = model.training
    model.eval()
    values = torch.empty(len(batches.dataset), kept * dim, dtype=dtype)
    used = torch.zeros(len(values), dtype=torch.bool)
    try:
        for views, own in batches:
            found = torch.empty(0, kept, dim, device=device)
            if views is not None:
                x = views.flatten(0, 1).to(device, model.dtype)
                with torch.autocast(device.type, dtype) if reduced else nullcontext():
                    found = model(x).pooler_output.unflatten(0, views.shape[:2]).float()
            if average:
                found = found.mean(dim=1, keepdim=True)
            found = gather_rows(found.to(dtype).flatten(1)).cpu()
            places = gather_rows(torch.tensor(own, device=device, dtype=torch.int64)).cpu()
            values[places], used[places] = found, True
            if extraction.on_batch is not None:
                extraction.on_batch(len(found))
    finally:
        model.train(was_training)
    batches.check(int(used.sum()))
    if not used.all():
        values = values[used]
    return values.unflatten(1, (kept, dim)), used.nonzero()[:, 0]


def raw_pixels(
    rows: Sequence[Any] | Any,
    recipe: ViewRecipe,
    *,
    extraction: Extraction = EXTRACTION,
) -> Tensor:
    """Return the normalized pixels of one clean view per image, (N, C * s * s) float32.

    The baseline that a backbone has to beat. It leaves out the images that `extract_features` does.
    """
    size = min(recipe.image_size, RAW_PIXEL_SIZE)
    features = []
    batches = ViewBatches(
        rows,
        recipe.num_channels,
        ONE_CLEAN_VIEW.renderer(recipe),
        images_at_once=extraction.batch_size,
        num_threads=extraction.num_threads,
        limits=extraction.limits,
        shared=False,
    )
    for views, _ in batches:
        if views is None:
            continue
        pixels = views[:, 0]
        if size < recipe.image_size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        features.append(pixels.flatten(1))
    batches.check(sum(map(len, features)))
    return torch.cat(features)
