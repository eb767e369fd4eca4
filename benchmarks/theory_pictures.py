"""Draw docs/images/theory_*.png from benchmarks/results/theory.json.

python benchmarks/theory_pictures.py    # needs matplotlib
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from ssl_views.evaluation.picture_style import COLORS, MARKERS, SMALL_FONT, new_figure, png_of

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs" / "images"
VECTORS = ("class", "pixels", "both")
FORMS = {"cross_view": "other views only", "mean_view": "mean of the views"}


def _logarithmic(axis, ticks):
    """Set ticks of a logarithmic axis, written as plain numbers."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _titled(panel, title, x, y):
    panel.set_title(title, fontsize=SMALL_FONT + 1, loc="left")
    panel.set_xlabel(x, fontsize=SMALL_FONT)
    panel.set_ylabel(y, fontsize=SMALL_FONT)
    panel.tick_params(labelsize=SMALL_FONT)
    panel.grid(alpha=0.3)


def draw_graph(result):
    """Draw eigenvalues, then overlaps of the second eigenvector, against views."""
    apart, near = result["graphs"].values()
    figure = new_figure(6.6)
    top, bottom = figure.subplots(2, sharex=True)
    views = [cell["num_views"] for cell in apart["sampled"]]
    for number, name in enumerate(VECTORS):
        values = np.array([cell["eigenvalues"][number + 1] for cell in apart["sampled"]])
        spread = np.array([cell["spread"][number + 1] for cell in apart["sampled"]])
        color, label = COLORS[number], f"{('2nd', '3rd', '4th')[number]} (exact: {name})"
        top.plot(views, values, MARKERS[number] + "-", color=color, markersize=4, label=label)
        top.fill_between(
            views, values - spread, np.minimum(values + spread, 1), color=color, alpha=0.15, lw=0
        )
        top.axhline(apart["exact"][number + 1], color=color, linestyle="--", lw=1)
        shares = [cell["overlaps_of_second"][name] for cell in apart["sampled"]]
        bottom.plot(views, shares, MARKERS[number] + "-", color=color, markersize=4, label=name)
    shares = [cell["overlaps_of_second"]["class"] for cell in near["sampled"]]
    bottom.plot(views, shares, ":", color=COLORS[0], lw=2, label="class, nearly equal")
    bottom.axhline(1 / 3, color="grey", lw=1)
    bottom.set_xscale("log")
    _logarithmic(bottom.xaxis, views[::2])
    _titled(top, "Few views: the leading eigenvalues are too large", "", "eigenvalue")
    _titled(bottom, "and the second eigenvector is a mixture", "views per image", "squared overlap")
    for panel in (top, bottom):
        panel.set_ylim(0, 1.02)
    top.legend(fontsize=SMALL_FONT)
    bottom.legend(fontsize=SMALL_FONT, loc="lower right", bbox_to_anchor=(1, 0.18))
    return figure


def draw_dynamics(result):
    """Draw the rank over steps, then the projections for a weak and a strong weight."""
    figure = new_figure(7.4)
    rank, weak, strong = figure.subplots(3, sharex=True)
    for number, (weight, run) in enumerate(result["runs"].items()):
        rank.plot(
            run["steps"],
            run["entropy_rank"],
            color=COLORS[number],
            label=f"weight {float(weight):g}",
        )
    for panel, weight in ((weak, "0.01"), (strong, "1.0")):
        run = result["runs"][weight]
        for number, line in enumerate(np.array(run["projections"]).T):
            panel.plot(
                run["steps"], line, color=COLORS[number], label=f"eigenfunction {number + 1}"
            )
        panel.set_ylim(-0.03, 1.05)
    dim = result["dim"]
    rank.set_ylim(0.9, dim + 0.2)
    _titled(rank, f"Rank of the embeddings, {dim} dimensions", "", "entropy rank")
    _titled(weak, "What is held: weight 0.01", "", "projection")
    _titled(strong, "What is held: weight 1", "step", "projection")
    rank.legend(fontsize=SMALL_FONT, loc="lower right", ncols=2, bbox_to_anchor=(1, 0.34))
    weak.legend(fontsize=SMALL_FONT, loc="center", ncols=2, bbox_to_anchor=(0.5, 0.55))
    return figure


