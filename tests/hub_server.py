"""A hub on this machine, as much of it as the hub's own client asks for: repositories, commits, large files, tokens.

The client talks to it over HTTP as it does to the real one. Nothing is kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_someone"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]


@dataclass
class HubServer:
    """What the hub has; tests look, and say what it refuses."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    """Part of a request's path → the status that it gets."""
    requests: list[str] = field(default_factory=list)
    url: str = ""


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **more: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.document = status, code, {"error": message, **more}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            for part, status in self.hub.refused.items():
                if part in path:
                    raise Refusal(status, message="refused by the test")
            content, headers = self._respond(path, body)
            status = 200
        except Refusal as error:
            status, content = error.status, json.dumps(error.document).encode()
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _respond(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if path == "/api/repos/create":
            return _json(self._create(json.loads(body)))
        if path == "/api/validate-yaml":
            return _json(_validate(json.loads(body)["content"]))
        if path.startswith("/large/"):
            self.hub.large[path.removeprefix("/large/")] = body
            return b"", {}
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return _json({"transfer": "basic", "objects": [self._place(each) for each in json.loads(body)["objects"]]})
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(\w+)/([^/]+))?", path):
            return _json(self._repository(body, *match.groups()))
        raise Refusal(404)

    def _allowed(self) -> None:
        token = self.headers.get("Authorization", "")
        if token != f"Bearer {TOKEN}":
            raise Refusal(401, message="Invalid credentials" if token else "Authentication required")

    def _find(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or found.private:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refusal(401, "RepoNotFound", "Repository not found")
            if found is None:
                raise Refusal(404, "RepoNotFound", "Repository not found")
        return found

    def _create(self, asked: dict[str, Any]) -> dict[str, str]:
        self._allowed()
        if asked["organization"] not in ("someone", None):
            raise Refusal(403, message="You don't have the rights to create a model under this namespace")
        name = f"{asked['organization'] or 'someone'}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            raise Refusal(409, message="You already created this model repo", url=url)
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        return {"url": url, "name": name, "id": name}

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        self._allowed()
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/large/{wanted['oid']}"}}}

    def _commit_of(self, repository: Repository, revision: str) -> str:
        found = repository.branches.get(revision, revision)
        if found not in repository.commits:
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        return found

    def _file(self, name: str, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        repository = self._find(name)
        commit = self._commit_of(repository, revision)
        if path not in repository.commits[commit]:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        content = repository.commits[commit][path]
        return content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}

    def _repository(self, body: bytes, name: str, verb: str | None, revision: str | None) -> Any:
        repository = self._find(name)
        if verb == "branch":
            self._allowed()
            repository.branches.setdefault(str(revision), repository.branches["main"])
            return {}
        commit = self._commit_of(repository, revision or "main")
        files = repository.commits[commit]
        if verb == "tree":
            return [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
        if verb == "preupload":
            self._allowed()
            return {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        if verb == "commit":
            self._allowed()
            return self._commit(repository, name, str(revision), dict(files), body)
        siblings = [{"rfilename": path} for path in files]
        return {"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": siblings}

    def _commit(
        self, repository: Repository, name: str, branch: str, files: dict[str, bytes], body: bytes
    ) -> dict[str, Any]:
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(repr((len(repository.commits), sorted(files))).encode()).hexdigest()
        repository.commits[oid] = files
        repository.branches[branch] = oid
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True}


def _json(document: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(document).encode(), {}


def _validate(card: str) -> dict[str, list[Any]]:
    """As the hub does: front matter is YAML, and a base is an id of the hub."""
    header = yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else {}
    base = header.get("base_model", "owner/name")
    if not isinstance(base, str) or not HUB_ID.fullmatch(base):
        wrong = '"base_model" must be a model id'
        raise Refusal(400, message=wrong, errors=[{"message": wrong}])
    return {"errors": [], "warnings": []}


@contextmanager
def serving() -> Iterator[HubServer]:
    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":  # python tests/hub_server.py COMMAND…: someone is logged in on a hub of the command's own
    with serving() as own:
        settings = {"HF_ENDPOINT": own.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        sys.exit(subprocess.run(sys.argv[1:], env=os.environ | settings).returncode)
