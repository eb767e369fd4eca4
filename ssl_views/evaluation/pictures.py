"""Pictures of an evaluation that are made of numbers. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from ssl_views.evaluation.picture_style import (
    COLOR_MAP,
    COLORS,
    MARKERS,
    SMALL_FONT,
    class_name,
    drawn_name,
    new_figure,
)
from ssl_views.spectrum import PowerLaw

History = Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]]

_TERMS = ("loss", "invariance", "redundancy", "orthogonality", "variance", "covariance")
_PANEL_HEIGHT = 1.4  # inches
_DECADES = 8  # of eigenvalues that are shown
_MOST_NUMBERS, _MOST_CLASSES = 12, 20  # of a confusion matrix
_NAME = 16  # characters


def draw_terms(history: History) -> Figure:
    """Draw the loss and its terms against the step, each in a panel of its own.

    Args:
        history: steps and values by name, as logged: "loss", "invariance" and so on of training,
            and the same names with "eval_" of evaluations. Other names are not drawn; values that
            are None or not finite are gaps.

    Raises:
        ValueError: if there is no such value.
    """
    parts = {
        name: {prefix: _points(history, prefix + name) for prefix in ("", "eval_")}
        for name in _TERMS
    }
    drawn = [name for name in _TERMS if any(len(xs) for xs, _ in parts[name].values())]
    if not drawn:
        raise ValueError(
            f"history must hold values of {', '.join(_TERMS)}; it has none. Log steps in training."
        )
    figure = new_figure(_PANEL_HEIGHT * len(drawn) + 0.8)
    panels = figure.subplots(len(drawn), sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, drawn, strict=True):
        for number, (prefix, label) in enumerate((("", "training"), ("eval_", "test images"))):
            _draw_line(panel, *parts[name][prefix], number, label)
        _choose_scale(panel, [ys for _, ys in parts[name].values()])
        panel.set_title(name, loc="left", fontsize=10)
        _tidy(panel)
    _label_steps(panels[-1])
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    figure.legend(lines.values(), lines, loc="outside upper right", ncols=2, frameon=False)
    return figure


def draw_effective_rank(history: History) -> Figure:
    """Draw the effective rank of features and of embeddings against the step.

    Args:
        history: as of `draw_terms`, with "eval_effective_rank" and "embedding_effective_rank".

    Raises:
        ValueError: if there is no such value.
    """
    names = {
        "eval_effective_rank": "features",
        "embedding_effective_rank": "embeddings (training)",
    }
    parts = {name: _points(history, name) for name in names}
    if not any(len(xs) for xs, _ in parts.values()):
        raise ValueError(
            f"history must hold values of {' or '.join(names)}; it has none. Evaluate in training."
        )
    figure = new_figure()
    panel = figure.subplots()
    for number, (name, label) in enumerate(names.items()):
        _draw_line(panel, *parts[name], number, label)
    _choose_scale(panel, [ys for _, ys in parts.values()])
    panel.set_ylabel("effective rank")
    _tidy(panel)
    _label_steps(panel)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=SMALL_FONT)
    return figure


def draw_spectrum(eigenvalues: Tensor, law: PowerLaw | None) -> Figure:
    """Draw an eigenspectrum and the power law that was fitted to a range of it.

    Args:
        eigenvalues: (D,), largest first, as from `eigenspectrum`; those that are 0 or less than
            1e-8 of the largest are not drawn.
        law: as from `fit_power_law`, or None where too few eigenvalues are positive.

    Raises:
        ValueError: if none is positive.
    """
    values = eigenvalues.detach().cpu().double()
    if not (values > 0).any():
        raise ValueError(
            "an eigenspectrum must have a positive eigenvalue to be drawn; this one has none: "
            "all features are equal. Look at the loss of the run."
        )
    shown = values[values > values.max() * 10**-_DECADES].numpy()
    figure = new_figure()
    panel = figure.subplots()
    ranks = np.arange(1, len(shown) + 1)
    panel.loglog(ranks, shown, ".", color=COLORS[0], markersize=5, label="eigenvalues")
    _label_logarithms(panel.xaxis, len(shown))
    _label_logarithms(panel.yaxis, shown[0] / shown[-1])
    if law is not None:
        ends = np.array([law.first, law.last], dtype=float)
        heights = np.exp(law.log_scale) * ends**-law.alpha
        panel.plot(ends, heights, color=COLORS[1], linewidth=2, label="power law")
        panel.text(
            0.04,
            0.06,
            f"alpha = {law.alpha:.2f}, ranks {law.first} to {law.last}, R2 = {law.r_squared:.2f}",
            transform=panel.transAxes,
        )
    panel.legend(frameon=False)
    panel.set_xlabel("rank of the eigenvalue")
    panel.set_ylabel("variance")
    _tidy(panel)
    return figure


def draw_confusion(
    labels: Tensor, predicted: Tensor, class_names: Sequence[str] | None = None
) -> Figure:
    """Draw which share of each class is predicted as which, in percent.

    Of more than 20 classes the 20 with the most wrong predictions are shown. Up to 12 classes have
    numbers, without those that round to 0.

    Args:
        labels: (M,) int64, the true classes, down.
        predicted: (M,) int64, across.
        class_names: by label.

    Raises:
        ValueError: if labels and predictions are not of the same images.
    """
    classes, counts = _confusion(labels, predicted)
    num_classes, note = len(classes), ""
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if num_classes > _MOST_CLASSES:
        wrong = counts.sum(axis=1) - counts.diagonal()
        kept = np.sort(np.argsort(-wrong, kind="stable")[:_MOST_CLASSES])
        classes, shares = classes[kept], shares[np.ix_(kept, kept)]
        note = f"\n{_MOST_CLASSES} of {num_classes} classes, those with most errors"
    numbered = len(classes) <= _MOST_NUMBERS
    figure = new_figure(5.4 if numbered else 6)
    panel = figure.subplots()
    # Its square root makes small shares visible.
    picture = panel.imshow(shares, cmap=COLOR_MAP, norm=PowerNorm(0.5, 0, 100))
    if numbered:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                color = "black" if share > 25 else "white"
                panel.text(
                    column, row, f"{share:.0f}", color=color, ha="center", va="center",
                    fontsize=SMALL_FONT,
                )  # fmt: skip
    else:
        figure.colorbar(picture, location="top", shrink=0.7, aspect=40, label="% of the true class")
    names = [drawn_name(c, class_names, _NAME) for c in classes]
    style: dict[str, Any] = {"parse_math": False, "fontsize": SMALL_FONT}
    panel.set_xticks(range(len(names)), names, rotation=90, **style)
    panel.set_yticks(range(len(names)), names, **style)
    panel.tick_params(length=0)
    panel.set_xlabel(f"predicted class{note}")
    panel.set_ylabel("true class")
    return figure


def most_confused(
    labels: Tensor, predicted: Tensor, class_names: Sequence[str] | None = None, num: int = 5
) -> list[tuple[str, str, float]]:
    """Return the most frequent confusions: true class, predicted class, share of the true class.

    Args:
        labels: (M,) int64.
        predicted: (M,) int64.
        class_names: by label; without, the labels are the names.
        num: pairs at most.

    Raises:
        ValueError: as `draw_confusion`.

    Example:
        >>> labels, predicted = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 1, 1, 1, 1])
        >>> most_confused(labels, predicted, ["cat", "dog"])
        [('cat', 'dog', 0.75)]
    """
    classes, counts = _confusion(labels, predicted)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    pairs = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:num]:
        row, column = np.unravel_index(place, wrong.shape)
        if wrong[row, column] > 0:
            true, other = (class_name(int(classes[c]), class_names) for c in (row, column))
            pairs.append((true, other, float(wrong[row, column] / counts[row].sum())))
    return pairs


def _points(history: History, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a series, NaN for gaps; nothing where all are gaps."""
    steps, values = history.get(name, ((), ()))
    xs, ys = (
        np.array([np.nan if v is None else v for v in column], dtype=float)
        for column in (steps, values)
    )
    ys[~np.isfinite(ys)] = np.nan
    return (xs, ys) if np.isfinite(ys).any() else (xs[:0], ys[:0])


