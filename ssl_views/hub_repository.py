"""One repository on the Hub: opening it, and the steps of a publication."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from ssl_views.encoder_folder import ENCODER_FILES
from ssl_views.hub_calls import HubCalls, PublishError

BRANCH = "main"
_OF_THE_HUB = (".gitattributes",)
# Other loaders may prefer or run these beside model.safetensors.
_RISKY = re.compile(
    r"(?:.*\.(?:py|bin|pt|pth|ckpt|pkl|pickle|joblib|h5|msgpack|npy|npz|so)"
    r"|model\.safetensors\.index\.json|adapter_config\.json|(?:pre)?processor_config\.json)",
    flags=re.IGNORECASE,
)
_FEW = 1  # further attempts where the library itself makes every request up to six times


@dataclass(frozen=True)
class LocalFile:
    """A file to publish, with the names that git and LFS have for its content."""

    path: Path
    size: int
    sha256: str
    blob_id: str

    @classmethod
    def read(cls, path: Path) -> "LocalFile":
        """Read a file once for both hashes."""
        size = path.stat().st_size
        sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
                blob.update(block)
        return cls(path, size, sha256.hexdigest(), blob.hexdigest())

    def equals(self, stored: Any) -> bool:
        """Return whether a `RepoFile` has this content."""
        if stored.lfs is not None:
            return bool(stored.lfs.sha256 == self.sha256)
        return bool(stored.blob_id == self.blob_id)


def open_repository(api: HfApi, calls: HubCalls, repo_id: str, private: bool) -> str:
    """Make sure of the login, the repository and its visibility; return its full name."""
    user = calls("log in", api.whoami)["name"]
    repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"

    def look() -> Any:
        return api.repo_info(repo_id, timeout=calls.timeout_seconds)

    def look_if_there() -> Any:
        try:
            return look()
        except HfHubHTTPError as error:
            if error.response.status_code == 404:
                return None
            raise

    info = calls(f"look at {repo_id}", look_if_there)
    if info is None:
        calls(
            f"create {repo_id}",
            lambda: api.create_repo(repo_id, private=private or None, exist_ok=True),
        )
        calls.state = f"{repo_id} was made, but nothing was published."
        info = calls(f"look at {repo_id}", look)
    if private and not info.private:
        raise PublishError(
            f"{info.id} must be private, as asked; it is public. Nothing was published. Make it "
            "private in its settings on the Hub, or publish without private."
        )
    return str(info.id)


@dataclass
class Publication:
    """The steps on an existing repository."""

    api: HfApi
    calls: HubCalls
    repo_id: str

    def publish(self, files: dict[str, LocalFile], message: str, tag: str | None) -> str:
        """Commit, verify and tag; return the commit."""
        refs = self.calls("list branches and tags", lambda: self.api.list_repo_refs(self.repo_id))
        heads = {ref.name: str(ref.target_commit) for ref in refs.branches}
        if tag in heads:
            raise PublishError(
                f"tag must be new; {self.repo_id} has a branch {tag}. Nothing was published. "
                "Choose another tag."
            )
        if tag is not None and tag in {ref.name for ref in refs.tags}:
            return self._published_before(files, tag)
        head = heads.get(BRANCH)
        stored = self._stored(head) if head else {}
        if head:
            self._tell_of_others(head)
        commit = head if head and not _differences(files, stored) else None
        if commit is None:
            commit = self._commit(files, stored, head, message)
            self.calls.state = f"The commit {commit} is there, but not verified and not tagged."
            self._verify(files, commit)
        if tag is not None:
            self.calls.state = f"The commit {commit} is there and verified, but has no tag."
            self._make_tag(tag, commit)
        return commit

    def _stored(self, revision: str) -> dict[str, Any]:
        """Return the files of the layout at a revision, by name."""
        names = list(ENCODER_FILES)
        listed = self.calls(
            f"list the files of {self.repo_id}",
            lambda: self.api.get_paths_info(self.repo_id, names, revision=revision),
        )
        return {entry.path: entry for entry in listed if hasattr(entry, "blob_id")}

    def _info(self, what: str, revision: str) -> Any:
        # `repo_info` has a time limit of its own, none by default; `list_repo_tree` always none.
        seconds = self.calls.timeout_seconds
        return self.calls(
            what, lambda: self.api.repo_info(self.repo_id, revision=revision, timeout=seconds)
        )

    def _head(self) -> str | None:
        refs = self.calls("list branches and tags", lambda: self.api.list_repo_refs(self.repo_id))
        return next((str(r.target_commit) for r in refs.branches if r.name == BRANCH), None)

    def _tagged(self, tag: str) -> str:
        return str(self._info(f"look at the tag {tag}", tag).sha)

    def _published_before(self, files: dict[str, LocalFile], tag: str) -> str:
        """Accept an existing tag if the same files are under it: the command was repeated."""
        commit = self._tagged(tag)
        if different := _differences(files, self._stored(commit)):
            raise PublishError(
                f"tag must be new; {self.repo_id} has a tag {tag} with other files "
                f"({', '.join(different)}). Nothing was published. Choose another tag."
            )
        return commit

    def _tell_of_others(self, head: str) -> None:
        siblings = self._info(f"list all files of {self.repo_id}", head).siblings or ()
        paths = [sibling.rfilename for sibling in siblings]
        others = [path for path in paths if path not in (*ENCODER_FILES, *_OF_THE_HUB)]
        risky = [path for path in others if _RISKY.fullmatch(path.rpartition("/")[2])]
        if risky:
            self.calls.tell(
                f"{self.repo_id} also holds {', '.join(risky)}: loaders may prefer or run such "
                "files. They are not touched; delete them on the Hub unless you trust and need them"
            )
        if harmless := [path for path in others if path not in risky]:
            self.calls.tell(f"{self.repo_id} keeps its other files: {', '.join(harmless)}")

    def _commit(
        self, files: dict[str, LocalFile], stored: dict[str, Any], head: str | None, message: str
    ) -> str:
        """Upload what differs, then make one commit of it on top of `head`."""
        changed = _differences(files, stored)
        adds = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=files[name].path)
            for name in changed
            if name in files
        ]
        stale = [CommitOperationDelete(path_in_repo=name) for name in changed if name not in files]
        self.calls(
            f"upload the files to {self.repo_id}",
            lambda: self.api.preupload_lfs_files(self.repo_id, adds, free_memory=False),
            retries=min(self.calls.retries, _FEW),
        )

        def commit() -> str:
            made = self.api.create_commit(
                self.repo_id, [*adds, *stale], commit_message=message, parent_commit=head
            )
            return str(made.oid)

        def arrived() -> str | None:
            before, self.calls.state = self.calls.state, "Whether the commit arrived is not known."
            now = self._head()
            if now is not None and now != head and not _differences(files, self._stored(now)):
                return now
            self.calls.state = before
            return None

        return self.calls(f"commit to {self.repo_id}", commit, done=arrived)

    def _verify(self, files: dict[str, LocalFile], commit: str) -> None:
        if different := _differences(files, self._stored(commit)):
            raise PublishError(
                f"{', '.join(different)} at commit {commit} of {self.repo_id} must be what the "
                "folder held, by hash; it is not. The commit is there, but not tagged: do not use "
                "it. Run the same command again; it sends these files anew."
            )

    def _make_tag(self, tag: str, commit: str) -> None:
        def tagged() -> bool | None:
            refs = self.calls(
                "list branches and tags", lambda: self.api.list_repo_refs(self.repo_id)
            )
            return True if tag in {ref.name for ref in refs.tags} else None

        def make() -> bool:
            self.api.create_tag(self.repo_id, tag=tag, revision=commit)
            return True

        self.calls(f"make the tag {tag}", make, done=tagged)
        self.calls.state = f"The commit {commit} is there and verified; the tag {tag} is not."
        if (found := self._tagged(tag)) != commit:
            raise PublishError(
                f"the tag {tag} of {self.repo_id} must point to {commit}; it points to {found}, so "
                "someone else has made it. The commit is there and verified. Choose another tag."
            )


def _differences(files: dict[str, LocalFile], stored: dict[str, Any]) -> list[str]:
    """Return the names of the layout that are not the same in the folder and on the Hub."""
    return [
        name
        for name in ENCODER_FILES
        if (name in files or name in stored)
        and not (name in files and name in stored and files[name].equals(stored[name]))
    ]
