"""A Hub on this machine: the part of its HTTP interface that publishing and loading models use.

The client is the real `huggingface_hub`; only the server stands in. What it does not know is
answered with 404 and kept in `unknown`, so that a test can see that nothing was guessed.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".png")
_ID, _REV = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<rev>[^/]+)"
_API = rf"/api/models/{_ID}"
_ROUTES = {
    "agents": r"GET /api/agent-harnesses",  # for the user agent, once a day
    "whoami": r"GET /api/whoami-v2",
    "create": r"POST /api/repos/create",
    "validate_yaml": r"POST /api/validate-yaml",
    "info": rf"GET {_API}(/revision/{_REV})?",
    "refs": rf"GET {_API}/refs",
    "tree": rf"GET {_API}/tree/{_REV}(/(?P<path>.+))?",
    "paths_info": rf"POST {_API}/paths-info/{_REV}",
    "preupload": rf"POST {_API}/preupload/{_REV}",
    "batch": rf"POST /{_ID}\.git/info/lfs/objects/batch",
    "put": r"PUT /lfs-storage/(?P<oid>[0-9a-f]{64})",
    "verify": rf"POST /{_ID}\.git/info/lfs/verify",
    "commit": rf"POST {_API}/commit/{_REV}",
    "tag": rf"POST {_API}/tag/{_REV}",
    "resolve": rf"(GET|HEAD) /{_ID}/resolve/{_REV}/(?P<path>.+)",
}
_READING = {
    "agents",
    "info",
    "refs",
    "tree",
    "paths_info",
    "resolve",
}  # open to all on public repositories
_SIGNATURE = "X-Amz-Signature=stand-in"


class Answer(NamedTuple):
    content: Any = None
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012


class Refused(Exception):
    """An answer with an error, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        if code:
            headers["X-Error-Code"] = code
        headers["X-Error-Message"] = message
        self.answer = Answer({"error": message}, status, headers)


class StoredFile(NamedTuple):
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
            f"size {len(self.content)}\n"
        ).encode()
        stored = pointer if self.lfs else self.content
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(pointer)}
        return {
            "type": "file",
            "path": path,
            "size": len(self.content),
            "oid": hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest(),
            **({"lfs": lfs} if self.lfs else {}),
        }


@dataclass
class Repository:
    """Every commit keeps its own files."""

    private: bool
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, files: dict[str, StoredFile], message: str, branch: str = "main") -> str:
        named = sorted((path, file.sha256) for path, file in files.items())
        facts = json.dumps([self.branches.get(branch), len(self.commits), message, named])
        sha = hashlib.sha1(facts.encode()).hexdigest()
        self.commits[sha], self.messages[sha], self.branches[branch] = files, message, sha
        return sha

    def find(self, revision: str) -> str:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


@dataclass
class Fault:
    pattern: str
    how: int | str | Callable[[], object]
    times: int | None
    headers: dict[str, str]


