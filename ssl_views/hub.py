"""Publish an encoder folder on the Hub, so that its name stands for what was checked, or nothing.

One commit brings all files of the frozen layout and nothing else; every file is compared by hash at
that commit; only then the tag is made. So what is under a tag is whole, whatever broke on the way.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ssl_views.encoder_folder import ENCODER_FILES, check_encoder
from ssl_views.hub_calls import HubCalls, PublishError
from ssl_views.hub_repository import BRANCH, LocalFile, Publication, open_repository

__all__ = ["PublishError", "Published", "prepare_repository", "publish_encoder"]

_TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.))*(?<!\.lock)(?<!\.)")
_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Published:
    """What is on the Hub now, or would be.

    Attributes:
        repo_id: "user/name".
        url: of the repository.
        commit: that has exactly these files; None in a dry run.
        tag: that points to the commit, if one was asked for.
        files: SHA-256 by name.
        left_out: what else lies in the folder; it was not published.
        dry_run: nothing was sent.
    """

    repo_id: str
    url: str
    commit: str | None
    tag: str | None
    files: dict[str, str]
    left_out: tuple[str, ...]
    dry_run: bool


def publish_encoder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    tag: str | None = None,
    message: str = "Publish the encoder",
    dry_run: bool = False,
    check: bool = True,
    retries: int = 3,
    timeout_seconds: float = 60,
    api: HfApi | None = None,
    on_event: Callable[[str], None] | None = None,
) -> Published:
    """Publish a checked encoder folder in one commit, and verify it by hash.

    Files of an earlier encoder that this one lacks are deleted; other files of the repository stay.
    Publishing the same files again makes no commit, so repeating a command is safe.

    Args:
        folder: of `export_encoder`; only the files of its layout are published.
        repo_id: "user/name", or a name among your own repositories; made if it does not exist.
        private: make it private; an existing one must be so already.
        tag: name for this commit, such as "v1"; must be new. It is made last, after verification.
        message: of the commit.
        dry_run: check everything that needs no network, and send nothing.
        check: check the folder first. False is for one that `export_encoder` has just written and
            checked, beside a training: a check builds a model, which draws random numbers.
        retries: further attempts after failures that may pass.
        timeout_seconds: how long the Hub may be silent.
        api: of huggingface_hub; by default one with your login.
        on_event: is told of retries and of what else is in the repository; a warning is logged by
            default.

    Raises:
        ValueError: if the folder holds no encoder (`EncoderError`), or an argument is wrong.
        PublishError: if it was not published, or could not be verified; it says which.
    """
    _check_names(repo_id, tag)
    if not message.strip():
        raise ValueError("message must say something; got an empty one. Leave it out.")
    calls, api = HubCalls(retries, timeout_seconds, on_event), api or HfApi()
    folder = Path(folder)
    if check:
        check_encoder(folder)
    files = {
        name: LocalFile.read(folder / name) for name in ENCODER_FILES if (folder / name).is_file()
    }
    others = [path for path in sorted(folder.iterdir()) if path.name not in files]
    left_out = tuple(f"{path.name}/" if path.is_dir() else path.name for path in others)
    commit = None
    if not dry_run:
        publication = Publication(api, calls, open_repository(api, calls, repo_id, private))
        repo_id = publication.repo_id
        commit = publication.publish(files, message, tag)
    return Published(
        repo_id=repo_id,
        url=f"{api.endpoint}/{repo_id}",
        commit=commit,
        tag=tag,
        files={name: file.sha256 for name, file in files.items()},
        left_out=left_out,
        dry_run=dry_run,
    )


def prepare_repository(repo_id: str, *, private: bool = False, api: HfApi | None = None) -> str:
    """Check the login and make the repository if it does not exist, before a long training.

    Args:
        repo_id: "user/name", or a name among your own repositories.
        private: make it private; an existing one must be so already.
        api: of huggingface_hub; by default one with your login.

    Returns:
        The full name, "user/name".

    Raises:
        ValueError: if the name is none.
        PublishError: if there is no login, or the repository cannot be used.
    """
    _check_names(repo_id, None)
    return open_repository(api or HfApi(), HubCalls(3, 60, None), repo_id, private)


def _check_names(repo_id: str, tag: str | None) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"repo_id must be the name of a repository on the Hub; got {repo_id!r} ({error}). "
            'Give "user/name".'
        ) from error
    if tag is not None and (_TAG.fullmatch(tag) is None or _SHA.fullmatch(tag) or tag == BRANCH):
        raise ValueError(
            "tag must be a name for git: letters, digits, dots, _ and -, neither a branch nor a "
            f'commit; got {tag!r}. Choose another, such as "v1".'
        )
