"""A local stand-in for the Hugging Face hub: as much of its HTTP interface as making a repository, committing files
to it (small ones in the commit, large ones by Git LFS), listing it and downloading it takes.

Of models there is one commit. Data sets have a history; their large files lie on another host, behind addresses that
are good for some requests, and are given by ranges.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import cache.places.hub
from cache.store import Store
from tests import cache_toy as toy

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"
ADDRESS = "hf://datasets/me/toy"
PAGE = 50
"""Entries of a list that come at once."""


@dataclass
class Answer:
    """What is sent back. error: the hub's own word for what is wrong."""

    status: int
    content: Any = b""
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class DataSet:
    """A data set's repository. commits: each with its files, oldest first. gated: nobody has been let in."""

    commits: dict[str, dict[str, bytes]]
    private: bool = False
    gated: bool = False

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """Of the newest commit."""
        return self.commits[self.head]

    def commit(self, files: dict[str, bytes]) -> str:
        """Make `files` the newest commit, and return its name."""
        name = hashlib.sha1(f"{self.head}{sorted(files)}{len(self.commits)}".encode()).hexdigest()
        self.commits[name] = files
        return name


@dataclass
class Hub:
    """What the stand-in holds.

    repositories: models, {id: {file: bytes}}; private: ids. data: data sets by id. uploads: large files by digest.
    counts: requests, by kind ("resolve", "cdn", "commit", ...). ranges: that were asked for. sent: digests of the large
    files that came. uses: how many requests an address of the other host is good for. faults: kind and number of a
    request -> the answer to give instead.
    """

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    data: dict[str, DataSet] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    uses: int = 1 << 60
    faults: Callable[[str, int], Answer | None] = lambda kind, number: None
    used: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)

    @property
    def elsewhere(self) -> str:
        """Where large files lie: another host, to whoever asks."""
        return self.address.replace("127.0.0.1", "localhost")

    def environment(self, home: Path) -> dict[str, str]:
        """What makes huggingface_hub talk to the stand-in, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "no_proxy": "127.0.0.1,localhost",
        }

    def fault(self, kind: str) -> Answer | None:
        """Count a request, and what is to go wrong with it."""
        number = self.counts[kind]
        self.counts[kind] += 1
        return self.faults(kind, number)


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the stand-in on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(_get(hub, self.path, self._token(), self.headers.get("Range")))

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            if "/paths-info/" in path:
                return self._answer(_paths_info(hub, path, body, self._token()))
            if self._token() != TOKEN:
                return self._answer(Answer(401, {"error": "Invalid username or password."}))
            return self._answer(_post(hub, path, body))

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            assert urlsplit(self.path).path == f"/upload/{hashlib.sha256(content).hexdigest()}"
            hub.sent.append(hashlib.sha256(content).hexdigest())
            hub.uploads[hub.sent[-1]] = content
            self._answer(Answer(200, {}))

        def _token(self) -> str | None:
            said = self.headers.get("Authorization")
            return said.removeprefix("Bearer ") if said else None

        def _answer(self, answer: Answer) -> None:
            raw = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
            headers = {
                "Content-Length": str(len(raw)),
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha256(raw).hexdigest()}"',
                **({"X-Error-Code": answer.error} if answer.error else {}),
                **answer.headers,
            }
            self.send_response(answer.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)
            if int(headers["Content-Length"]) > len(raw):
                self.close_connection = True  # a body that breaks off

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _get(hub: Hub, target: str, token: str | None, asked: str | None) -> Answer:
    path = unquote(urlsplit(target).path)
    if path.startswith("/cdn/"):
        return _elsewhere(hub, target, token, asked)
    if path.startswith(("/api/datasets/", "/datasets/")):
        return _get_data(hub, target, token, asked)
    for name, files in hub.repositories.items():
        if path.startswith(f"/api/models/{name}/tree/"):
            return Answer(200, [_entry(file, content) for file, content in files.items()])
        if path.startswith(f"/api/models/{name}"):
            listed = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
            private = name in hub.private
            return Answer(200, {"_id": "1", "id": name, "sha": COMMIT, "private": private, "siblings": listed})
        if path.startswith(f"/{name}/resolve/"):
            file = path.removeprefix(f"/{name}/resolve/").partition("/")[2]
            if file in files:
                return Answer(200, files[file])
    return Answer(404, {"error": "Repository not found"}, "RepoNotFound")


def _is_large(name: str) -> bool:
    return not name.endswith((".json", ".md", ".gitattributes", ".jsonl", ".txt"))


def _entry(name: str, content: bytes, of_data: bool = False) -> dict[str, Any]:
    """A file as the hub lists it."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    entry = {"type": "file", "path": name, "size": len(content), "oid": blob}
    return {**entry, "oid": "0" * 40, "lfs": large} if of_data and _is_large(name) else entry


