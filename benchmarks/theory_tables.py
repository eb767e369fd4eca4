"""The table of what the theory says in small models, for `tables.py`."""

# Computed apart from this code, after arXiv 2312.10725, App. C.3 (4000 draws) and B.4: eigenvalues
# but the first by views, entropy rank by weight.
KNOWN_SPECTRA = {2: ".85, .45, .09", 4: ".62, .29, .06", 16: ".37, .19, .06", 64: ".28, .17, .08"}
KNOWN_RANKS = {"0.0": "1.15", "0.01": "1.98", "0.1": "3.66", "1.0": "4.0"}


def _plain(value):
    """Return two digits after the point, without the zero before it."""
    return f"{value:.2f}".removeprefix("0")


def _graph_rows(result):
    apart, near = result["graphs"].values()
    rows = []
    for cell, close in zip(apart["sampled"], near["sampled"], strict=True):
        num_views = cell["num_views"]
        if num_views in KNOWN_SPECTRA:
            values = ", ".join(map(_plain, cell["eigenvalues"][1:]))
            rows.append((f"sampled spectrum, {num_views} views", values, KNOWN_SPECTRA[num_views]))
        if num_views in (2, 64, 1024):
            shares = (each["overlaps_of_second"]["class"] for each in (cell, close))
            what = f"class in the second eigenvector, {num_views} views (nearly equal)"
            rows.append((what, "{} ({})".format(*map(_plain, shares)), ""))
    exact = ", ".join(map(_plain, apart["exact"][1:]))
    return [("exact spectrum of the four images", exact, ".25, .16, .09"), *rows]


def _dynamics_rows(result):
    return [
        (
            f"entropy rank of {result['dim']} dimensions, weight {float(weight):g}",
            f"{run['entropy_rank'][-1]:.2f} "
            f"({min(run['last_rank_by_seed']):.2f} to {max(run['last_rank_by_seed']):.2f})",
            KNOWN_RANKS[weight],
        )
        for weight, run in result["runs"].items()
    ]


def _dims_rows(result):
    shorter, longer = (
        result["weight_to_hold"][str(result["num_steps"])],
        result["smaller_start"]["weight_to_hold"],
    )
    exponents = (
        ", ".join(f"{found['exponent']:.2f}" for found in each.values())
        for each in (shorter, longer)
    )
    counts = ", ".join(shorter)
    start = f"{result['smaller_start']['scale']:g}, {result['smaller_start']['num_steps']} steps"
    names = (f"{result['scale']:g}, {result['num_steps']} steps", start)
    rows = [
        (f"exponent of 1 / D in the weight that holds {counts} functions (start {name})", cell, "1")
        for name, cell in zip(names, exponents, strict=True)
    ]
    least = ", ".join(
        f"{dim}: {'none' if weight is None else format(weight, '.2g')}"
        for dim, weight in result["weight_to_hold_share_of_dim"].items()
    )
    return [*rows, (f"weight that holds {result['share_of_dim']:g} D functions, by D", least, "")]


def _kernel_rows(result):
    rows = []
    for num_views, num_images in ((2, 100), (2, 1000), (8, 100), (8, 1000)):
        cell = next(
            each
            for each in result["cells"]
            if (each["num_views"], each["num_images"]) == (num_views, num_images)
        )
        cross, mean = (
            f"{cell[form]['root_mean_square_error']:.3f} "
            f"({cell[form]['bias_of_mean_eigenvalue']:+.3f})"
            for form in ("cross_view", "mean_view")
        )
        what = f"error (bias) of eigenvalues, {num_views} views of {num_images} images"
        rows.append((what, cross, f"{mean} with the mean of the views"))
    return rows


def theory(result):
    """Table of what is found, beside what is known."""
    rows = [
        *_graph_rows(result["augmentation_graph"]),
        *_dynamics_rows(result["dynamics"]),
        *_dims_rows(result["dims"]),
        *_kernel_rows(result["kernel"]),
    ]
    repeats = result["kernel"]["repeats"]
    return [
        "| what | here | reference |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "References of spectra (4,000 draws) and ranks were computed apart from this code. "
        f"Spectra: means of {result['augmentation_graph']['num_draws']:,} draws, without the first "
        f"eigenvalue, 1. Ranks: seed 0 (and the range of 20 seeds). "
        f"Weights: {result['dims']['num_seeds']} seeds. Errors: root mean squares "
        f"over {len(result['kernel']['eigenvalues'])} eigenvalues and {repeats} data sets. "
        f"{result['processor_seconds']} seconds on one core of an "
        f"{result['machine']['processor']}; torch {result['versions']['torch']}.",
    ]
