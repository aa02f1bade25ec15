"""A local stand-in for the Hugging Face hub: as much of its HTTP interface as creating a model repository, committing
files to it (small ones in the commit, large ones by Git LFS) and downloading it takes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"


@dataclass
class Hub:
    """What the stand-in holds. repositories: {id: {file: bytes}}; private: ids."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    uploads: dict[str, bytes] = field(default_factory=dict)

    def environment(self, home: Path) -> dict[str, str]:
        """What makes huggingface_hub talk to the stand-in, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "no_proxy": "127.0.0.1",
        }


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the stand-in on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(_get(hub, unquote(urlsplit(self.path).path)))

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer((401, {"error": "Invalid username or password."}))
            return self._answer(_post(hub, urlsplit(self.path).path, body))

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            assert urlsplit(self.path).path == f"/upload/{hashlib.sha256(content).hexdigest()}"
            hub.uploads[hashlib.sha256(content).hexdigest()] = content
            self._answer((200, {}))

        def _answer(self, answer: tuple[int, Any]) -> None:
            status, content = answer
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(raw).hexdigest()}"')
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _get(hub: Hub, path: str) -> tuple[int, Any]:
    for name, files in hub.repositories.items():
        if path.startswith(f"/api/models/{name}/tree/"):
            return 200, [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
        if path.startswith(f"/api/models/{name}"):
            listed = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
            return 200, {"_id": "1", "id": name, "sha": COMMIT, "private": name in hub.private, "siblings": listed}
        if path.startswith(f"/{name}/resolve/"):
            file = path.removeprefix(f"/{name}/resolve/").partition("/")[2]
            if file in files:
                return 200, files[file]
    return 404, {"error": "Repository not found"}


def _post(hub: Hub, path: str, body: bytes) -> tuple[int, Any]:
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
        if asked.get("private") or asked.get("visibility") == "private":
            hub.private.add(name)
        hub.repositories.setdefault(name, {})
        return 200, {"url": f"{hub.address}/{name}", "name": name, "id": "1"}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if "/preupload/" in path:
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = [
            {"path": f, "uploadMode": "lfs" if f.endswith(".safetensors") else "regular", "shouldIgnore": False}
            for f in files
        ]
        return 200, {"files": modes}
    if path.endswith(".git/info/lfs/objects/batch"):
        objects = [
            {**o, "actions": {"upload": {"href": f"{hub.address}/upload/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}
    if "/commit/" in path:
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                hub.repositories[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                hub.repositories[name][entry["value"]["path"]] = hub.uploads[entry["value"]["oid"]]
        return 200, {"commitUrl": f"{hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
    return 404, {"error": f"no {path} here"}
