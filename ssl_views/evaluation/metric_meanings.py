"""What each metric means, in a sentence."""

from ssl_views.evaluation.report import Metrics


def explained(metrics: Metrics) -> list[tuple[str, str, str]]:
    """Return name, value and meaning of the metrics that there are."""
    rows: list[tuple[str, str | None, str]] = [
        ("kNN", _percent(metrics.knn), "Right votes of the nearest training images; no training."),
        (
            "linear probe",
            _percent(metrics.linear_probe),
            f"Test accuracy of a linear classifier on all {metrics.num_train:,} training images; "
            f"weight decay {metrics.linear_probe_weight_decay:g}, chosen on training images."
            if metrics.linear_probe_weight_decay is not None
            else "",
        ),
    ]
    for share, few in (metrics.few_labels or {}).items():
        spread = f" ± {100 * (few.high - few.mean):.1f}" if few.high is not None else ""
        rows.append(
            (
                f"linear probe, {100 * float(share):g} % of the labels",
                f"{100 * few.mean:.1f}{spread} %",
                f"The same with few labels: mean and 95 % interval over {few.n} draws of them.",
            )
        )
    most = min(metrics.feature_dim, metrics.num_test)
    rows.append(
        (
            "effective rank",
            f"{metrics.effective_rank:.1f} of {most}",
            "RankMe: how many directions the features use. Near 1 they have collapsed.",
        )
    )
    if metrics.alpha is not None and metrics.alpha_ranks is not None:
        first, last = metrics.alpha_ranks
        rows.append(
            (
                "alpha",
                f"{metrics.alpha:.2f}",
                f"Decay of their eigenspectrum, fitted to ranks {first} to {last} with R2 "
                f"{metrics.alpha_r_squared:.2f}. Near 1 is often good; large means few directions.",
            )
        )
    if metrics.lidar is not None:
        rows += [
            (
                "LiDAR",
                f"{metrics.lidar:.1f}",
                "How many directions tell images apart, beyond what differs between their views. "
                "Compare runs of one backbone; near 1 they have collapsed.",
            ),
            (
                "view invariance",
                f"{metrics.view_invariance:.2f}",
                "Correlation of a feature between two views of an image: 1 if augmentation does "
                "not change it, 0 if it depends on nothing else.",
            ),
        ]
    return [(name, value, meaning) for name, value, meaning in rows if value is not None]


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"