def _data_at(hub: Hub, path: str, token: str | None) -> tuple[DataSet, str, str] | Answer:
    """What `/api/datasets/OWNER/NAME/WORD/REVISION/REST` (or `/datasets/...`) means: set, commit and rest."""
    parts = path.removeprefix("/api").split("/")
    name, revision, rest = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", "/".join(parts[6:])
    found = hub.data.get(name)
    if found is None or (found.private and token != TOKEN):
        return Answer(404 if token == TOKEN else 401, {"error": "Repository not found"}, "RepoNotFound")
    if found.gated and parts[4:5] in (["resolve"], ["tree"]):
        return Answer(403, {"error": f"Access to dataset {name} is restricted"}, "GatedRepo")
    commit = found.head if revision == "main" else revision
    if commit not in found.commits:
        return Answer(404, {"error": f"Invalid rev id: {revision}"}, "RevisionNotFound")
    return found, commit, rest


def _get_data(hub: Hub, target: str, token: str | None, asked: str | None) -> Answer:
    path, query = unquote(urlsplit(target).path), parse_qs(urlsplit(target).query)
    at = _data_at(hub, path, token)
    if isinstance(at, Answer):
        return at
    data, commit, rest = at
    files = data.commits[commit]
    if "/resolve/" in path:
        if fault := hub.fault("resolve"):
            return fault
        if rest not in files:
            return Answer(404, {"error": "Entry not found"}, "EntryNotFound")
        if not _is_large(rest):
            return _ranged(hub, files[rest], asked)
        digest = hashlib.sha256(files[rest]).hexdigest()
        hub.uploads[digest] = files[rest]
        signed = f"{hub.elsewhere}/cdn/{digest}?signature={hub.counts['resolve']}"
        return Answer(302, headers={"Location": signed, "X-Linked-Size": str(len(files[rest]))})
    if "/tree/" in path:
        hub.counts["tree"] += 1
        below = [name for name in sorted(files) if not rest or name.startswith(f"{rest.rstrip('/')}/")]
        if not below:
            return Answer(404, {"error": f"{rest} does not exist"}, "EntryNotFound")
        if query.get("recursive", ["False"])[0].lower() != "true":
            depth = len(rest.rstrip("/")) + 1 if rest else 0
            here = [_entry(name, files[name], True) for name in below if "/" not in name[depth:]]
            folders = sorted({name[: name.index("/", depth)] for name in below if "/" in name[depth:]})
            return Answer(200, here + [{"type": "directory", "path": folder, "oid": "1"} for folder in folders])
        first = int(query.get("cursor", ["0"])[0])
        more = {"Link": f'<{hub.address}{path}?recursive=True&cursor={first + PAGE}>; rel="next"'}
        page = [_entry(name, files[name], True) for name in below[first : first + PAGE]]
        return Answer(200, page, headers=more if first + PAGE < len(below) else {})
    hub.counts["info"] += 1
    return Answer(200, {"_id": "1", "id": "/".join(path.split("/")[3:5]), "sha": commit, "private": data.private})


def _ranged(hub: Hub, content: bytes, asked: str | None) -> Answer:
    if asked is None:
        return Answer(200, content)
    hub.ranges.append(asked)
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
    assert found, asked
    first, last = int(found[1]), min(int(found[2]), len(content) - 1)
    if first >= len(content):
        return Answer(416)
    return Answer(206, content[first : last + 1], headers={"Content-Range": f"bytes {first}-{last}/{len(content)}"})


