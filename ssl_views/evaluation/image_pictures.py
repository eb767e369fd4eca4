"""Pictures of an evaluation that show images: neighbours, and a map. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.manifold import TSNE
from torch import Tensor

from ssl_views.evaluation.picture_style import (
    COLORS,
    MARKERS,
    SMALL_FONT,
    WIDTH,
    drawn_name,
    new_figure,
)

_AGREES, _DIFFERS = (COLORS[0], "\N{CHECK MARK}"), (COLORS[1], "\N{BALLOT X}")
_GAP = 0.3  # between an image and its neighbours, in widths of an image
_TILE, _FRAME = 0.88, 0.93  # sides, likewise, of an image and of its frame
_ROW, _HEADER = 1.28, 0.3  # heights, likewise
_LEAST_COLUMNS = 6  # fewer images are not drawn larger
_NAME = 10  # characters below an image
_PCA_DIM = 50
_PERPLEXITY = 30.0
_MOST_CLASSES = 14  # that colours and markers tell apart at a glance
_CELLS = 10  # of a map, across and down, that hold a thumbnail each
_MARGIN = 0.06  # around a map, of its side


class FeatureMap(NamedTuple):
    """Features in the plane.

    Attributes:
        points: (N', 2) float32.
        places: (N',) int64, the rows that the points are of, ascending.
    """

    points: Tensor
    places: Tensor


def draw_neighbours(
    rows: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]],
    labels: Sequence[tuple[int, Sequence[int]]] | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draw test images, each beside its nearest training images.

    A check mark and a solid frame say that a neighbour's class is that of the image, a cross and a
    dashed frame in another colour that it is not.

    Args:
        rows: an image and its neighbours, nearest first; uint8 (H, W, C), of which the first three
            channels, or the first, are shown.
        labels: their classes; without, there are no frames.
        class_names: by label; without, there is a mark only.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("rows must hold at least one image with neighbours; got none.")
    columns = max(_LEAST_COLUMNS, *(1 + len(neighbours) for _, neighbours in rows))
    width, height = columns + _GAP, _HEADER + _ROW * len(rows)
    figure = new_figure(WIDTH * height / width)
    panel = figure.subplots()
    panel.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    panel.set_axis_off()
    _write(panel, 0.04, 0.1, "test image", ha="left")
    _write(panel, 1.04 + _GAP, 0.1, "nearest training images", ha="left")
    for number, (image, neighbours) in enumerate(rows):
        top = _HEADER + _ROW * number
        lefts = [0.0, *(place + 1 + _GAP for place in range(len(neighbours)))]
        for left, shown in zip(lefts, (image, *neighbours), strict=True):
            _paste(panel, shown, (left + 0.5, top + 0.5), _TILE)
        if labels is None:
            continue
        own, others = labels[number]
        if class_names is not None:
            _write(panel, 0.5, top + 1.1, drawn_name(own, class_names, _NAME))
        for left, label in zip(lefts[1:], others, strict=True):
            color, mark = _AGREES if label == own else _DIFFERS
            if class_names is not None:
                _write(panel, left + 0.5, top + 1.1, drawn_name(label, class_names, _NAME))
            corner = left + (1 - _FRAME) / 2, top + (1 - _FRAME) / 2
            look: dict[str, Any] = {"linestyle": "-" if label == own else (0, (3, 1.5))}
            look |= {"fill": False, "edgecolor": color, "linewidth": 2, "zorder": 4}
            panel.add_patch(Rectangle(corner, _FRAME, _FRAME, **look))
            box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": color}
            _write(panel, left + 0.88, top + 0.88, mark, color=color, bbox=box, zorder=5)
    return figure


def map_points(features: Tensor, *, seed: int = 0, num_most: int = 1000) -> FeatureMap:
    """Map features to the plane, so that near ones stay near.

    They are scaled to unit length, for kNN compares directions, then reduced to 50 principal
    components, then mapped by t-SNE. Distances between far groups mean nothing.

    Args:
        features: (N, D), N >= 5.
        seed: of the choice of rows where there are more than num_most, and of t-SNE.
        num_most: rows that are mapped, at most.

    Raises:
        ValueError: if there are fewer than 5 rows.

    Source:
        t-SNE: van der Maaten and Hinton, JMLR 9 (2008), as scikit-learn computes it.
    """
    if len(features) < 5:
        raise ValueError(f"a map needs features of at least 5 images; got {len(features)}.")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    places = order[:num_most].sort().values
    x = F.normalize(features.detach().cpu()[places].double(), dim=1)
    u, s, _ = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    components = F.pad(u * s, (0, max(0, 2 - len(s))))[:, :_PCA_DIM]
    start = components[:, :2] / components[:, 0].std().clamp_min(1e-12) * 1e-4
    points = TSNE(
        perplexity=min(_PERPLEXITY, (len(places) - 1) / 3),
        init=start.float().numpy(),
        random_state=seed,
    ).fit_transform(components.float().numpy())
    return FeatureMap(torch.from_numpy(points), places)


def thumbnail_places(points: Tensor) -> list[int]:
    """Return the places of at most 100 points whose images can be shown with little overlap.

    Args:
        points: (N, 2).

    Returns:
        One per cell of a 10 x 10 grid that has points: that which is nearest to its centre.
    """
    centre, side = _frame(points)
    scaled = ((points - centre) / side + 0.5) * _CELLS
    cells = scaled.floor().clamp(0, _CELLS - 1)
    distance = (scaled - cells - 0.5).square().sum(dim=1)
    nearest: dict[tuple[float, ...], int] = {}
    for place in distance.argsort(stable=True).tolist():
        nearest.setdefault(tuple(cells[place].tolist()), place)
    return sorted(nearest.values())


def draw_map(
    points: Tensor,
    labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    thumbnails: Mapping[int, np.ndarray] | None = None,
) -> Figure:
    """Draw points of images, by class, or with some of the images.

    Args:
        points: (N, 2), as from `map_points`.
        labels: (N,) int64; each class has a colour and a marker. Of more than 14 classes the 14
            most frequent do, and the others are grey.
        class_names: by label.
        thumbnails: uint8 (H, W, C) images by place in `points`, see `thumbnail_places`.
    """
    centre, side = _frame(points)
    xy = ((points - centre) / side + 0.5).cpu().numpy()
    ends = [(low - _MARGIN, high + _MARGIN) for low, high in zip(xy.min(0), xy.max(0), strict=True)]
    (left, right), (bottom, top) = ends
    figure = new_figure(WIDTH * (top - bottom) / (right - left) + (0 if labels is None else 1.1))
    panel = figure.subplots()
    panel.set(xlim=ends[0], ylim=ends[1], aspect="equal", xticks=[], yticks=[])
    if labels is None:
        _scatter(panel, xy, "0.6", "o")
    else:
        _draw_classes(panel, xy, labels.cpu().numpy(), class_names)
        legend = figure.legend(
            loc="outside lower center", ncols=3, fontsize=SMALL_FONT, frameon=False,
            handletextpad=0, columnspacing=1.0, markerscale=1.4,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
    for place, image in (thumbnails or {}).items():
        x, y = xy[place].tolist()
        _paste(panel, image, (x, y), 0.9 / _CELLS, upright=True)
    return figure


def _frame(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centre and the side of a square that holds all points."""
    low, high = points.min(dim=0).values, points.max(dim=0).values
    return (low + high) / 2, (high - low).max().clamp_min(1e-12)


def _draw_classes(
    panel: Axes, xy: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None
) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    shown = np.sort(classes[np.argsort(-counts, kind="stable")[:_MOST_CLASSES]])
    for number, label in enumerate(shown):
        color = COLORS[number % len(COLORS)]
        marker = MARKERS[(number + number // len(COLORS)) % len(MARKERS)]
        _scatter(
            panel,
            xy[labels == label],
            color,
            marker,
            # Without the space, a name that starts with _ would be left out of the legend.
            label=f" {drawn_name(label, class_names, 16)}",
        )

    others = ~np.isin(labels, shown)
    if others.any():
        _scatter(
            panel,
            xy[others],
            "0.7",
            ".",
            zorder=0.5,
            label=f" {len(classes) - len(shown)} other classes",
        )


def _scatter(panel: Axes, xy: np.ndarray, color: str, marker: str, **style: Any) -> None:
    panel.scatter(
        xy[:, 0], xy[:, 1], s=16, color=color, marker=marker, linewidths=0, alpha=0.8, **style
    )


def _paste(
    panel: Axes, image: np.ndarray, centre: tuple[float, float], side: float, upright: bool = False
) -> None:
    """Draw an image inside a square, in its own proportions; upright where y grows upwards."""
    shown = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, axis=-1)
    half_height, half_width = (side * n / 2 / max(shown.shape[:2]) for n in shown.shape[:2])
    (x, y), sign = centre, 1 if upright else -1
    extent = (x - half_width, x + half_width, y - sign * half_height, y + sign * half_height)
    limits = panel.get_xlim(), panel.get_ylim()
    panel.imshow(shown, extent=extent, aspect=panel.get_aspect(), zorder=3)
    panel.set(xlim=limits[0], ylim=limits[1])


def _write(panel: Axes, x: float, y: float, text: str, **style: Any) -> None:
    style = {"ha": "center", "va": "center", "fontsize": SMALL_FONT, **style}
    panel.text(x, y, text, parse_math=False, **style)
