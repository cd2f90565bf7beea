"""A small HTTP server that speaks what ``dibs push`` asks of the Hugging Face Hub, over LFS."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from huggingface_hub import constants

_REGULAR = (".json", ".md", ".yaml")
"""Ends of the names of files that the hub takes inside the commit; others it takes by LFS."""


class HubServer:
    """Repositories in memory.

    ``commits``: files by repository, one mapping a commit. ``stored``: LFS objects by hash. ``sent``:
    sizes of the LFS objects that arrived, in order. ``refuse(what)``: a status for a request of create,
    preupload, batch, lfs, verify or commit; None lets it pass; 0 closes the connection.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}
        self.sent: list[int] = []
        self.tokens: set[str] = {"hf_good"}
        self.refuse: Callable[[str], int | None] = lambda _: None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def files(self, repo: str) -> dict[str, bytes]:
        """What a repository holds."""
        whole: dict[str, bytes] = {}
        for commit in self.commits[repo]:
            whole |= commit
        return whole

    def create(self, body: dict) -> tuple[int, dict]:
        repo = f"{body.get('organization') or 'me'}/{body['name']}"
        url = f"{self.address}/{repo}"
        if repo in self.commits:
            return 409, {"error": "You already created this model repo", "url": url}
        self.commits[repo] = []
        self.private[repo] = body.get("visibility") == "private" or bool(body.get("private"))
        return 200, {"url": url, "name": repo}

    def preupload(self, body: dict) -> tuple[int, dict]:
        files = [
            {
                "path": each["path"],
                "uploadMode": "regular" if each["path"].endswith(_REGULAR) else "lfs",
                "shouldIgnore": False,
                "oid": None,
            }
            for each in body["files"]
        ]
        return 200, {"files": files}

    def batch(self, body: dict) -> tuple[int, dict]:
        objects = []
        for each in body["objects"]:
            answer: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.stored:
                answer["actions"] = {
                    "upload": {"href": f"{self.address}/lfs/{each['oid']}"},
                    "verify": {"href": f"{self.address}/verify/{each['oid']}"},
                }
            objects.append(answer)
        return 200, {"transfer": "basic", "objects": objects}

    def commit(self, repo: str, body: bytes) -> tuple[int, dict]:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
        self.commits[repo].append(files)
        oid = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        return 200, {"commitUrl": f"{self.address}/{repo}/commit/{oid}", "commitOid": oid}

    def asked(self, path: str) -> tuple[str, Callable[[bytes], Any]]:
        """What a request asks for, and what answers its body."""
        parts = path.strip("/").split("/")
        repo = "/".join(parts[2:4])
        known: dict[str, Callable[[bytes], Any]] = {
            "create": lambda body: self.create(json.loads(body)),
            "validate-yaml": lambda _: (200, {"errors": [], "warnings": []}),
            "lfs": lambda body: self.put(parts[1], body),
            "verify": lambda _: (200 if parts[1] in self.stored else 404, {}),
            "batch": lambda body: self.batch(json.loads(body)),
            "preupload": lambda body: self.preupload(json.loads(body)),
            "commit": lambda body: self.commit(repo, body),
        }
        for part in (parts[0], parts[-1], *parts[4:5]):
            if part in known:
                return part, known[part]
        private = self.private.get(repo)
        info: dict[str, Any] = {
            "id": repo,
            "private": private,
            "sha": "0" * 40,
            "tags": [],
            "siblings": [],
        }
        return "info", lambda _: (200, info)

    def put(self, oid: str, body: bytes) -> tuple[int, dict]:
        assert hashlib.sha256(body).hexdigest() == oid
        self.stored[oid] = body
        self.sent.append(len(body))
        return 200, {}


def hub_in_place(monkeypatch: pytest.MonkeyPatch, folder: Path) -> HubServer:
    """A server that huggingface_hub takes for the hub, and a token for it; ``folder`` has none."""
    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    return server


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = urlparse(self.path).path
            what, act = server.asked(path)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status = server.refuse(what)
            if what not in ("lfs", "verify") and token not in server.tokens:
                status = 401
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            status, answer = act(body) if status is None else (status, {"error": f"no {what}"})
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if status >= 400:
                self.send_header("X-Error-Message", answer.get("error", ""))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self.reply()

        def do_POST(self) -> None:
            self.reply()

        def do_PUT(self) -> None:
            self.reply()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
