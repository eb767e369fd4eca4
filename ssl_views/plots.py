"""Pictures that need Pillow only."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ssl_views.views import ViewRecipe

_GAP = 4
_MIN_SIDE = 96


def draw_view_grid(
    images: Sequence[Tensor], recipe: ViewRecipe, *, seed: int = 0, epoch: int = 0
) -> Image.Image:
    """Draw one row per image: the clean view, then its V views.

    Args:
        images: uint8 (C, H, W); of other than 1 or 3 channels the first three (or one) are shown.
        recipe: how views are made.
        seed: of the run.
        epoch: of the run.

    Returns:
        An RGB picture; small views are enlarged without smoothing.
    """
    clean = recipe.clean_view(images, normalize=False)[:, None]
    views = recipe.views(images, range(len(images)), epoch=epoch, seed=seed, normalize=False)
    titles = ["image", *(f"view {v}" for v in range(recipe.num_views))]
    zoom = -(-_MIN_SIDE // recipe.image_size)
    side, header = recipe.image_size * zoom, 16
    width, height = (side + _GAP) * len(titles) + _GAP, (side + _GAP) * len(images) + header
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        pen.text((_GAP + column * (side + _GAP), 2), title, fill="black")
        pixels = clean[:, 0] if column == 0 else views[:, column - 1]
        for row, view in enumerate(pixels):
            tile = _to_image(view).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(tile, (_GAP + column * (side + _GAP), header + row * (side + _GAP)))
    return canvas


def _to_image(view: Tensor) -> Image.Image:
    shown = view[:3] if len(view) >= 3 else view[:1].expand(3, -1, -1)
    array = (shown.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    return Image.fromarray(array.astype(np.uint8))