def _draw_line(panel: Axes, xs: np.ndarray, ys: np.ndarray, number: int, label: str) -> None:
    if len(xs):
        panel.plot(
            xs,
            ys,
            color=COLORS[number],
            marker=MARKERS[number],
            markevery=max(1, len(xs) // 12),
            markersize=4.5,
            linestyle=("-", "--")[number],
            linewidth=1.5,
            label=label,
        )


def _choose_scale(panel: Axes, heights: Sequence[np.ndarray]) -> None:
    """Take a logarithmic scale where values are positive and span more than a decade."""
    values = np.concatenate(heights)
    values = values[np.isfinite(values)]
    if values.min() > 0 and values.max() > 10 * values.min():
        panel.set_yscale("log")
        _label_logarithms(panel.yaxis, values.max() / values.min())


def _label_logarithms(axis: Axis, span: float) -> None:
    """Write plain numbers: 1, 2 and 5 of each decade where there are few decades."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span <= 100 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _tidy(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.6)


def _label_steps(panel: Axes) -> None:
    panel.set_xlabel("step")
    low, high = panel.dataLim.intervalx
    if low == high:
        panel.set_xlim(low - 1, high + 1)
    panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _confusion(labels: Tensor, predicted: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes that occur, and how many images of each are predicted as each."""
    if labels.shape != predicted.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(
            "labels and predicted must be one class per image; got shapes "
            f"{tuple(labels.shape)} and {tuple(predicted.shape)}."
        )
    pairs = torch.stack([labels, predicted]).cpu()
    classes, places = pairs.unique(return_inverse=True)
    counts = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    counts.index_put_((places[0], places[1]), torch.tensor(1), accumulate=True)
    return classes.numpy(), counts.numpy()
