"""A model hub on this machine: what the hub's own client asks of one, with failures on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".onnx", ".pth", ".bin")
"""Endings of files in large file storage."""


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    gated: bool = False

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class FakeHub:
    """``put`` repositories into it and point a client at ``endpoint``; ``requests`` tells what it was asked for."""

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and range."""
    drops: Counter[str] = field(default_factory=Counter)
    """How often the connection breaks half-way through what is left of a file."""
    mute: set[str] = field(default_factory=set)
    """Files of which no byte comes."""
    corrupt: set[str] = field(default_factory=set)
    """Files whose bytes are not those that the hub lists."""
    status: int | None = None
    """Answers everything with this status."""

    def put(self, name: str, files: dict[str, bytes], *, ref: str = "main", card: dict[str, Any] | None = None) -> str:
        """A commit of a repository, which ``ref`` then means; returns the commit."""
        repo = self.repos.setdefault(name, Repo())
        commit = hashlib.sha1(repr((name, len(repo.commits), sorted(files.items()))).encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.refs[ref] = commit
        repo.card.update(card or {})
        return commit

    def gets(self) -> list[str]:
        """Paths of the files that were asked for."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for method, path, _ in self.requests
            if self._is_get(method, path)
        ]

    def ranges(self) -> list[str]:
        """The ranges that were asked for."""
        return [wanted for method, path, wanted in self.requests if self._is_get(method, path) and wanted]

    @staticmethod
    def _is_get(method: str, path: str) -> bool:
        return method == "GET" and "/resolve/" in path


def serve(hub: FakeHub) -> ThreadingHTTPServer:
    """Start the hub in a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if hub.status is not None:
                self._error(hub.status)
            elif path.startswith("/api/models/"):
                name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                self._info(name, revision or "main")
            else:
                name, _, rest = path.strip("/").partition("/resolve/")
                revision, _, file = rest.partition("/")
                self._file(name, revision, file)

        def _error(self, status: int, code: str = "", message: str = "") -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            if message:
                self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _info(self, name: str, revision: str) -> None:
            repo = hub.repos.get(name)
            if repo is None:
                return self._error(401, "RepoNotFound")
            found = repo.files(revision)
            if found is None:
                return self._error(404, "RevisionNotFound")
            commit, files = found
            siblings = [_sibling(path, content) for path, content in files.items()]
            answer = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "cardData": repo.card}
            self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})
            return None

        def _file(self, name: str, revision: str, path: str) -> None:
            repo = hub.repos.get(name)
            found = repo.files(revision) if repo is not None else None
            if repo is None or found is None or path not in found[1]:
                return self._error(404, "EntryNotFound")
            if repo.gated and self.headers.get("Authorization") != "Bearer good":
                return self._error(401, "GatedRepo", "Access to this model is restricted")
            commit, files = found
            content = files[path]
            etag = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else blob_sha1(content)
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if path in hub.corrupt:
                content = bytes(byte ^ 1 for byte in content)
            self._send(content, headers, path)
            return None

        def _send(self, content: bytes, headers: dict[str, str], path: str | None = None) -> None:
            start = 0
            if path is not None and (wanted := self.headers.get("Range")):
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
            rest = content[start:]
            self.send_response(206 if start else 200)
            for key, value in headers.items():
                self.send_header(key, value)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if path in hub.mute or hub.drops[path or ""] > 0:
                hub.drops[path or ""] -= 1
                self.wfile.write(b"" if path in hub.mute else rest[: len(rest) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob_sha1(content)}
    if path.endswith(LARGE):
        sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return sibling
