"""A small Hugging Face Hub: its HTTP protocol over repositories in memory, for the real clients.

Models and data sets, commits and LFS; no Xet, pull requests, Spaces or search. A client that has `hf_xet` uploads
with it whatever the server says, so `Hub.environment` turns Xet off; downloads are plain because nothing offers Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlencode

import huggingface_hub
import pytest
from hub_faults import FaultyServer, Refusal, Reply, Request, say, serve

LFS_SUFFIXES = (".arrow", ".bin", ".gguf", ".gz", ".jpg", ".npy", ".npz", ".onnx", ".parquet", ".png", ".safetensors")
LFS_SIZE = 10 * 2**20  # more than that is never a regular file
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file as an LFS object; `sample` is its beginning."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE or b"\0" in sample)


def key(kind: str, id: str) -> str:
    """A repository in URLs, and in `Hub.repos`."""
    return id if kind == "models" else f"{kind}/{id}"


@dataclass(frozen=True)
class File:
    """A file, and the commit that brought it."""

    content: bytes
    lfs: bool
    commit: Commit

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob(self) -> bytes:
        """What git keeps: the content or a pointer to it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return pointer.encode() if self.lfs else self.content

    @cached_property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0%b" % (len(self.blob), self.blob)).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def pointer(self, name: str) -> dict[str, Any]:
        """What a listing says of an LFS file; `name` is that of its checksum there."""
        size = {"size": len(self.content), "pointerSize": len(self.blob)}
        return {"lfs": {name: self.sha256, **size}} if self.lfs else {}

    def entry(self, path: str) -> dict[str, Any]:
        """The file in a listing of the tree."""
        return {"type": "file", "path": path, "oid": self.oid, "size": len(self.content), **self.pointer("oid")}

    def sibling(self, path: str, blobs: bool) -> dict[str, Any]:
        """The file in the information about its repository."""
        known = {"size": len(self.content), "blobId": self.oid, **self.pointer("sha256")}
        return {"rfilename": path, **(known if blobs else {})}


@dataclass
class Commit:
    """A state of a repository that never changes again."""

    sha: str
    title: str
    files: dict[str, File]
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.000Z")

    def tree(self, expand: bool) -> dict[str, dict[str, Any]]:
        """All files and folders by path."""
        found: dict[str, dict[str, Any]] = {}
        for path, file in self.files.items():
            last = {"id": file.commit.sha, "title": file.commit.title, "date": file.commit.date}
            more = {"lastCommit": last} if expand else {}
            found[path] = file.entry(path) | more
            for folder in map(str, Path(path).parents[:-1]):
                oid = hashlib.sha1(f"{self.sha} {folder}".encode()).hexdigest()
                found[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0} | more
        return dict(sorted(found.items()))


class Repo:
    """A repository: `commits` by sha, `branches` and `tags` by name."""

    def __init__(self, kind: str, id: str, private: bool, gated: bool, objects: dict[str, bytes]) -> None:
        self.id, self.key, self.private, self.gated = id, key(kind, id), private, gated
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._objects = objects

    def at(self, revision: str = "main") -> Commit:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: file.content for path, file in self.at(revision).files.items()}

    def commit(self, changes: Mapping[str, bytes | None], title: str = "Change", branch: str = "main") -> str:
        """The sha of a new commit with files changed or (None) deleted."""
        files = dict(self.at(branch).files) if self.commits else {}
        hashes = [(path, content and hashlib.sha1(content).digest()) for path, content in changes.items()]
        commit = Commit(hashlib.sha1(f"{self.key} {self.branches} {hashes}".encode()).hexdigest(), title, files)
        for path, content in changes.items():
            if content is None:
                del files[path]
                continue
            file = files[path] = File(content, is_lfs(path, len(content), content[:512]), commit)
            if file.lfs:
                self._objects[file.sha256] = content
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit.sha


