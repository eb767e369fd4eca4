"""The picture of the weight sweep: accuracy over the weight, best weights over the dimension.

pip install matplotlib
"""

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

# arXiv 2312.10725, the authors' scripts (kumarkrishna/fastssl@96dfa37), CIFAR-10, two views; for
# VICReg 1 / (D mu) with their invariance and variance weight mu.
PAPER = {
    "barlow_twins": {64: 0.04, 128: 0.04, 256: 0.02, 512: 0.01},
    "vicreg": {64: 1 / (64 * 20), 128: 1 / (128 * 20), 256: 1 / (256 * 25), 512: 1 / (512 * 25)},
}
TITLES = {"barlow_twins": "Barlow Twins", "kernel": "kernel form", "vicreg": "VICReg"}


def draw(cells, rules, auto, path):
    """Draw all losses.

    Args:
        cells: {loss: {(num_views, dim): (log weights, kNN)}}.
        rules: {loss: fitted rule}.
        auto: {loss: (constant, exponent)} of orthogonality_weight="auto".
        path: of the picture.
    """
    figure, axes = plt.subplots(len(cells), 2, figsize=(10, 3.4 * len(cells)), squeeze=False)
    for (curve, best), (loss, found) in zip(axes, cells.items(), strict=True):
        dims = sorted({dim for _, dim in found})
        shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(dims)))
        colors = dict(zip(dims, shades, strict=True))
        for (num_views, dim), (log_weights, accuracy) in found.items():
            curve.plot(
                np.exp(log_weights),
                100 * accuracy,
                color=colors[dim],
                linestyle={2: ":", 4: "-"}[num_views],
                marker={2: "o", 4: "s"}[num_views],
                markersize=3,
                label=f"D = {dim}" if num_views == 4 else None,
            )
        curve.set(xscale="log", xlabel="orthogonality weight", ylabel="kNN accuracy, %")
        curve.set_title(f"{TITLES[loss]} (V = 2 dotted, V = 4 solid)", fontsize=10)
        curve.legend(fontsize=7)
        for cell in rules[loss]["best_weights"]:
            inside = cell["inside_grid"]
            best.plot(
                cell["dim"],
                cell["weight"],
                {2: "o", 4: "s"}[cell["num_views"]],
                color="#0072B2",
                fillstyle="full" if inside else "none",
            )
        for num_views, marker in ((2, "o"), (4, "s")):
            best.plot([], [], marker, color="#0072B2", label=f"best at V = {num_views}")
        line = np.array([dims[0], dims[-1]], dtype=float)
        rule = rules[loss]
        fitted = f"fit: {rule['constant']:.2g} / D^{rule['exponent']:.1f}"
        weights = rule["constant"] / line ** rule["exponent"]
        best.plot(line, weights, "--", color="#D55E00", label=fitted)
        constant, exponent = auto[loss]
        best.plot(line, constant / line**exponent, color="black", label='"auto"')
        if loss in PAPER:
            published = zip(*PAPER[loss].items(), strict=True)
            best.plot(*published, "x", color="#009E73", label="the paper's scripts")
        best.set(xscale="log", yscale="log", xlabel="D", ylabel="orthogonality weight")
        best.set_xticks(dims, [str(dim) for dim in dims])
        best.xaxis.minorticks_off()
        low, high = best.get_ylim()
        best.set_ylim(min(low, high / 30), max(high, low * 30))
        best.set_title("best weights (hollow: at the edge of the grid)", fontsize=10)
        best.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
