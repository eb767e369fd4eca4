"""`ssl-views compare`: one table and one picture over runs."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ssl_views.cli.arguments import flag, make_parser, read_arguments
from ssl_views.cli.console import say
from ssl_views.evaluation.history import RunHistory, write_whole
from ssl_views.evaluation.intervals import Interval
from ssl_views.evaluation.run_comparison import (
    GroupSummary,
    RunComparison,
    compare_runs,
    is_accuracy,
    title_of,
)
from ssl_views.naming import printable

_ALSO_SHOWN = "linear_probe"
_NAME_WIDTH = 20
_MINUTE, _HOUR = 60, 3600


@dataclass
class CompareArguments:
    """What to compare, and where to write it."""

    metric: str = flag(
        "knn", "Metric: what the log has after eval_, or a number of evaluation.json."
    )
    output: str = flag("comparison.png", "Picture to write; the numbers go beside it, as .json.")


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "compare", "Compare runs. Those that differ in their seed only are one group, with its "
        "mean and 95 % interval; the first is what the others are compared with.",
        CompareArguments, positionals=("runs...",),
    )  # fmt: skip
    arguments, words = read_arguments(parser, argv)
    output = Path(arguments.output)
    if output.suffix.lower() != ".png":
        raise ValueError(
            f"output must be a picture, .png; got {arguments.output!r}. The numbers are written "
            "beside it, as .json."
        )
    comparison = compare_runs([RunHistory.read(folder) for folder in words.runs], arguments.metric)
    say("\n".join(comparison_table(comparison)))
    for note in comparison.notes:
        say(note)
    if comparison.target is not None:
        say(_about_faster(comparison))
    output.parent.mkdir(parents=True, exist_ok=True)
    numbers = output.with_suffix(".json")
    write_whole(numbers, json.dumps(comparison.as_dict(), indent=2) + "\n")
    say(f"written to {printable(str(numbers))}")
    runs = [run for group in comparison.groups for run in group.group.runs]
    if not any(f"eval_{comparison.metric}" in run.names for run in runs):
        say(f"no picture: {comparison.metric} was not evaluated in training")
    elif find_spec("matplotlib") is None:
        say('no picture: it needs matplotlib, pip install "ssl-views[plots]"')
    else:
        from ssl_views.evaluation.comparison_picture import draw_comparison

        output.write_bytes(draw_comparison(comparison))
        say(f"written to {printable(str(output))}")


def comparison_table(comparison: RunComparison) -> list[str]:
    """Format the numbers of all groups, a line each; long names take several."""
    metric, groups = comparison.metric, comparison.groups
    shown = [metric]
    if metric == "knn" and any(_ALSO_SHOWN in group.metrics for group in groups):
        shown.append(_ALSO_SHOWN)
    header = ["", "runs", *map(title_of, shown)]
    header += ["best", "epochs", "images", "time", "faster"]
    lines = [header]
    for number, group in enumerate(groups):
        name = textwrap.wrap(group.group.name, _NAME_WIDTH, break_on_hyphens=False)
        first, *more = name or [""]
        lines.append([f"{number + 1} {first}", *_cells(group, metric, shown)])
        lines += [[f"  {part}", *[""] * (len(header) - 1)] for part in more]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(_aligned(line, widths)).rstrip() for line in lines]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *cells = line
    numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
    return [first.ljust(widths[0]), *numbers]


def _cells(group: GroupSummary, metric: str, shown: Sequence[str]) -> list[str]:
    faster = group.times_faster
    runs, counted = len(group.group.runs), len(group.group.counted)
    return [
        str(runs) if runs == counted else f"{counted} of {runs}",
        *(_with_interval(name, group.metrics.get(name)) for name in shown),
        _value(metric, group.best),
        "-" if group.epochs is None else f"{group.epochs:.4g}",
        _count(group.images_seen),
        _duration(group.train_seconds),
        "-" if faster is None else f"{faster:.1f} x",
    ]


def _value(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if is_accuracy(metric) else f"{value:.4g}"


def _with_interval(metric: str, interval: Interval | None) -> str:
    """Format a mean, with half the width of its interval where there is one."""
    if interval is None:
        return "-"
    if interval.high is None:
        return _value(metric, interval.mean)
    half = interval.high - interval.mean
    if is_accuracy(metric):
        return f"{100 * interval.mean:.1f} ± {100 * half:.1f} %"
    return f"{interval.mean:.4g} ± {half:.2g}"


def _count(value: float | None) -> str:
    """Format a number of images."""
    if value is None:
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds >= 2 * _HOUR:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _MINUTE:.1f} min" if seconds >= 2 * _MINUTE else f"{seconds:.0f} s"


def _about_faster(comparison: RunComparison) -> str:
    target = _value(comparison.metric, comparison.target)
    return (
        f"faster: training time until {title_of(comparison.metric)} in training is {target}, the "
        "last value of 1; times can be compared on the same hardware only"
    )