class Account(NamedTuple):
    """Whom a token stands for: the owner of the namespace `name`."""

    name: str
    role: Literal["read", "write"]

    def owns(self, id: str) -> bool:
        return id.split("/")[0] == self.name


ROUTES: list[tuple[list[str], re.Pattern[str], bool, Callable[..., Reply]]] = []
ID = r"(?P<id>[\w.-]+?(?:/[\w.-]+?)??)"
API = rf"/api/(?P<kind>models|datasets)/{ID}"
WEB = rf"(?:/(?P<kind>datasets))?/{ID}"
STORAGE = ("/cdn/", "/lfs/")  # another host, where a token must not go
REVISION = r"(?P<revision>[^/]+)"


def route(methods: str, pattern: str, write: bool = False) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    """Registers what answers `pattern`; where that names a repository, the caller's rights to it are checked."""

    def register(function: Callable[..., Reply]) -> Callable[..., Reply]:
        ROUTES.append((methods.split(), re.compile(pattern), write, function))
        return function

    return register


class Hub(FaultyServer):
    """The server. A token reads and writes what is in the namespace of its account, and reads what is public.

    Attributes:
        url: where it listens, for HF_ENDPOINT.
        repos: by id, that of a data set with "datasets/" before it.
        tokens: accounts by token; add others at will.
        requests: what was asked, in order.
        page: how many entries of a tree one answer holds.
    """

    def __init__(self, token: str = "hf_test", user: str = "user", page: int = 1000) -> None:
        super().__init__()
        self.token, self.page = token, page
        self.tokens = {token: Account(user, "write")}
        self.repos: dict[str, Repo] = {}
        self._objects: dict[str, bytes] = {}  # the LFS storage, by sha256
        self._signature = secrets.token_hex(8)
        self._storage = self.url.replace("127.0.0.1", "localhost")

    def add(
        self, kind: str, id: str, files: Mapping[str, bytes], *, private: bool = False, gated: bool = False
    ) -> Repo:
        """A new repository with `files` in its first commit; `kind` is "models" or "datasets"."""
        repo = Repo(kind, id, private, gated, self._objects)
        repo.commit(files, "initial commit")
        self.repos[repo.key] = repo
        return repo

    def environment(self, home: Path, *, token: bool | str = False, **more: str) -> dict[str, str]:
        """Variables of a process whose clients see only this Hub and keep what they fetch in `home`.

        Args:
            token: True for this Hub's own, or another one; without it the process is not logged in.
            more: further variables.
        """
        foreign = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and not k.lower().endswith("_proxy")}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
        login = {"HF_TOKEN": self.token if token is True else token} if token else {}
        return {**kept, **own, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **login, **more}

    def serve_this_process(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Let the clients of this process see only this Hub and keep what they fetch in `cache`, logged out."""
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)

    def answer(self, request: Request) -> Reply:
        account = self._account(request)
        if request.path.startswith(STORAGE) and request.query.get("Signature") != [self._signature]:
            raise Refusal(403, None, "The signature is another")
        for methods, pattern, write, function in ROUTES:
            if request.method in methods and (found := pattern.fullmatch(request.raw_path)):
                parts: dict[str, Any] = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
                if "id" in parts:
                    where = key(parts.pop("kind", "models"), parts.pop("id"))
                    parts["repo"] = self._repo(account, where, write)
                return function(self, request, **parts)
        raise Refusal(404, None, f"Cannot {request.method} {request.path}")

    def _account(self, request: Request) -> Account | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return self.tokens.get(token)

    def _repo(self, account: Account | None, where: str, write: bool) -> Repo:
        """A repository that the caller may read, or write; a private one of others does not exist."""
        repo = self.repos.get(where)
        mine = account if repo and account and account.owns(repo.id) else None
        if repo is None or (repo.private and not mine):
            raise Refusal(404 if account else 401, "RepoNotFound", "Repository not found")
        if write and account is None:
            # The real Hub sends no code; the client takes a 401 over https for RepositoryNotFoundError, this is http.
            raise Refusal(401, "RepoNotFound", "Invalid username or password.")
        if write and not (mine and mine.role == "write"):
            raise Refusal(403, None, "Forbidden: you must use a write token to upload to a repository.")
        return repo

    @route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request) -> Reply:
        if (account := self._account(request)) is None:
            raise Refusal(401, None, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": account.role}}
        return say({"type": "user", "id": account.name, "name": account.name, "orgs": [], "auth": token})

    @route("POST", "/api/validate-yaml")
    def _validate(self, request: Request) -> Reply:
        return say({"errors": [], "warnings": []})

    @route("POST", "/api/repos/create")
    def _create(self, request: Request) -> Reply:
        wanted, account = json.loads(request.body), self._account(request)
        if account is None:
            raise Refusal(401, None, "Invalid username or password.")
        kind, id = wanted.get("type", "model") + "s", f"{wanted.get('organization') or account.name}/{wanted['name']}"
        if kind not in ("models", "datasets"):
            raise Refusal(400, None, f"There are no {kind} here")
        if not account.owns(id) or account.role != "write":
            raise Refusal(403, None, f"You don't have the rights to create a {kind[:-1]} under this namespace")
        if key(kind, id) in self.repos:
            url = f"{self.url}/{key(kind, id)}"
            raise Refusal(409, None, f"You already created this {kind[:-1]} repo", url=url)
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        repo = self.add(kind, id, {".gitattributes": GITATTRIBUTES}, private=private)
        return say({"url": f"{self.url}/{repo.key}", "name": id})

    @route("GET", f"{API}/refs")
    def _refs(self, request: Request, repo: Repo) -> Reply:
        kinds = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags)}
        found = {
            kind: [{"name": name, "ref": f"refs/{at}/{name}", "targetCommit": sha} for name, sha in refs.items()]
            for kind, (at, refs) in kinds.items()
        }
        return say({**found, "converts": [], "pullRequests": []})

    @route("GET", f"{API}(?:/revision/{REVISION})?")
    def _info(self, request: Request, repo: Repo, revision: str = "main") -> Reply:
        commit = repo.at(revision)
        names = {"_id": repo.id, "id": repo.id, "modelId": repo.id, "author": repo.id.split("/")[0], "sha": commit.sha}
        state = {"private": repo.private, "gated": "auto" if repo.gated else False, "disabled": False}
        rest = {"lastModified": commit.date, "createdAt": commit.date, "downloads": 0, "likes": 0, "tags": []}
        siblings = [file.sibling(path, request.flag("blobs")) for path, file in sorted(commit.files.items())]
        return say({**names, **state, **rest, "siblings": siblings})

    @route("GET", f"{API}/tree/{REVISION}(?:/(?P<path>.+))?")
    def _tree(self, request: Request, repo: Repo, revision: str, path: str = "") -> Reply:
        below = f"{path}/" if path else ""
        tree, deep = repo.at(revision).tree(request.flag("expand")), request.flag("recursive")
        found = [at for at in tree if at.startswith(below) and (deep or "/" not in at.removeprefix(below))]
        if path and not found:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {revision}")
        start = int(request.query.get("cursor", ["0"])[0])
        end = start + self.page
        query = urlencode({**request.query, "cursor": end}, doseq=True)
        more = {"Link": f'<{self.url}{request.raw_path}?{query}>; rel="next"'} if end < len(found) else {}
        return say([tree[at] for at in found[start:end]], **more)

    @route("POST", f"{API}/paths-info/{REVISION}")
    def _paths(self, request: Request, repo: Repo, revision: str) -> Reply:
        form = parse_qs(request.body.decode())
        tree = repo.at(revision).tree(form.get("expand", [""])[0].lower() == "true")
        return say([tree[path] for path in form.get("paths", []) if path in tree])

    @route("POST", f"{API}/preupload/{REVISION}", write=True)
    def _preupload(self, request: Request, repo: Repo, revision: str) -> Reply:
        here = repo.at(revision).files
        files = []
        for file in json.loads(request.body)["files"]:
            mode = "lfs" if is_lfs(file["path"], file["size"], base64.b64decode(file["sample"])) else "regular"
            known = {"oid": here[file["path"]].etag} if file["path"] in here else {}
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return say({"files": files})

    @route("POST", rf"{WEB}\.git/info/lfs/objects/batch", write=True)
    def _batch(self, request: Request, repo: Repo) -> Reply:
        verify = {"href": f"{self.url}/{repo.key}.git/info/lfs/verify", "header": {}}
        objects = []
        for wanted in json.loads(request.body)["objects"]:
            upload = {"href": f"{self._storage}/lfs/{wanted['oid']}?Signature={self._signature}", "header": {}}
            known = wanted["oid"] in self._objects
            objects.append(wanted | ({} if known else {"actions": {"upload": upload, "verify": verify}}))
        return say({"transfer": "basic", "objects": objects})

    @route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def _upload(self, request: Request, oid: str) -> Reply:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, None, "The checksum is another")
        self._objects[oid] = request.body
        return Reply(200)

    @route("POST", rf"{WEB}\.git/info/lfs/verify", write=True)
    def _verify(self, request: Request, repo: Repo) -> Reply:
        wanted = json.loads(request.body)
        if len(self._objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, None, "The object was not uploaded")
        return say({})

    @route("POST", f"{API}/commit/{REVISION}", write=True)
    def _commit(self, request: Request, repo: Repo, revision: str) -> Reply:
        if request.flag("create_pr") or revision not in repo.branches:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        here, title = repo.at(revision), ""
        changes: dict[str, bytes | None] = {}
        for line in request.body.splitlines():
            kind, value = json.loads(line).values()
            match kind:
                case "header":
                    title = value["summary"]
                    if value.get("parentCommit", here.sha) != here.sha:
                        raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
                case "file":
                    changes[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self._objects:
                        raise Refusal(400, None, f"The LFS object {value['oid']} was not uploaded")
                    changes[value["path"]] = self._objects[value["oid"]]
                case "deletedFile" | "deletedFolder":
                    below = value["path"].rstrip("/") + "/"
                    gone = [path for path in here.files if path == value["path"] or path.startswith(below)]
                    if not gone:
                        raise Refusal(404, "EntryNotFound", f"{value['path']} does not exist on {revision}")
                    changes |= dict.fromkeys(gone)
                case _:
                    raise Refusal(400, None, f"unknown operation {kind}")
        sha = repo.commit(changes, title, revision)
        return say({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo.key}/commit/{sha}"})

    @route("GET HEAD", f"{WEB}/resolve/{REVISION}/(?P<path>.+)")
    def _resolve(self, request: Request, repo: Repo, revision: str, path: str) -> Reply:
        account = self._account(request)
        if repo.gated and not (account and account.owns(repo.id)):
            raise Refusal(403 if account else 401, "GatedRepo", f"Access to {repo.id} is restricted")
        commit = repo.at(revision)
        at = {"X-Repo-Commit": commit.sha}
        if (file := commit.files.get(path)) is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", at)
        if not file.lfs:
            return serve(request, file.content, file.etag, at)
        place = quote(f"/cdn/{repo.key}/resolve/{commit.sha}/{path}")
        linked = {"X-Linked-Size": str(len(file.content)), "X-Linked-Etag": f'"{file.etag}"'}
        location = {"Location": f"{self._storage}{place}?Signature={self._signature}"}
        return Reply(302, b"Found", at | linked | location)

    @route("GET HEAD", f"/cdn/(?P<where>.+)/resolve/{REVISION}/(?P<path>.+)")
    def _cdn(self, request: Request, where: str, revision: str, path: str) -> Reply:
        file = self.repos[where].at(revision).files[path]
        return serve(request, file.content, file.etag, {})
