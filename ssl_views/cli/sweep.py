"""`ssl-views sweep`: a grid of runs, what they reached, and what that cost."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ssl_views.cli.arguments import flag, make_parser, read_arguments
from ssl_views.cli.console import duration, say
from ssl_views.cli.evaluate import EvaluateArguments
from ssl_views.cli.pretrain import ARGUMENTS
from ssl_views.cli.study_tables import study_tables
from ssl_views.evaluation.history import write_whole
from ssl_views.naming import did_you_mean, printable
from ssl_views.sweep.analysis import StudyResult, analyse
from ssl_views.sweep.results import RunResult
from ssl_views.sweep.room import Room
from ssl_views.sweep.runner import Progress, Sweep
from ssl_views.sweep.study import Study
from ssl_views.termination import TERMINATED

SUMMARY, PICTURE = "study.json", "study.png"
FAILED = 1  # exit code
_MINUTE = 60


@dataclass
class SweepArguments:
    """Where and how the runs run."""

    output_dir: str | None = flag(
        None, "Folder of the study: results, and a folder per run; runs/studies/NAME by default."
    )
    dataset: str | None = flag(None, "Images, instead of the study's.")
    jobs: int | None = flag(
        None, "Runs at once; by default one per GPU, or without a GPU one per core."
    )
    max_minutes: float | None = flag(
        None, "Stop after so long; the same command goes on where it was."
    )
    max_attempts: int = flag(2, "Processes that are started for a run that keeps failing.")
    retry_failed: bool = flag(False, "Repeat runs that have failed before.")


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = make_parser(
        "sweep", "Run a study: a grid over flags of ssl-views pretrain, described in a YAML file. "
        "Runs that are done are not repeated, and a run that was killed goes on from its last "
        "checkpoint.",
        SweepArguments, positionals=("study",),
    )  # fmt: skip
    arguments, words = read_arguments(parser, argv, yaml_flags=False)
    overrides = {} if arguments.dataset is None else {"dataset": arguments.dataset}
    study = Study.read(words.study, overrides)
    check_flags(study)
    folder = Path(arguments.output_dir or Path("runs") / "studies" / study.name)
    room = Room.of_this_machine(arguments.jobs)
    sweep = Sweep(
        study,
        folder,
        [sys.executable, "-m", "ssl_views.cli.study_run"],
        room=room,
        max_attempts=arguments.max_attempts,
        retry_failed=arguments.retry_failed,
        max_seconds=None if arguments.max_minutes is None else arguments.max_minutes * _MINUTE,
        on_start=lambda: _write_summary(study, folder),
        on_end=_say_progress,
    )
    where = f"{len(room.devices)} GPUs" if room.devices else f"{room.threads} threads each"
    say(f"{study.name}: {len(study.runs)} runs, {room.jobs} at once, {where}")
    results = sweep.run()
    if any(result.finished for result in results):
        result = analyse(
            results,
            metric=study.metric,
            reference=study.reference,
            targets=study.targets,
            every_point_counts=study.every_point_counts,
        )
        report(study, results, result, folder)
    if sweep.num_left:
        say(f"\n{sweep.num_left} runs are left: the same command goes on with them")
        raise SystemExit(TERMINATED)
    if failed := sum(not result.finished for result in results):
        say(f"\n{failed} of {len(results)} runs have failed; --retry_failed repeats them")
        raise SystemExit(FAILED)


def check_flags(study: Study) -> None:
    """Check that all flags of a study exist, before anything is run.

    Raises:
        ValueError: if one does not; the nearest names are proposed.
    """
    known = {f.name for arguments in ARGUMENTS for f in fields(arguments) if f.init}
    of_evaluate = {f.name for f in fields(EvaluateArguments)}
    for names, allowed, command in (
        ({name for run in study.runs for name in run.flags}, known, "pretrain"),
        (set(study.evaluate or {}), of_evaluate, "evaluate"),
    ):
        for name in sorted(names - allowed):
            raise ValueError(
                f"a study must hold flags of ssl-views {command}; {name!r} is none."
                f"{did_you_mean(name, sorted(allowed))} ssl-views {command} --help lists them."
            )


def report(study: Study, results: Sequence[RunResult], result: StudyResult, folder: Path) -> None:
    """Print the tables of a study, and write them, the numbers and the picture to its folder."""
    tables = study_tables(result)
    say("\n" + "\n".join(tables))
    write_whole(
        folder / "study.md", "\n".join([f"# {study.name}", "", study.about, "", *tables, ""])
    )
    _write_summary(study, folder, result)
    say(f"\nwritten to {printable(str(folder / 'study.md'))} and {SUMMARY}")
    if find_spec("matplotlib") is None:
        say('no picture: it needs matplotlib, pip install "ssl-views[plots]"')
        return
    from ssl_views.sweep.pictures import draw_study

    (folder / PICTURE).write_bytes(draw_study(results, result))
    say(f"written to {printable(str(folder / PICTURE))}")


def _write_summary(study: Study, folder: Path, result: StudyResult | None = None) -> None:
    write_whole(folder / SUMMARY, json.dumps(summary_of(study, result), indent=1) + "\n")


def summary_of(study: Study, result: StudyResult | None = None) -> Mapping[str, Any]:
    """Return what `ssl-views plan` and readers of the folder need to know, as JSON values."""
    return {
        "name": study.name,
        "about": study.about,
        "metric": study.metric,
        "reference": dict(study.reference),
        "targets": list(study.targets),
        "every_point_counts": study.every_point_counts,
        "settings": {run.key: dict(run.settings) for run in study.runs},
        "result": None if result is None else result.as_dict(),
    }


def _say_progress(progress: Progress) -> None:
    result = progress.result
    left = f", about {duration(progress.seconds_left)} left" if progress.seconds_left else ""
    if result.finished:
        ended = duration(result.seconds)
    else:
        last = (result.error.strip() or "?").splitlines()[-1]
        ended = f"FAILED, attempt {result.attempts}: {last}"
    say(f"{progress.num_done}/{progress.num_runs} {printable(result.name)}: {ended}{left}")
