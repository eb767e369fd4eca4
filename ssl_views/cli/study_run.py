"""One run of a study, in a process of its own: `python -m ssl_views.cli.study_run FOLDER`."""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ssl_views.cli import main
from ssl_views.cli.arguments import LabelledDataArguments
from ssl_views.evaluation.history import RunHistory
from ssl_views.sweep.locks import locked
from ssl_views.sweep.runner import EVALUATE, PRETRAIN

_WAIT_SECONDS = 180.0  # for a process that a killed sweep has left, and that is just saving


def run(folder: Path) -> int:
    """Pretrain, go on or do nothing, as the folder has it; then evaluate. Return the exit code."""
    with locked(folder / ".lock", what="run", wait_seconds=_WAIT_SECONDS):
        code = 0 if _is_trained(folder) else main(["pretrain", str(folder / PRETRAIN)])
        if code == 0 and (folder / EVALUATE).is_file():
            words = _same_images(_flags(folder / PRETRAIN), _flags(folder / EVALUATE))
            code = main(["evaluate", str(folder / EVALUATE), str(folder), *words])
    return code


def _flags(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def _same_images(trained: Mapping[str, Any], evaluated: Mapping[str, Any]) -> list[str]:
    """Return the flags on images that the evaluation does not set itself."""
    names = [f.name for f in fields(LabelledDataArguments) if f.name not in evaluated]
    return [word for n in names if n in trained for word in (f"--{n}", str(trained[n]))]


def _is_trained(folder: Path) -> bool:
    if not (folder / "model.safetensors").is_file():
        return False
    try:
        return RunHistory.read(folder).finished
    except ValueError:  # a file was cut short by a kill: its checkpoints are whole
        return False


def _end_with_parent() -> None:
    """End as by SIGTERM when the process that started this one is gone."""
    while os.read(sys.stdin.fileno(), 1):  # unbuffered: a buffer would be locked at the exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(run(Path(sys.argv[1])))
