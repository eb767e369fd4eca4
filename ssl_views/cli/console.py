"""What the commands print."""

import sys
from collections.abc import Mapping, Sequence

from ssl_views.evaluation.report import Metrics


def say(text: str = "") -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def percent(value: float | None) -> str:
    """Format a fraction as a percentage."""
    return "-" if value is None else f"{100 * value:.1f} %"


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


def protocol_line(metrics: Metrics, k: int = 20, temperature: float = 0.1) -> str:
    """Say how the metrics were measured."""
    if metrics.knn is None:
        return f"{metrics.num_test:,} images, one clean view; no labels, so no accuracy"
    return (
        f"{metrics.num_train:,} images to learn from, {metrics.num_test:,} to evaluate, one clean "
        f"view; kNN: k = {k}, temperature {temperature}"
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