def draw_dims(result):
    """Draw what is held against the weight, and the weight needed against the dimension."""
    figure = new_figure(7.2)
    held, needed = figure.subplots(2)
    for number, (dim, counts) in enumerate(result["held"].items()):
        held.plot(result["weights"], counts, color=COLORS[number], label=f"{dim} dimensions")
    held.set(xscale="log", yscale="log")
    _logarithmic(held.yaxis, (1, 2, 4, 8, 16))
    held.legend(fontsize=SMALL_FONT)
    title = f"Eigenfunctions held after {result['num_steps']} steps"
    _titled(held, title, "orthogonality weight", "eigenfunctions")
    lines = {
        f"{count} eigenfunctions": found["weights"]
        for count, found in result["weight_to_hold"][str(result["num_steps"])].items()
    }
    lines[f"{result['share_of_dim']:g} D eigenfunctions"] = result["weight_to_hold_share_of_dim"]
    for number, (label, weights) in enumerate(lines.items()):
        points = [(int(dim), weight) for dim, weight in weights.items() if weight]
        style = MARKERS[number] + ("--" if "D" in label else "-")
        needed.plot(*zip(*points, strict=True), style, color=COLORS[number], label=label)
    dims = [int(dim) for dim in result["held"]]
    low = 0.6 * min(lines["2 eigenfunctions"].values())
    needed.plot(
        dims, [low * dims[-1] / dim for dim in dims], color="grey", lw=1, label="slope of 1 / D"
    )
    needed.set(xscale="log", yscale="log")
    _logarithmic(needed.xaxis, dims)
    _titled(needed, "Least weight that holds", "dimensions D", "orthogonality weight")
    needed.legend(fontsize=SMALL_FONT, loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.2))
    return figure


def draw_kernel(result):
    """Draw estimates by rank for 2 and 8 views, then their error against images."""
    figure = new_figure(6.8)
    panels = figure.subplots(2, 2, sharey="row")
    cells = {(cell["num_views"], cell["num_images"]): cell for cell in result["cells"]}
    views, images = (sorted({key[part] for key in cells}) for part in (0, 1))
    ranks = np.arange(1, len(result["eigenvalues"]) + 1)
    for panel, num_views in zip(panels[0], (2, 8), strict=True):
        for number, (form, label) in enumerate(FORMS.items()):
            found = cells[num_views, 1000][form]
            panel.errorbar(
                ranks, found["mean"], found["spread"], fmt=MARKERS[number], markersize=3,
                color=COLORS[number], elinewidth=1, label=label,
            )  # fmt: skip
        panel.plot(ranks, result["eigenvalues"], color="black", lw=1, label="known")
        _titled(panel, f"{num_views} views, 1000 images", "rank", "")
        panel.set_ylim(-0.1, 1.02)
    for panel, (form, label) in zip(panels[1], FORMS.items(), strict=True):
        for number, num_views in enumerate(views):
            errors = [cells[num_views, count][form]["root_mean_square_error"] for count in images]
            style = MARKERS[number] + "-"
            panel.plot(
                images,
                errors,
                style,
                color=COLORS[number],
                markersize=4,
                label=f"{num_views} views",
            )
        panel.set(xscale="log", yscale="log")
        _logarithmic(panel.xaxis, images)
        _logarithmic(panel.yaxis, (0.01, 0.03, 0.1, 0.3))
        _titled(panel, label, "images", "")
    panels[0, 0].set_ylabel("eigenvalue", fontsize=SMALL_FONT)
    panels[1, 0].set_ylabel("error (root mean square)", fontsize=SMALL_FONT)
    panels[0, 0].legend(fontsize=SMALL_FONT, loc="upper right")
    panels[1, 1].legend(fontsize=SMALL_FONT, loc="lower left")
    return figure


def main():
    result = json.loads((ROOT / "benchmarks" / "results" / "theory.json").read_text())
    figures = {
        "augmentation_graph": draw_graph(result["augmentation_graph"]),
        "dynamics": draw_dynamics(result["dynamics"]),
        "dims": draw_dims(result["dims"]),
        "kernel": draw_kernel(result["kernel"]),
    }
    for name, figure in figures.items():
        (OUTPUT / f"theory_{name}.png").write_bytes(png_of(figure))


if __name__ == "__main__":
    main()
