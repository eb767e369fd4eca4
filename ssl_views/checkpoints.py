"""Checkpoints that a kill cannot break: staged, sealed by a manifest, renamed into place.

A checkpoint is written into `_staging`, its files are brought to disk, a manifest with their sizes
and SHA-256 follows, and one rename makes it visible. What has no manifest, or does not agree with
it, is never resumed from. (Names that begin with `_` are left out by uploads of transformers.)
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

STAGING, MANIFEST = "_staging", "MANIFEST.json"
_TRASH, _ASIDE = "_trash", "_unusable-"
_FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_NEEDED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
_LOADED = (".bin", ".pt", ".pth", ".safetensors")  # what resuming may read


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or does not verify."""


class FoundCheckpoints(NamedTuple):
    """The newest checkpoint that verifies, and the newer ones that do not, with reasons."""

    newest: Path | None
    skipped: dict[Path, str]


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Bring all files of a folder to disk, then write the manifest.

    Args:
        folder: a checkpoint that is complete.
        facts: JSON values to store with it, "step" and "world_size" among them.

    Raises:
        CheckpointError: if it lacks a file that resuming needs.
    """
    files = {}
    manifest = folder / MANIFEST
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != manifest:
            _sync(path)
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    content = {"format": _FORMAT, **facts, "files": files}
    _check_files(content)
    manifest.write_text(_rendered(content))
    _sync(manifest)
    _sync(folder)


def publish(staged: Path, final: Path) -> None:
    """Rename a sealed checkpoint into place; one of the same step is replaced."""
    if final.exists():
        _throw_away(final)
    staged.rename(final)
    _sync(final.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises:
        CheckpointError: if it has none that is whole.
    """
    try:
        text = (folder / MANIFEST).read_text()
        manifest = json.loads(text)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"it has no {MANIFEST}, so it is incomplete, or another program wrote it"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"its {MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise CheckpointError(f"its {MANIFEST} has format {found!r}; this version reads {_FORMAT}")
    manifest.pop("sha256", None)
    if text != _rendered(manifest):
        raise CheckpointError(f"its {MANIFEST} has changed since it was written")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint whose files all agree with it.

    Raises:
        CheckpointError: if a file is missing, changed, or not listed though resuming would read it.
    """
    manifest = read_manifest(folder)
    try:
        _check_files(manifest)
        for path in sorted(folder.iterdir()):
            if path.suffix in _LOADED and path.name not in manifest["files"]:
                raise CheckpointError(f"its {MANIFEST} does not list {path.name}")
        for name, stored in manifest["files"].items():
            _verify_file(folder, name, stored)
    except (LookupError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"it cannot be read: {error!r}") from error
    if _NAME.fullmatch(folder.name) and step_of(folder) != manifest["step"]:
        raise CheckpointError(f"it is that of step {manifest['step']}, whatever its name")
    return manifest


def _check_files(manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest without a file that resuming needs."""
    ranks = range(manifest["world_size"])
    random = [f"rng_state_{r}.pth" for r in ranks] if len(ranks) > 1 else ["rng_state.pth"]
    for name in (*_NEEDED, *random):
        if name not in manifest["files"]:
            raise CheckpointError(f"it holds no {name}, which resuming needs")


def _verify_file(folder: Path, name: str, stored: Mapping[str, Any]) -> None:
    path = folder / name
    if not path.is_file() or folder.resolve() not in path.resolve().parents:
        raise CheckpointError(f"its {name} is missing")
    size = path.stat().st_size
    if size != stored["bytes"]:
        raise CheckpointError(f"its {name} has {size} bytes instead of {stored['bytes']}")
    if _sha256(path) != stored["sha256"]:
        raise CheckpointError(f"its {name} has changed since it was written")


def find_checkpoints(run_folder: Path) -> FoundCheckpoints:
    """Find the newest checkpoint that verifies."""
    skipped = {}
    for folder in reversed(checkpoints_by_step(run_folder)):
        try:
            verify(folder)
        except CheckpointError as error:
            skipped[folder] = str(error)
        else:
            return FoundCheckpoints(folder, skipped)
    return FoundCheckpoints(None, skipped)


def checkpoints_by_step(run_folder: Path) -> list[Path]:
    """Return the folders named like checkpoints, the oldest first."""
    folders = run_folder.iterdir() if run_folder.is_dir() else ()
    named = [path for path in folders if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(named, key=step_of)


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"a checkpoint is named checkpoint-STEP; got {folder.name!r}. Rename it.")
    return int(match[1])


def rotate(newest: Path, limit: int | None, best: str | None = None) -> None:
    """Delete the oldest checkpoints of a run until `limit` are left.

    Args:
        newest: the one just written; it is kept.
        limit: how many are left; None or 0 for all.
        best: another one that is kept.
    """
    if limit is None or limit <= 0:
        return
    folders = checkpoints_by_step(newest.parent)
    kept = {newest.name} | ({Path(best).name} if best else set())
    surplus = len(folders) - max(limit, len(kept))
    for folder in [folder for folder in folders if folder.name not in kept][: max(0, surplus)]:
        _throw_away(folder)


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint so that it is kept, but neither resumed from nor rotated."""
    aside = folder.with_name(_ASIDE + folder.name)
    if aside.exists():
        _throw_away(aside)
    return folder.rename(aside)


def clear_unfinished(run_folder: Path) -> None:
    """Delete what a killed process has left half written or half deleted."""
    for name in (STAGING, _TRASH):
        shutil.rmtree(run_folder / name, ignore_errors=True)


def check_free_space(run_folder: Path, num_bytes: int) -> None:
    """Refuse to write what does not fit.

    Raises:
        CheckpointError: if the disk has less than `num_bytes` free.
    """
    free = shutil.disk_usage(run_folder).free
    if free < num_bytes:
        raise CheckpointError(
            f"a checkpoint must fit on the disk of {run_folder}; it takes about {num_bytes:,} "
            f"bytes, and {free:,} are free. Free some space; older checkpoints are kept, and the "
            "same command resumes."
        )


def move_into(staged: Path, folder: Path) -> None:
    """Bring files to disk and rename them into a folder one by one, so that none is ever half."""
    for path in sorted(staged.iterdir()):
        _sync(path)
        path.replace(folder / path.name)
    staged.rmdir()
    _sync(folder)


def _throw_away(folder: Path) -> None:
    """Rename first: a folder that is half deleted must not look like a checkpoint."""
    trash = folder.parent / _TRASH
    shutil.rmtree(trash, ignore_errors=True)
    trash.mkdir()
    folder.rename(trash / folder.name)
    shutil.rmtree(trash, ignore_errors=True)


def _rendered(content: Mapping[str, Any]) -> str:
    """Return a manifest, with a digest of itself."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=2) + "\n"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows syncs no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
