"""A study in one picture: the metric against time, epochs and images. Needs matplotlib."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ssl_views.evaluation.picture_style import COLORS, MARKERS, new_figure, png_of
from ssl_views.evaluation.run_comparison import is_accuracy, title_of
from ssl_views.sweep.analysis import StudyResult
from ssl_views.sweep.curves import EPOCHS, IMAGES, SECONDS, Curves, group_results
from ssl_views.sweep.results import RunResult

_LINES = ("-", "--", "-.", ":")
_PANEL_HEIGHT, _LINE_HEIGHT = 2.4, 0.17  # inches
_FONT = 8  # points
_MINUTE = 60
_AXES = {
    SECONDS: ("minutes of training", _MINUTE),
    EPOCHS: ("epochs", 1),
    IMAGES: ("images seen, thousands", 1000),
}


def draw_study(results: Sequence[RunResult], analysed: StudyResult) -> bytes:
    """Draw the metric against training time, epochs and images seen, as a PNG file.

    A group has one colour, marker and line style. Thin lines are runs, thick ones their mean.
    Times and epochs are on logarithmic axes. Groups whose mean is the best at some time, the Pareto
    frontier, are marked by a star in the legend.

    Args:
        results: of the study.
        analysed: the same, from `analyse`.
    """
    metric = analysed.metric
    groups = [[run for run in group if run.finished] for group in group_results(results)]
    curves = [Curves(group, metric) for group in groups if group]
    height = _PANEL_HEIGHT * len(_AXES) + _LINE_HEIGHT * (len(curves) + 1)
    figure = new_figure(height)
    panels = figure.subplots(len(_AXES), squeeze=False)[:, 0]
    for panel, (axis, (title, unit)) in zip(panels, _AXES.items(), strict=True):
        for number, group in enumerate(curves):
            _draw_group(panel, group, axis, unit, _style(number))
        panel.set_xscale("log")
        panel.set_xlabel(title)
        panel.set_ylabel(title_of(metric) + (", %" if is_accuracy(metric) else ""))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.6, which="both")
    best = {group.name for group in analysed.groups if group.on_frontier}
    handles = [Line2D([], [], **_style(number)) for number in range(len(curves))]
    labels = [g.name + (" \N{BLACK STAR}" if g.name in best else "") for g in curves]
    legend = figure.legend(
        handles, labels, loc="outside upper left", fontsize=_FONT, frameon=False, handlelength=3.5
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return png_of(figure)


def _draw_group(panel: Axes, group: Curves, axis: str, unit: float, style: dict[str, Any]) -> None:
    scale = 100 if is_accuracy(group.metric) else 1
    columns = [
        ([x / unit for x in run.curve[axis]], [scale * y for y in run.curve[group.metric]])
        for run in group.runs
    ]
    if len(columns) > 1:
        for xs, ys in columns:
            panel.plot(xs, ys, linewidth=0.6, alpha=0.45, color=style["color"])
    # Runs of a group are evaluated at the same steps.
    shared = min(len(xs) for xs, _ in columns)
    xs = [fmean(column[0][i] for column in columns) for i in range(shared)]
    ys = [fmean(column[1][i] for column in columns) for i in range(shared)]
    panel.plot(xs, ys, **style)


def _style(number: int) -> dict[str, Any]:
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": _LINES[number % len(_LINES)],
        "linewidth": 1.6,
        "markersize": 4,
    }
