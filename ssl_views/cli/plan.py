"""`ssl-views plan`: which settings to spend a time budget on, and how sure that is."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssl_views.cli.arguments import flag, make_parser, read_arguments
from ssl_views.cli.console import duration, percent, say
from ssl_views.evaluation.history import write_whole
from ssl_views.evaluation.run_comparison import title_of
from ssl_views.naming import printable
from ssl_views.sweep.planning import GroupPlan, Plan, plan_budget
from ssl_views.sweep.results import read_results

_STUDY = "study.json"
_MINUTE = 60
_NAME_WIDTH = 40
_SURE, _RIVAL, _ON_FRONTIER = 0.9, 0.05, 0.5  # probabilities
_FAR = 4  # times the length of a curve: beyond it, a prediction is a guess
_FEW_DEGREES = 4  # of freedom of the spread of seeds
_NAMED = 3  # groups in a sentence


@dataclass
class PlanArguments:
    """What to plan for."""

    budget_minutes: float | None = flag(
        None, "Minutes that one run may train, without evaluations."
    )
    metric: str | None = flag(
        None, "Accuracy that was evaluated during training; the study's metric by default."
    )
    confidence: float = flag(0.95, "Share of the cases that an interval is to cover.")
    output: str | None = flag(None, "File to write the numbers to, as .json.")


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "plan", "Say which settings of a study are the best after a time of training, from runs "
        "that may be shorter, and how sure that is. STUDY is the folder of ssl-views sweep, or its "
        "results.jsonl.",
        PlanArguments, positionals=("study",),
    )  # fmt: skip
    arguments, words = read_arguments(parser, argv, yaml_flags=False)
    if arguments.budget_minutes is None:
        raise ValueError(
            "budget_minutes must be given; got none. Add the minutes that one run may train, e.g. "
            "--budget_minutes 60."
        )
    place = Path(words.study)
    study = _read_study(place)
    results = read_results(place)
    if "settings" in study:  # of the study as it is now
        known = study["settings"]
        results = [replace(r, settings=known[r.key]) for r in results if r.key in known]
    plan = plan_budget(
        results,
        arguments.budget_minutes * _MINUTE,
        metric=arguments.metric or study.get("metric", "knn"),
        every_point_counts=bool(study.get("every_point_counts", False)),
        confidence=arguments.confidence,
    )
    say("\n".join(plan_table(plan)))
    say()
    for sentence in advice(plan):
        say(sentence)
    for name, reason in plan.left_out.items():
        say(f"left out: {printable(name)}: {reason}")
    for note in plan.notes:
        say(f"note: {note}")
    if not study:
        say(f"note: there is no {_STUDY} to say how the learning rate runs, so this is assumed")
    if arguments.output is not None:
        output = Path(arguments.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, json.dumps(plan.as_dict(), indent=2) + "\n")
        say(f"written to {printable(str(output))}")


def plan_table(plan: Plan) -> list[str]:
    """Format the groups, a line each; long names take several."""
    budget = duration(plan.budget_seconds)
    at = f"predicted at {budget}" if plan.every_point_counts else f"final, within {budget}"
    lines = [["setting", "runs", f"measured {title_of(plan.metric)}", at, "P(best)", "P(frontier)"]]
    for group in plan.groups:
        first, *more = textwrap.wrap(printable(group.name), _NAME_WIDTH, break_on_hyphens=False)
        lines.append(
            [
                first,
                str(group.num_runs),
                f"{percent(group.measured)} at {duration(group.measured_seconds)}",
                _predicted(group),
                _probability(group.best_prob),
                _probability(group.frontier_prob),
            ]
        )
        lines += [[f"  {part}", *[""] * (len(lines[0]) - 1)] for part in more]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(_aligned(line, widths)).rstrip() for line in lines]


def advice(plan: Plan) -> list[str]:
    """Say which settings to spend the budget on, how sure that is, and what would make it surer."""
    chosen = plan.groups[0]
    budget, name = duration(plan.budget_seconds), _names([chosen])
    if chosen.best_prob is None or plan.expected_loss is None:
        return [
            f"Spend {budget} on {name}: {percent(chosen.predicted)} is the highest. How sure that "
            "is cannot be said from one seed each: run a second seed of each setting."
        ]
    sentences = [
        f"Spend {budget} on {name}: {_predicted(chosen)}, the best of {len(plan.groups)} with "
        f"probability {_probability(chosen.best_prob)}; choosing it costs "
        f"{100 * plan.expected_loss:.1f} points on average."
    ]
    others = [g for g in plan.groups[1:] if (g.frontier_prob or 0) >= _ON_FRONTIER]
    if others:
        sentences.append(f"Also on the frontier of accuracy against time: {_names(others)}.")
    if chosen.best_prob < _SURE:
        sentences.append(_what_helps(plan, chosen))
    farthest = max(plan.groups, key=lambda group: group.extrapolation)
    if farthest.extrapolation > 1:
        times = f"up to {farthest.extrapolation:.1f} times as long as was measured"
        guess = ": that far, it is a guess" if farthest.extrapolation > _FAR else ""
        sentences.append(f"The prediction is for {times}{guess}.")
    if not plan.several_seeds:
        sentences.append(
            "There is one seed of each setting, so the spread of seeds is unknown and intervals "
            "and probabilities leave it out: it is less sure than it looks."
        )
    elif plan.degrees < _FEW_DEGREES:
        sentences.append(
            f"The spread of seeds is known from {plan.degrees:.0f} repeated runs only, so "
            "intervals are wide."
        )
    return sentences


def _what_helps(plan: Plan, chosen: GroupPlan) -> str:
    rivals = [g for g in plan.groups[1:] if (g.best_prob or 0) >= _RIVAL][: _NAMED - 1]
    rivals = rivals or list(plan.groups[1:2])
    named = _names([chosen, *rivals])
    seeds = chosen.seed_deviation or 0.0
    if not plan.several_seeds:
        return f"A second seed of {named} would say more."
    if max(group.law_deviation for group in (chosen, *rivals)) > seeds:
        return f"Longer runs of {named} would make it surer, more than further seeds."
    return f"Two more seeds of {named} would make it surer."


def _names(groups: Sequence[GroupPlan]) -> str:
    names = [f"({printable(group.name)})" for group in groups[:_NAMED]]
    more = [f"{len(groups) - _NAMED} more"] if len(groups) > _NAMED else []
    *first, last = [*names, *more]
    return f"{', '.join(first)} and {last}" if first else last


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *cells = line
    numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
    return [first.ljust(widths[0]), *numbers]


def _predicted(group: GroupPlan) -> str:
    if group.low is None or group.high is None:
        return percent(group.predicted)
    return f"{100 * group.predicted:.1f} ({100 * group.low:.1f} to {100 * group.high:.1f}) %"


def _probability(value: float | None) -> str:
    if value is None:
        return "-"
    if 0.005 <= value < 0.995:
        return f"{100 * value:.0f} %"
    return "< 1 %" if value < _ON_FRONTIER else "> 99 %"


def _read_study(place: Path) -> dict[str, Any]:
    """Return what the sweep has written on the study; empty without it."""
    path = (place if place.is_dir() else place.parent) / _STUDY
    if not path.is_file():
        return {}
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{_STUDY} must be JSON, as ssl-views sweep writes it; {str(path)!r} is not: {error}. "
            "Run ssl-views sweep again, which repeats no run."
        ) from error
    if not isinstance(study, dict):
        raise ValueError(
            f"{_STUDY} must be a JSON object, as ssl-views sweep writes it; {str(path)!r} holds "
            f"{type(study).__name__}. Run ssl-views sweep again, which repeats no run."
        )
    return study
