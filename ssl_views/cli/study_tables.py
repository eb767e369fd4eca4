"""The tables of a study, in markdown."""

from collections.abc import Sequence

from ssl_views.evaluation.intervals import Interval
from ssl_views.evaluation.run_comparison import is_accuracy, title_of
from ssl_views.sweep.analysis import StudyResult, TimeTo

_MINUTE = 60
_PROBE = "linear_probe"


def study_tables(result: StudyResult) -> list[str]:
    """Return the lines of all tables: what runs reached and cost, then how soon."""
    lines = [*reached_table(result), "", *_meaning(result)]
    if any(group.time_to for group in result.groups):
        lines += ["", *time_table(result)]
    if result.failed:
        lines += ["", *(f"failed: {name}: {error}" for name, error in result.failed.items())]
    return lines


def reached_table(result: StudyResult) -> list[str]:
    """Return the table of what runs reached."""
    at_equal = result.equal_seconds is not None
    title = title_of(result.metric)
    header = ["setting", "runs", f"{title} at the end", "minutes", "epochs", "images seen"]
    header += ["distinct images", "frontier"]
    probed = all(_PROBE in group.evaluation for group in result.groups)
    if probed:
        header.append("linear probe, test split")
    if at_equal:
        header[3:3] = [f"{title} at equal time", "minus reference", "at equal epochs"]
    rows = []
    for group in result.groups:
        failed = f" ({group.num_failed} failed)" if group.num_failed else ""
        cells = [
            f"{group.name}{' (reference)' if group.name == result.reference else ''}",
            f"{group.num_runs}{failed}",
            value(group.last, result.metric),
            f"{group.seconds / _MINUTE:.2f}",
            f"{group.epochs:.3g}",
            f"{group.images_seen:,.0f}",
            "-" if group.num_images is None else f"{group.num_images:,.0f}",
            "yes" if group.on_frontier else "",
        ]
        if probed:
            cells.append(value(group.evaluation[_PROBE], _PROBE))
        if at_equal:
            cells[3:3] = [
                value(group.at_equal_seconds, result.metric),
                points(group.difference, result.metric),
                value(group.at_equal_epochs, result.metric),
            ]
        rows.append(cells)
    return _markdown(header, rows)


def _meaning(result: StudyResult) -> list[str]:
    text = (
        "Mean ± half of the 95 % interval over seeds; minutes are of training alone, at the median "
        "speed of a setting. Minutes to a value are those of the mean curve, made to never fall."
    )
    if result.equal_seconds is not None and result.equal_epochs is not None:
        text += (
            f" Equal time is {result.equal_seconds / _MINUTE:.2f} minutes, equal epochs are "
            f'{result.equal_epochs:.3g}; "minus reference" is at equal time, of runs with the same '
            "seed."
        )
    return [text]


def time_table(result: StudyResult) -> list[str]:
    """Return the table of the time to each target."""
    targets = result.groups[0].time_to
    header = ["minutes to", *(_target(time.target, result.metric) for time in targets)]
    rows = [[group.name, *map(_time, group.time_to)] for group in result.groups]
    return _markdown(header, rows)


def _target(target: float, metric: str) -> str:
    return f"{100 * target:.1f} %" if is_accuracy(metric) else f"{target:.4g}"


def _time(time: TimeTo) -> str:
    if time.seconds is None:
        return "not reached"
    text, faster = f"{time.seconds / _MINUTE:.2f}", time.times_faster
    if faster is None:
        return text
    spread = "" if faster.low is None else f" ({faster.low:.2f} to {faster.high:.2f})"
    return f"{text}, {faster.mean:.2f} x faster{spread}"


def value(interval: Interval | None, metric: str) -> str:
    """Format a mean with half of its interval."""
    if interval is None:
        return "-"
    scale, unit = (100, " %") if is_accuracy(metric) else (1, "")
    half = "" if interval.high is None else f" ± {scale * (interval.high - interval.mean):.1f}"
    return f"{scale * interval.mean:.1f}{half}{unit}"


def points(interval: Interval | None, metric: str) -> str:
    """Format a difference, with its sign."""
    if interval is None:
        return "-"
    scale = 100 if is_accuracy(metric) else 1
    half = "" if interval.high is None else f" ± {scale * (interval.high - interval.mean):.1f}"
    return f"{scale * interval.mean:+.1f}{half}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    padded = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "| " + " | ".join("-" * max(3, w) for w in widths) + " |"
    return [padded[0], rule, *padded[1:]]
