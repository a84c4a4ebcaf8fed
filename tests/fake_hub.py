"""As much of the hub's API as a push and a download take, on the loopback device."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

TOKEN = "hf_of_the_test"  # noqa: S105 - of nobody


class FakeHub:
    """Repositories in memory.

    Attributes:
        endpoint: Its address.
        repos: By id: files of each commit by revision; ``main`` is the newest.
        private: Which are private.
        asked: What was asked for, as ``"GET /path"``.
        refuses_commits: Answer commits with an error of the server.
        refuses_reading: Answer that the login may not read.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.asked: list[str] = []
        self.refuses_commits = self.refuses_reading = False

    def files(self, repo: str) -> dict[str, bytes]:
        """Return the newest files of a repository."""
        return self.repos[repo].get("main", {})

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add files, and return the name of the commit."""
        revisions = self.repos.setdefault(repo, {})
        name = hashlib.sha1(f"{repo} {len(revisions)}".encode(), usedforsecurity=False).hexdigest()
        revisions["main"] = revisions[name] = {**revisions.get("main", {}), **files}
        return name


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Run one in a thread."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def without_login(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Take away anybody's login, cache and proxy."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "cache"))


@contextmanager
def logged_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[FakeHub]:
    """Run one, with a login there."""
    without_login(monkeypatch, folder)
    with serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_request(self, *_: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._get(with_body=False)

    def do_GET(self) -> None:
        self._get(with_body=True)

    def do_POST(self) -> None:
        self.hub.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", self.path):
            files = [file["path"] for file in json.loads(body)["files"]]
            named = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._json(200, {"files": named})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            self._commit(found[1], body)
        else:
            self._json(404, {"error": f"not served here: {self.path}"})

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        if repo in self.hub.repos:
            self._json(409, {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{repo}"})
            return
        self.hub.repos[repo] = {}
        self.hub.private[repo] = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self._json(200, {"url": f"{self.hub.endpoint}/{repo}", "name": repo, "id": repo})

    def _commit(self, repo: str, body: bytes) -> None:
        if self.hub.refuses_commits:
            self._json(400, {"error": "the disk of the hub is full"})
            return
        header, *lines = (json.loads(line) for line in body.decode().splitlines())
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines}
        name = self.hub.commit(repo, files)
        self.hub.messages.append(header["value"]["summary"])
        url = f"{self.hub.endpoint}/{repo}/commit/{name}"
        self._json(200, {"success": True, "commitOid": name, "commitUrl": url, "hookOutput": ""})

    def _get(self, with_body: bool) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        if self.hub.refuses_reading:
            self._json(403, {"error": "the token is of another organisation"})
        elif self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            self._json(*((200, {"name": "user"}) if known else (401, {"error": "Invalid username or password."})))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", self.path):
            if found[1] in self.hub.repos:
                private = self.hub.private.get(found[1], False)
                self._json(200, {"id": found[1], "modelId": found[1], "private": private, "tags": [], "downloads": 0})
            else:
                self._refuse("RepoNotFound", "Repository not found")
        else:
            self._resolve(with_body)

    def _resolve(self, with_body: bool) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if found is None or found[1] not in self.hub.repos:
            self._refuse("RepoNotFound", "Repository not found")
        elif found[2] not in self.hub.repos[found[1]]:
            self._refuse("RevisionNotFound", f"Invalid rev id: {found[2]}")
        elif found[3] not in self.hub.repos[found[1]][found[2]]:
            self._refuse("EntryNotFound", "Entry not found")
        else:
            self._file(self.hub.repos[found[1]], found[2], found[3], with_body)

    def _file(self, revisions: dict[str, dict[str, bytes]], revision: str, name: str, with_body: bool) -> None:
        content = revisions[revision][name]
        commit = next(key for key in reversed(revisions) if key != "main" and revisions[key] == revisions[revision])
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Content-Length": str(len(content)),
            "Accept-Ranges": "bytes",
        }
        self._answer(200, headers, content if with_body else b"")

    def _refuse(self, code: str, message: str) -> None:
        self._answer(404, {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"}, b"")

    def _json(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self._answer(status, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
