"""One run of a study, in a process of its own: `python -m ssl_views.cli.study_run FOLDER`."""

import os
import signal
import sys
import threading
from pathlib import Path

import yaml

from ssl_views.cli import main
from ssl_views.evaluation.history import RunHistory
from ssl_views.sweep.locks import locked
from ssl_views.sweep.runner import EVALUATE, PRETRAIN

_WAIT_SECONDS = 180.0  # for a process that a killed sweep has left, and that is just saving


def run(folder: Path) -> int:
    """Pretrain, go on or do nothing, as the folder has it; then evaluate. Return the exit code."""
    with locked(folder / ".lock", what="run", wait_seconds=_WAIT_SECONDS):
        code = 0 if _is_trained(folder) else main(["pretrain", str(folder / PRETRAIN)])
        if code == 0 and (folder / EVALUATE).is_file():
            data = yaml.safe_load((folder / PRETRAIN).read_text(encoding="utf-8"))
            words = ["--dataset", str(data["dataset"])]
            code = main(["evaluate", str(folder / EVALUATE), str(folder), *words])
    return code


def _is_trained(folder: Path) -> bool:
    if not (folder / "trainer_state.json").is_file():
        return False
    return (folder / "model.safetensors").is_file() and RunHistory.read(folder).finished


def _end_with_parent() -> None:
    """End as by SIGTERM when the process that started this one is gone."""
    while os.read(sys.stdin.fileno(), 1):  # unbuffered: a buffer would be locked at the exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(run(Path(sys.argv[1])))
