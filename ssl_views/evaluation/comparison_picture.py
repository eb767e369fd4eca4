"""A metric over the training of several runs, in one picture. Needs matplotlib."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from ssl_views.evaluation.history import Series
from ssl_views.evaluation.picture_style import line_style, new_figure, png_of
from ssl_views.evaluation.run_comparison import (
    GroupSummary,
    RunComparison,
    is_accuracy,
    title_of,
)

_MINUTE, _HOUR = 60, 3600
_AXES = {"seconds": "training time", "images_seen": "images seen", "epochs": "epochs"}
_PANEL_HEIGHT, _LINE_HEIGHT = 2.2, 0.18  # inches
_FONT = 8  # points
_TARGET_STYLE: dict[str, Any] = {"color": "0.4", "linewidth": 0.8, "linestyle": ":"}
_ROUNDS = 4  # of moving numbers apart
_APART, _BESIDE = 0.075, 0.05  # of height and width of a panel, between numbers at lines' ends


class _End(NamedTuple):
    """The last point of a line."""

    x: float
    y: float
    number: int


def draw_comparison(comparison: RunComparison) -> bytes:
    """Draw the metric against training time, images seen and epochs, as a PNG file.

    A group has one colour, marker and line style, and its number in the legend at the end of its
    line. Where it has several runs, they are thin lines, their mean is a thick one at the steps
    that all have, and a band is the 95 % interval of the mean. Panels whose axis was not logged
    are left out. The dotted line is the target that "times faster" is measured at.

    Args:
        comparison: of runs.

    Raises:
        ValueError: if none of the runs has evaluated the metric in training.
    """
    axes = [
        axis
        for axis in _AXES
        if any(_points(part, axis) for g in comparison.groups for part in _runs_of(g, comparison))
    ]
    if not axes:
        raise ValueError(
            f"a run must have evaluated {comparison.metric!r} in training to be drawn; none has. "
            "Compare by another metric."
        )
    legend_height = _LINE_HEIGHT * (len(comparison.groups) + 2)
    figure = new_figure(_PANEL_HEIGHT * len(axes) + legend_height)
    panels = figure.subplots(len(axes), squeeze=False)[:, 0]
    for panel, axis in zip(panels, axes, strict=True):
        _draw_panel(panel, comparison, axis)
    _draw_legend(figure, comparison)
    with warnings.catch_warnings():
        # Folders may be named in scripts that the font lacks: they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        return png_of(figure)


def _runs_of(group: GroupSummary, comparison: RunComparison) -> list[Series]:
    """Return the metric of each run of a group that has logged it, counted in means or not."""
    name = f"eval_{comparison.metric}"
    return [run.series(name) for run in group.group.runs if name in run.names]


def _points(series: Series, axis: str) -> list[tuple[float, float]]:
    """Return the points of a series that have a place on an axis."""
    places = getattr(series, axis)
    return [(x, y) for x, y in zip(places, series.values, strict=True) if math.isfinite(x)]


def _draw_panel(panel: Axes, comparison: RunComparison, axis: str) -> None:
    scale = 100 if is_accuracy(comparison.metric) else 1
    runs = [_runs_of(group, comparison) for group in comparison.groups]
    points = [point for parts in runs for part in parts for point in _points(part, axis)]
    unit_size, unit = _unit(max(x for x, _ in points)) if axis == "seconds" else (1, "")

    def scaled(series: Series) -> tuple[list[float], list[float]]:
        found = _points(series, axis)
        return [x / unit_size for x, _ in found], [y * scale for _, y in found]

    ends = []
    for number, (group, parts) in enumerate(zip(comparison.groups, runs, strict=True)):
        style = line_style(number)
        if len(parts) > 1 or group.curve is None:
            for part in parts:
                panel.plot(*scaled(part), linewidth=0.7, alpha=0.6, color=style["color"])
        if group.curve is not None:
            xs, ys = scaled(group.curve.mean)
            panel.plot(xs, ys, markevery=max(1, len(xs) // 8), **style)
            _draw_band(panel, group, axis, unit_size, scale, style["color"])
        elif parts:
            xs, ys = scaled(parts[0])
        else:
            continue
        if xs:
            ends.append(_End(xs[-1], ys[-1], number))
    _set_limits(panel, [y * scale for _, y in points])
    if comparison.target is not None and axis == "seconds":
        panel.axhline(comparison.target * scale, **_TARGET_STYLE)
    panel.set_xlabel(f"{_AXES[axis]}, {unit}" if unit else _AXES[axis])
    panel.set_ylabel(title_of(comparison.metric) + (", %" if scale == 100 else ""))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.6)
    if axis == "images_seen":
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    _write_numbers(panel, ends)


def _unit(most_seconds: float) -> tuple[int, str]:
    """Return the length of a unit of time in seconds, and its name."""
    if most_seconds >= 2 * _HOUR:
        return _HOUR, "hours"
    return (_MINUTE, "minutes") if most_seconds >= 2 * _MINUTE else (1, "seconds")


def _draw_band(
    panel: Axes, group: GroupSummary, axis: str, unit_size: float, scale: float, color: str
) -> None:
    """Fill the interval of the mean, where it has one."""
    if group.curve is None:
        return
    band = [
        (x / unit_size, interval.low * scale, interval.high * scale)
        for x, interval in zip(getattr(group.curve.mean, axis), group.curve.intervals, strict=True)
        if interval.low is not None and interval.high is not None and math.isfinite(x)
    ]
    if band:
        xs, lows, highs = zip(*band, strict=True)
        panel.fill_between(xs, lows, highs, color=color, alpha=0.15, linewidth=0)


def _set_limits(panel: Axes, heights: Sequence[float]) -> None:
    """Show what the lines need: the interval of two runs may be so wide that it hides them."""
    low, high = min(heights), max(heights)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1
    panel.set_ylim(low - margin, high + margin)
    panel.margins(x=0.06)


def _write_numbers(panel: Axes, ends: Sequence[_End]) -> None:
    """Write the number of each line behind its end; where many end, one above the other."""
    left, right = panel.get_xlim()
    bottom, top = panel.get_ylim()
    apart, beside = _APART * (top - bottom), _BESIDE * (right - left)
    clusters: list[list[_End]] = []
    for end in sorted(ends):
        if clusters and end.x - clusters[-1][-1].x < beside:
            clusters[-1].append(end)
        else:
            clusters.append([end])
    for cluster in clusters:
        cluster.sort(key=lambda end: end.y)
        heights = _spread([end.y for end in cluster], apart, top)
        moved = any(height != end.y for height, end in zip(heights, cluster, strict=True))
        for end, height in zip(cluster, heights, strict=True):
            x = max(other.x for other in cluster) if moved else end.x
            color = line_style(end.number)["color"]
            panel.annotate(
                str(end.number + 1),
                (end.x, end.y),
                (x + beside / 2, height),
                va="center",
                fontsize=_FONT,
                fontweight="bold",
                color=color,
                bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"},
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": color} if moved else None,
            )


def _spread(heights: Sequence[float], apart: float, top: float) -> list[float]:
    """Move ascending heights as far as they must be moved to be apart, and not above the top."""
    found = list(heights)
    for _ in range(_ROUNDS * len(found)):
        for place in range(1, len(found)):
            lacking = apart - (found[place] - found[place - 1])
            if lacking > 0:
                found[place - 1] -= lacking / 2
                found[place] += lacking / 2
    for place in reversed(range(len(found))):
        found[place] = min(found[place], top - (len(found) - 1 - place) * apart)
    return found


def _draw_legend(figure: Figure, comparison: RunComparison) -> None:
    handles, labels = [], []
    for number, group in enumerate(comparison.groups):
        name = group.group.name
        count = len(group.group.runs)
        handles.append(Line2D([], [], **line_style(number)))
        labels.append(f"{number + 1}  {name}" + (f" ({count} runs)" if count > 1 else ""))
    if comparison.target is not None:
        handles.append(Line2D([], [], **_TARGET_STYLE))
        labels.append("last value of 1")
    legend = figure.legend(
        handles, labels, loc="outside upper left", fontsize=_FONT, frameon=False, handlelength=3.5
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a folder may have $ in its name
