"""Which checkpoint a run goes on from, and whether it is the same run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ssl_views import checkpoints
from ssl_views.checkpoints import CheckpointError
from ssl_views.run_record import differences

logger = logging.get_logger(__name__)


class ResumeError(ValueError):
    """A run cannot be resumed, or a new one not be started, in the way that was asked for."""


def choose_checkpoint(
    run_folder: Path,
    wanted: str | Path | bool | None,
    record: Mapping[str, Any],
    *,
    world_size: int,
    allow_changed_run: bool,
) -> Path | None:
    """Return the checkpoint to resume from, or None for a new run.

    Checkpoints that do not verify, or are newer than one that was asked for, are set aside.

    Args:
        run_folder: where the run writes its checkpoints.
        wanted: "auto", True, None or the folder of a checkpoint, see `ResumableTrainer.train`.
        record: of the run that is to go on, see `run_record`.
        world_size: number of processes.
        allow_changed_run: only warn where the record has changed.

    Raises:
        ResumeError: if that is not possible; the message says why, and what is.
    """
    checkpoints.clear_unfinished(run_folder)
    found = checkpoints.checkpoints_by_step(run_folder)
    if wanted in (True, "auto"):
        folder, skipped = checkpoints.find_checkpoints(run_folder)
        if folder is None and (wanted is True or skipped):
            reasons = [f"{path.name}: {reason}" for path, reason in skipped.items()]
            raise ResumeError(
                f"{run_folder} holds no checkpoint that can be resumed from "
                f"({'; '.join(reasons) or 'none at all'}). To start a new run, choose another "
                "output_dir, or delete them."
            )
        if folder is None:
            return None
        manifest = checkpoints.read_manifest(folder)
    else:
        folder = None if wanted is None or wanted is False else Path(str(wanted))
        inside = folder is not None and folder.resolve().parent == run_folder.resolve()
        if found and not inside:
            names = [path.name for path in found]
            listed = ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])
            raise ResumeError(
                f"a new run must not write over the checkpoints of another; {run_folder} holds "
                f"{listed}. Resume (resume_from_checkpoint='auto'), choose another output_dir, or "
                "delete them."
            )
        if folder is None:
            return None
        manifest = _verified(folder)
        newer = [path for path in found if checkpoints.step_of(path) > manifest["step"]]
        skipped = dict.fromkeys(newer, f"{folder.name} was asked for")
    _check_same_run(folder, manifest, record, world_size, allow_changed_run)
    for path, reason in skipped.items():
        aside = checkpoints.set_aside(path)
        logger.warning("Skipped %s: %s. It is now %s.", path.name, reason, aside.name)
    logger.warning("Resuming from %s.", folder)
    return folder


def _verified(folder: Path) -> dict[str, Any]:
    try:
        return checkpoints.verify(folder)
    except CheckpointError as error:
        raise ResumeError(
            f"{folder} cannot be resumed from: {error}. Resume from an older one; for a new run "
            "with its weights alone, use "
            "SSLViewsForPreTraining.from_pretrained(folder, use_safetensors=True)."
        ) from error


def _check_same_run(
    folder: Path,
    manifest: Mapping[str, Any],
    record: Mapping[str, Any],
    world_size: int,
    allow_changed_run: bool,
) -> None:
    lines = differences(manifest["run"], record)
    listed = "".join(f"\n  {line}" for line in lines)
    if lines and not allow_changed_run:
        raise ResumeError(
            f"a resumed run must be the run that was started; since {folder} was written, these "
            f"have changed:{listed}\nUndo the changes, choose another output_dir, or set "
            "allow_changed_run."
        )
    if lines:
        logger.warning("The run has changed since %s was written:%s", folder, listed)
    if manifest["world_size"] != world_size:
        logger.warning(
            "%s was written by %d processes, now there are %d: images, order and views are the "
            "same, sums differ by rounding, and dropout differs.",
            folder,
            manifest["world_size"],
            world_size,
        )
