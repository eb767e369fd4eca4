"""Pictures that need Pillow only."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ssl_views.pixels import PixelBatch
from ssl_views.views import ViewRecipe

_GAP = 4
_MIN_SIDE = 96


def draw_view_grid(
    images: Sequence[Tensor],
    recipe: ViewRecipe,
    *,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    epoch: int = 0,
) -> Image.Image:
    """Draw one row per image: the clean view, then its V views.

    Args:
        images: uint8 (C, H, W); of other than 1 or 3 channels the first three (or one) are shown.
        recipe: how views are made.
        indices: of the images; their places by default.
        seed: of the run.
        epoch: of the run.

    Returns:
        An RGB picture; small views are enlarged without smoothing.
    """
    pixels = PixelBatch.of(images)
    indices = range(len(images)) if indices is None else indices
    records = recipe.draw(indices, pixels.heights, pixels.widths, epoch=epoch, seed=seed)
    columns = {-1: recipe.clean_view(pixels, normalize=False)}  # by number of the view
    rendered = recipe.render_groups(pixels, records, normalize=False)
    for group, views in zip(recipe.groups, rendered, strict=True):
        columns.update(zip(group.views, views.unbind(1), strict=True))
    titles = ["image", *(f"view {v}" for v in range(recipe.num_views))]
    zoom = -(-_MIN_SIDE // recipe.image_size)
    side, header = recipe.image_size * zoom, 16
    width, height = (side + _GAP) * len(titles) + _GAP, (side + _GAP) * len(images) + header
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        pen.text((_GAP + column * (side + _GAP), 2), title, fill="black")
        for row, view in enumerate(columns[column - 1]):
            own = view.shape[-1] * zoom  # a small local view stays small
            tile = _to_image(view).resize((own, own), Image.Resampling.NEAREST)
            corner = (_GAP + column * (side + _GAP), header + row * (side + _GAP))
            canvas.paste(tile, corner)
    return canvas


def _to_image(view: Tensor) -> Image.Image:
    shown = view[:3] if len(view) >= 3 else view[:1].expand(3, -1, -1)
    array = (shown.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    return Image.fromarray(array.astype(np.uint8))
