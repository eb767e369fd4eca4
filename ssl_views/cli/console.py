"""What the commands print."""

import sys
from collections.abc import Mapping, Sequence

from ssl_views.evaluation.report import Metrics, Spread


def say(text: str = "") -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def percent(value: float | None) -> str:
    """Format a fraction as a percentage."""
    return "-" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Format a time with three digits, in seconds up to two minutes, in hours from two on.

    Example:
        >>> duration(90), duration(100), duration(5000), duration(86400)
        ('90 s', '100 s', '83.3 min', '24 h')
    """
    if seconds < 120:
        return f"{seconds:.3g} s"
    value, unit = (seconds / 60, "min") if seconds < 7200 else (seconds / 3600, "h")
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def metrics_table(rows: Mapping[str, Metrics]) -> str:
    """Format metrics of several features, one line each."""
    header = ("", "kNN", "linear probe", "effective rank")
    body = [
        (
            name,
            percent(m.knn),
            percent(m.linear_probe),
            f"{m.effective_rank:.1f} of {min(m.feature_dim, m.num_test)}",
        )
        for name, m in rows.items()
    ]
    return "\n".join(_columns([header, *body]))


def few_labels_lines(metrics: Metrics) -> list[str]:
    """Say what linear probes reach that know a share of the labels."""
    return [
        f"{100 * float(share):g} % of the labels: {percent(few.mean)} ({percent(few.low)} to "
        f"{percent(few.high)}, 95 % interval over {few.n} draws)"
        for share, few in (metrics.few_labels or {}).items()
    ]


def spread_line(metrics: Spread) -> str:
    """Say what needs no labels, beside the effective rank."""
    parts = []
    if metrics.alpha is not None and metrics.alpha_ranks is not None:
        first, last = metrics.alpha_ranks
        parts.append(
            f"alpha {metrics.alpha:.2f} (ranks {first} to {last}, R2 {metrics.alpha_r_squared:.2f})"
        )
    if metrics.lidar is not None:
        parts.append(f"LiDAR {metrics.lidar:.1f}, view invariance {metrics.view_invariance:.2f}")
    return "; ".join(parts)


def protocol_line(
    metrics: Metrics,
    k: int = 20,
    temperature: float = 0.1,
    *,
    features: str = "one clean view",
    why: str = "",
) -> str:
    """Say how the metrics were measured, and why there are no accuracies."""
    if metrics.knn is None:
        return f"{metrics.num_test:,} images, {features}; no accuracies, for {why}"
    return (
        f"{metrics.num_train:,} images to learn from, {metrics.num_test:,} to evaluate, {features}"
        f"; kNN: k = {k}, temperature {temperature}"
    )


def _columns(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    ]