class HubStandIn:
    """A Hub for one user; use it as a context manager.

    Attributes:
        requests: method and path of every request, in order.
        unknown: those of them that no route knows.
        repositories: by id; their commits, branches and tags can be looked at.
        user: whose token `token` is.
    """

    user, token = "tester", "hf_TokenOfTheTester"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.unknown: list[tuple[str, str]] = []
        self._objects: dict[str, bytes] = {}
        self._faults: list[Fault] = []
        self._lock, self._closing = threading.RLock(), threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Any) -> dict[str, str]:
        """Return the environment of a process that is to take this for the Hub."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": f"{home}/hub",
            "HF_TOKEN": self.token,
            "HF_TOKEN_PATH": f"{home}/token",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision, without the .gitattributes that every repository has."""
        repository = self.repositories[repo_id]
        files = repository.commits[repository.find(revision)]
        return {path: file.content for path, file in files.items() if path != ".gitattributes"}

    def head(self, repo_id: str, branch: str = "main") -> str:
        return self.repositories[repo_id].branches[branch]

    def private(self, repo_id: str) -> bool:
        return self.repositories[repo_id].private

    def add_repository(
        self, repo_id: str, files: dict[str, bytes] | None = None, *, private: bool = False
    ) -> str:
        """Make a repository, or a further commit in it, as if someone else had; return its sha."""
        repository = self.repositories.get(repo_id)
        if repository is None:
            repository = self.repositories[repo_id] = Repository(private)
            attributes = "".join(
                f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES
            )
            repository.add({".gitattributes": StoredFile(attributes.encode(), False)}, "initial")
        added = {p: StoredFile(c, p.endswith(LFS_SUFFIXES)) for p, c in (files or {}).items()}
        if added:
            repository.add({**repository.commits[repository.find("main")], **added}, "by hand")
        return repository.find("main")

    def fail(
        self,
        pattern: str,
        how: int | str | Callable[[], object],
        times: int | None = None,
        **headers: str,
    ) -> None:
        """Break requests from now on.

        Args:
            pattern: searched for in "METHOD /path".
            how: an HTTP status; "reset": the connection is; "slow": there is no answer; "cut": the
                connection ends within the body; "lost": all is done, but the answer does not
                arrive; "corrupt": all is done, but the files of the commit are other ones; a
                function is called first, then all is done.
            times: how many requests; all by default.
            headers: of the answer, with _ for -.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._faults.append(Fault(pattern, how, times, named))

    def heal(self) -> None:
        """Break no more requests."""
        self._faults.clear()

    def fault_for(self, request: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times != 0 and re.search(fault.pattern, request):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def wait(self) -> None:
        self._closing.wait(60)

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        url = urlsplit(target)
        with self._lock:
            for name, pattern in _ROUTES.items():
                if match := re.fullmatch(pattern, f"{method} {url.path}"):
                    words = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                    try:
                        self._authorize(name, words.get("repo"), headers.get("Authorization"), url)
                        return getattr(self, f"_{name}")(body=body, **words)
                    except Refused as refused:
                        return refused.answer
            self.unknown.append((method, url.path))
            return Refused(404, "Sorry, we can't find the page you are looking for.").answer

    def _authorize(self, name: str, repo_id: str | None, given: str | None, url: Any) -> None:
        if name == "put":  # the storage has signed addresses, and takes no token beside them
            if given or url.query != _SIGNATURE:
                raise Refused(403, "SignatureDoesNotMatch")
            return
        if given is not None and given != f"Bearer {self.token}":
            raise Refused(401, "Invalid credentials in Authorization header")
        repository = self.repositories.get(repo_id or "")
        hidden = repo_id is not None and (repository is None or repository.private)
        if given is None and (hidden or name not in _READING):
            raise Refused(401, "Invalid username or password.", "RepoNotFound" if hidden else None)
        mine = repo_id is None or repo_id.startswith(f"{self.user}/")
        if (repository is None and repo_id is not None) or (hidden and not mine):
            raise Refused(404, "Repository not found", "RepoNotFound")
        if not mine and name not in _READING:
            raise Refused(
                403, "You don't have the required permissions to write to this repository"
            )

    def _agents(self, body: bytes) -> Answer:
        return Answer({"standardEnvVars": [], "harnesses": {}})

    def _whoami(self, body: bytes) -> Answer:
        access = {"accessToken": {"role": "write", "displayName": "stand-in"}}
        return Answer({"type": "user", "name": self.user, "orgs": [], "auth": access})

    def _create(self, body: bytes) -> Answer:
        wanted = json.loads(body)
        repo_id = f"{wanted.get('organization') or self.user}/{wanted['name']}"
        if not repo_id.startswith(f"{self.user}/"):
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        content = {"url": f"{self.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.repositories:
            return Answer({"error": "You already created this model repo", **content}, 409)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.add_repository(repo_id, private=private)
        return Answer(content)

    def _validate_yaml(self, body: bytes) -> Answer:
        block = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], flags=re.DOTALL)
        try:
            metadata = yaml.safe_load(block[1]) if block else None
        except yaml.YAMLError as error:
            return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return Answer({"errors": [], "warnings": warnings})

    def _info(self, body: bytes, repo: str, rev: str = "main") -> Answer:
        repository = self.repositories[repo]
        sha = repository.find(rev)
        return Answer(
            {
                "_id": hashlib.md5(repo.encode()).hexdigest(),
                "id": repo,
                "modelId": repo,
                "author": repo.split("/")[0],
                "sha": sha,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in sorted(repository.commits[sha])],
            }
        )

    def _refs(self, body: bytes, repo: str) -> Answer:
        def listed(refs: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha}
                for name, sha in refs.items()
            ]

        repository = self.repositories[repo]
        branches, tags = listed(repository.branches, "heads"), listed(repository.tags, "tags")
        return Answer({"branches": branches, "tags": tags, "converts": []})

    def _tree(self, body: bytes, repo: str, rev: str, path: str = "") -> Answer:
        """All files, as with recursive=True; folders are not listed."""
        repository = self.repositories[repo]
        files = repository.commits[repository.find(rev)]
        return Answer([files[p].entry(p) for p in sorted(files) if p.startswith(path)])

    def _paths_info(self, body: bytes, repo: str, rev: str) -> Answer:
        repository = self.repositories[repo]
        files = repository.commits[repository.find(rev)]
        wanted = parse_qs(body.decode())["paths"]
        return Answer([files[path].entry(path) for path in wanted if path in files])

    def _preupload(self, body: bytes, repo: str, rev: str) -> Answer:
        repository = self.repositories[repo]
        files = repository.commits[repository.find(rev)]
        answers = []
        for wanted in json.loads(body)["files"]:
            path = wanted["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            known = {"oid": files[path].entry(path)["oid"]} if path in files else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return Answer({"files": answers})

    def _batch(self, body: bytes, repo: str) -> Answer:
        objects = []
        for wanted in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.url}/lfs-storage/{wanted['oid']}?{_SIGNATURE}"},
                "verify": {"href": f"{self.url}/{repo}.git/info/lfs/verify"},
            }
            new = wanted["oid"] not in self._objects
            objects.append({**wanted, **({"actions": actions} if new else {})})
        return Answer({"transfer": "basic", "objects": objects})

    def _put(self, body: bytes, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "The content does not have the SHA-256 of its address")
        self._objects[oid] = body
        return Answer()

    def _verify(self, body: bytes, repo: str) -> Answer:
        wanted = json.loads(body)
        if len(self._objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(422, "The object is not there, or has another size")
        return Answer({})

    def _commit(self, body: bytes, repo: str, rev: str) -> Answer:
        repository = self.repositories[repo]
        if rev not in repository.branches:
            raise Refused(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repository.branches[rev]) != repository.branches[rev]:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[repository.branches[rev]])
        for line in lines[1:]:
            value = line["value"]
            path = value["path"]
            if line["key"] == "file":
                files[path] = StoredFile(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self._objects:
                    raise Refused(400, f"The LFS object {value['oid']} was not uploaded")
                files[path] = StoredFile(self._objects[value["oid"]], True)
            elif line["key"] == "deletedFile":
                if files.pop(path, None) is None:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise Refused(400, f"unknown operation {line['key']}")
        sha = repository.add(files, header["summary"], rev)
        return Answer({"success": True, "commitOid": sha, "commitUrl": f"{repo}/commit/{sha}"})

    def spoil(self) -> None:
        """Flip a bit in every file of the heads of all repositories."""
        for repository in self.repositories.values():
            files = repository.commits[repository.find("main")]
            for path, (content, lfs) in files.items():
                files[path] = StoredFile(bytes([content[0] ^ 1]) + content[1:], lfs)

    def _tag(self, body: bytes, repo: str, rev: str) -> Answer:
        repository, tag = self.repositories[repo], json.loads(body)["tag"]
        if tag in repository.tags:
            raise Refused(409, "Tag reference exists already")
        repository.tags[tag] = repository.find(rev)
        return Answer({})

    def _resolve(self, body: bytes, repo: str, rev: str, path: str) -> Answer:
        repository = self.repositories[repo]
        sha = repository.find(rev)
        file = repository.commits[sha].get(path)
        if file is None:
            raise Refused(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.entry(path)["oid"]}"'}
        if file.lfs:
            linked = {"X-Linked-Etag": file.sha256, "X-Linked-Size": str(len(file.content))}
            headers.update(linked)
        return Answer(file.content, 200, headers)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer takes 40 ms
    hub: HubStandIn

    def _handle(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        fault = self.hub.fault_for(f"{self.command} {path}")
        how = fault.how if fault else None
        if how == "cut" and {"Content-Length", "Transfer-Encoding"} & set(self.headers):
            self.rfile.read(1)
        body = b"" if how in ("cut", "reset") else self._body()
        if how == "slow":
            self.hub.wait()
        if how in ("cut", "reset", "slow"):
            return self._reset()
        if fault is not None and isinstance(how, int):
            words = f"the stand-in answers {how}"
            if how < 500:
                return self._send(Answer({"error": words}, how, fault.headers))
            page = f"<html>{words}</html>".encode()  # as of a gateway
            return self._send(Answer(page, how, fault.headers), "text/html")
        if callable(how):
            how()
        answer = self.hub.answer(self.command, self.path, self.headers, body)
        if how == "lost":
            return self._reset()
        if how == "corrupt":
            self.hub.spoil()
        return self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, answer: Answer, kind: str | None = None) -> None:
        content = answer.content
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(answer.status)
        kind = kind or ("application/octet-stream" if data is content else "application/json")
        fixed = {"Content-Type": kind, "Content-Length": str(len(data))}
        for name, value in {**fixed, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """End the connection at once, with RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client has gone

    def log_message(self, *_: Any) -> None:
        """Write nothing."""
