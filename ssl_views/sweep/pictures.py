"""A study in one picture: the metric against time, epochs and images. Needs matplotlib."""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from ssl_views.evaluation.picture_style import line_style, new_figure, png_of
from ssl_views.evaluation.run_comparison import is_accuracy, title_of
from ssl_views.sweep.analysis import StudyResult
from ssl_views.sweep.curves import (
    EPOCHS,
    IMAGES,
    SECONDS,
    Curves,
    frontier_points,
    group_results,
)
from ssl_views.sweep.results import RunResult

_PANEL_HEIGHT, _LINE_HEIGHT = 2.4, 0.17  # inches
_FONT, _NAME_WIDTH = 8, 72  # points, characters
_BESIDE = 1.04  # of a number of images
_MINUTE = 60
_AXES = {
    SECONDS: ("minutes of training", _MINUTE),
    EPOCHS: ("epochs", 1),
    IMAGES: ("images seen, thousands", 1000),
}


def draw_study(results: Sequence[RunResult], analysed: StudyResult) -> bytes:
    """Draw the metric against training time and epochs, as a PNG file.

    A group has one colour, marker and line style. Thin lines are runs, thick ones their mean. In
    the first panel the grey steps are the Pareto frontier; groups on it have a star in the legend.
    Where groups differ in their number of distinct images, there are panels of the metric against
    images seen, and of the end against that number, with 95 % intervals; equal numbers stand side
    by side there. Horizontal axes are logarithmic, and leave out the start.

    Args:
        results: of the study.
        analysed: the same, from `analyse`.
    """
    groups = [[run for run in group if run.finished] for group in group_results(results)]
    curves = [Curves(group, analysed.metric) for group in groups if group]
    by_images = len({group.num_images for group in analysed.groups}) > 1
    axes = [axis for axis in _AXES if by_images or axis != IMAGES]
    num_panels = len(axes) + by_images
    best = {group.name for group in analysed.groups if group.on_frontier}
    names = [g.name + (" \N{BLACK STAR}" if g.name in best else "") for g in curves]
    labels = [textwrap.fill(name, _NAME_WIDTH, break_on_hyphens=False) for name in names]
    num_lines = sum(1 + label.count("\n") for label in labels)
    figure = new_figure(_PANEL_HEIGHT * num_panels + _LINE_HEIGHT * (num_lines + 1))
    panels = figure.subplots(num_panels, squeeze=False)[:, 0]
    for panel, axis in zip(panels, axes, strict=False):
        title, unit = _AXES[axis]
        for number, group in enumerate(curves):
            _draw_group(panel, group, axis, unit, line_style(number))
        _finish(panel, title, analysed.metric)
    _draw_frontier(panels[0], curves, analysed)
    if by_images:
        _draw_by_images(panels[-1], analysed)
    handles = [Line2D([], [], **line_style(number)) for number in range(len(curves))]
    legend = figure.legend(
        handles, labels, loc="outside upper left", fontsize=_FONT, frameon=False, handlelength=3.5
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return png_of(figure)


def _finish(panel: Axes, title: str, metric: str) -> None:
    panel.set_xscale("log")
    panel.set_xlabel(title)
    panel.set_ylabel(title_of(metric) + (", %" if is_accuracy(metric) else ""))
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.6, which="both")


def _scale(metric: str) -> int:
    return 100 if is_accuracy(metric) else 1


def _draw_frontier(panel: Axes, curves: Sequence[Curves], analysed: StudyResult) -> None:
    points = frontier_points(curves, analysed.equal_seconds is not None)
    points = [point for point in points if point.seconds > 0]
    if not points:  # nothing is better than the start
        return
    xs = [point.seconds / _MINUTE for point in points]
    ys = [_scale(analysed.metric) * point.value for point in points]
    xs, ys = [*xs, panel.get_xlim()[1]], [*ys, ys[-1]]
    panel.step(xs, ys, where="post", color="0.8", linewidth=4, zorder=0.5)


def _draw_by_images(panel: Axes, analysed: StudyResult) -> None:
    scale = _scale(analysed.metric)
    for number, group in enumerate(analysed.groups):
        if group.num_images is None:
            continue
        last = group.last
        half = 0.0 if last.high is None else scale * (last.high - last.mean)
        style = {k: v for k, v in line_style(number).items() if k != "linestyle"}
        beside = _BESIDE ** sum(g.num_images == group.num_images for g in analysed.groups[:number])
        panel.errorbar(group.num_images * beside, scale * last.mean, half, capsize=2, **style)
    _finish(panel, "distinct images", analysed.metric)


def _draw_group(panel: Axes, group: Curves, axis: str, unit: float, style: dict[str, Any]) -> None:
    scale = _scale(group.metric)

    def line(places: Sequence[float], values: Sequence[float], **how: Any) -> None:
        points = [(x / unit, scale * y) for x, y in zip(places, values, strict=True) if x > 0]
        panel.plot([x for x, _ in points], [y for _, y in points], **how)

    if len(group.runs) > 1:
        for run in group.runs:
            curve = run.curve
            line(curve[axis], curve[group.metric], linewidth=0.6, alpha=0.45, color=style["color"])
    line(group.column(axis), group.column(group.metric), **style)