def _elsewhere(hub: Hub, target: str, token: str | None, asked: str | None) -> Answer:
    """A large file on the other host, to which nobody's token may come."""
    assert token is None, "the token was sent to another host"
    if fault := hub.fault("cdn"):
        return fault
    hub.used[target] += 1
    if hub.used[target] > hub.uses:
        return Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
    return _ranged(hub, hub.uploads[urlsplit(target).path.removeprefix("/cdn/")], asked)


def _paths_info(hub: Hub, path: str, body: bytes, token: str | None) -> Answer:
    at = _data_at(hub, path, token)
    if isinstance(at, Answer):
        return at
    data, commit, _ = at
    asked = parse_qs(body.decode())["paths"]
    files = data.commits[commit]
    folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
    found = [_entry(name, files[name], True) for name in asked if name in files]
    return Answer(200, found + [{"type": "directory", "path": name, "oid": "1"} for name in asked if name in folders])


def _post(hub: Hub, path: str, body: bytes) -> Answer:
    if path == "/api/repos/create":
        return _create(hub, json.loads(body))
    if path == "/api/validate-yaml":
        return Answer(200, {"errors": [], "warnings": []})
    if "/preupload/" in path:
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = [{"path": f, "uploadMode": "lfs" if _is_large(f) else "regular", "shouldIgnore": False} for f in files]
        return Answer(200, {"files": modes})
    if path.endswith(".git/info/lfs/objects/batch"):
        if fault := hub.fault("batch"):
            return fault
        objects = [
            o if o["oid"] in hub.uploads else {**o, "actions": {"upload": {"href": f"{hub.address}/upload/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        return Answer(200, {"transfer": "basic", "objects": objects})
    if "/commit/" in path:
        if fault := hub.fault("commit"):
            return fault
        return _commit(hub, path, [json.loads(line) for line in body.decode().splitlines()])
    return Answer(404, {"error": f"no {path} here"}, "RepoNotFound")


def _create(hub: Hub, asked: dict[str, Any]) -> Answer:
    name = f"{asked.get('organization') or 'me'}/{asked['name']}"
    private = bool(asked.get("private") or asked.get("visibility") == "private")
    if asked.get("type") == "dataset":
        if name in hub.data:
            return Answer(409, {"error": "You already created this dataset repo", "url": f"{hub.address}/{name}"})
        hub.data[name] = DataSet({hashlib.sha1(name.encode()).hexdigest(): {".gitattributes": b"* text"}}, private)
        return Answer(200, {"url": f"{hub.address}/datasets/{name}", "name": name, "id": "1"})
    if private:
        hub.private.add(name)
    hub.repositories.setdefault(name, {})
    return Answer(200, {"url": f"{hub.address}/{name}", "name": name, "id": "1"})


def _commit(hub: Hub, path: str, lines: list[dict[str, Any]]) -> Answer:
    kind, name = path.split("/")[2], "/".join(path.split("/")[3:5])
    data = hub.data[name] if kind == "datasets" else None
    if data is not None and (parent := lines[0]["value"].get("parentCommit")) not in (None, data.head):
        return Answer(412, {"error": f"A commit has happened since {parent}. Please refresh and try again."})
    files = dict(data.files) if data is not None else hub.repositories[name]
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = hub.uploads[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
    made = data.commit(files) if data is not None else COMMIT
    return Answer(200, {"commitUrl": f"{hub.address}/{name}/commit/{made}", "commitOid": made, "success": True})


@contextmanager
def reached(home: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run the stand-in, which this process's huggingface_hub talks to; it keeps its files in `home`."""
    from huggingface_hub import HfFileSystem, constants, file_download
    from huggingface_hub.utils import _http

    with serve() as there:
        for name, value in there.environment(home).items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", there.address)
        template = f"{there.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in (constants, file_download):  # older ones have a copy there
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        patch.setattr(cache.places.hub, "_FIRST_WAIT_S", 0.01)
        at_once = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})  # it waits seconds between attempts
        patch.setattr(_http, "time", at_once, raising=False)
        cache.places.hub._files.cache_clear()
        HfFileSystem.clear_instance_cache()
        yield there


def files_of(store: Store) -> dict[str, bytes]:
    """A store's files as a repository has them."""
    return {f"{store.name}/{name}": raw for name, raw in toy.tree(store.path).items() if not name.endswith("/lock")}
