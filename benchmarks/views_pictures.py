"""Draw docs/images/operations/*.jpg: what each operation does, and the views of two recipes.

The images are two photographs that come with scikit-learn (CC BY 2.0).

python benchmarks/views_pictures.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from ssl_views import ViewRecipe
from ssl_views.view_engines import render
from ssl_views.view_records import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Rendering,
    ViewRecords,
)

OUTPUT = Path(__file__).parents[1] / "docs" / "images" / "operations"
SIDE, GAP, LINE = 132, 6, 18  # of a tile, between tiles, and of its label, in pixels
FONT = ImageFont.load_default(13)
UNCHANGED = np.float32([1, 1, 1, 0])  # factors of the colour operations
CROPS = {  # of china.jpg, which has 427 x 640 pixels: top, left, height, width
    "red": (0, 106, 427, 427),
    "gold": (210, 20, 140, 187),
    "lime": (90, 210, 160, 120),
    "cyan": (230, 380, 90, 90),
    "magenta": (20, 330, 360, 300),
}


def square(image):
    """Return the box of the largest centred square."""
    _, height, width = image.shape
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def records_of(boxes, **changes):
    """Write records of one image by hand: they crop, and do what is given. One entry per view."""
    count = len(boxes)
    values = {
        "flip": np.zeros(count, dtype=np.bool_),
        "order": np.full((count, 4), -1, dtype=np.int8),
        "factor": np.tile(UNCHANGED, (count, 1)),
        "grayscale": np.zeros(count, dtype=np.bool_),
        "blur_sigma": np.zeros(count, dtype=np.float32),
        "solarize": np.zeros(count, dtype=np.bool_),
    } | changes
    fields = {name: np.asarray(value)[None] for name, value in values.items()}
    return ViewRecords(box=np.int32(boxes)[None], **fields)


def views_of(image, records):
    """Render records of one image, as tiles."""
    rendering = Rendering(SIDE, "bicubic", blur_kernel_size=33, dtype=torch.uint8)
    return tiles(render([image], records, rendering)[0])


def tiles(views):
    return [Image.fromarray(view.permute(1, 2, 0).contiguous().numpy()) for view in views]


def color(image, operation, factors):
    """Return views with one colour operation, of growing factors."""
    order = np.full((len(factors), 4), -1, dtype=np.int8)
    order[:, 0] = operation
    factor = np.tile(UNCHANGED, (len(factors), 1))
    factor[:, operation] = factors
    return views_of(image, records_of([square(image)] * len(factors), order=order, factor=factor))


def switched(images, name):
    """Return two views of every image, the second one with an operation that is on or off."""
    change = {name: np.array([False, True])}
    pairs = [views_of(image, records_of([square(image)] * 2, **change)) for image in images]
    return [tile for pair in pairs for tile in pair]


def crops(image):
    """Return the image with its boxes outlined, and the crops in frames of their colours."""
    picture = tiles([image])[0]
    pen = ImageDraw.Draw(picture)
    for frame, (top, left, height, width) in CROPS.items():
        pen.rectangle((left, top, left + width - 1, top + height - 1), outline=frame, width=5)
    whole = picture.resize((SIDE * picture.width // picture.height, SIDE))
    views = views_of(image, records_of(list(CROPS.values())))
    for view, frame in zip(views, CROPS, strict=True):
        ImageDraw.Draw(view).rectangle((0, 0, SIDE - 1, SIDE - 1), outline=frame, width=2)
    return [whole, *views]


def save(name, *rows):
    """Save rows of labelled tiles; a row is a list of (label, tile)."""
    widths = [sum(tile.width + GAP for _, tile in row) - GAP for row in rows]
    heights = [LINE + max(tile.height for _, tile in row) for row in rows]
    size = (max(widths), sum(heights) + GAP * (len(rows) - 1))
    picture = Image.new("RGB", size, "white")
    pen, top = ImageDraw.Draw(picture), 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for label, tile in row:
            pen.text((left, top), label, fill="black", font=FONT)
            picture.paste(tile, (left, top + LINE))
            left += tile.width + GAP
        top += height + GAP
    picture.save(OUTPUT / f"{name}.jpg", quality=80, optimize=True)


def row(labels, views):
    return list(zip(labels, views, strict=True))


def draw_operations(china, flower):
    labels = [f"{height} x {width}" for _, _, height, width in CROPS.values()]
    save("crop_resize", row(["image", *labels], crops(china)))
    for name in ("flip", "grayscale", "solarize"):
        save(name, row(["off", name] * 2, switched([china, flower], name)))
    factors = {
        "brightness": (china, BRIGHTNESS, [0, 0.4, 0.7, 1, 1.4, 2]),
        "contrast": (china, CONTRAST, [0, 0.4, 0.7, 1, 1.4, 2]),
        "saturation": (flower, SATURATION, [0, 0.4, 0.7, 1, 1.4, 2]),
        "hue": (flower, HUE, [-0.25, -0.1, 0, 0.1, 0.25, 0.5]),
    }
    for name, (image, operation, values) in factors.items():
        sign = "by" if operation == HUE else "x"
        save(name, row([f"{sign} {v:g}" for v in values], color(image, operation, values)))
    sigmas = np.float32([0, 0.5, 1, 2, 3, 5])
    blurred = views_of(china, records_of([square(china)] * len(sigmas), blur_sigma=sigmas))
    save("blur", row(["off", *(f"{sigma:g} px" for sigma in sigmas[1:])], blurred))


def draw_recipes(china, flower):
    sizes = [[image.shape[dim] for image in (china, flower)] for dim in (1, 2)]
    recipe = ViewRecipe.named("barlow_twins", image_size=SIDE)
    options = {"normalize": False, "dtype": torch.uint8}
    labels, rows = [], ([], [])
    for epoch in range(3):
        labels += [f"epoch {epoch}, view {v}" for v in range(recipe.num_views)]
        records = recipe.draw([0, 1], *sizes, epoch=epoch, seed=6)
        for shown, views in zip(
            rows, recipe.render([china, flower], records, **options), strict=True
        ):
            shown.extend(tiles(views))
    save("barlow_twins", *(row(labels, shown) for shown in rows))

    recipe = ViewRecipe.named("global_local", image_size=224)
    records = recipe.draw([0], [china.shape[1]], [china.shape[2]], epoch=0, seed=2)
    large, small = (tiles(views[0]) for views in recipe.render_groups([china], records, **options))
    few = row([f"view {v}" for v in recipe.groups[0].views], large)
    many = row([f"view {v}" for v in recipe.groups[1].views], small)
    save("global_local", few, many)


if __name__ == "__main__":
    OUTPUT.mkdir(parents=True, exist_ok=True)
    photographs = [torch.from_numpy(i.copy()).permute(2, 0, 1) for i in load_sample_images().images]
    draw_operations(*photographs)
    draw_recipes(*photographs)
