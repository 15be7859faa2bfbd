"""A local server of repositories that speaks what huggingface_hub asks, for downloads and uploads of small files."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"
MODEL = r"/api/models/(?P<repository>[\w.-]+/[\w.-]+)"


class HubServer(ThreadingHTTPServer):
    """Repositories by name, each with its commits, oldest first; a commit is the content of its files by name.

    tags: the number of a commit by revision. shorter: the bytes that are missing of each file. down: whether every
    answer is the status 503. asked: (method, path) of each request. Uploads need TOKEN."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.tags: dict[str, int] = {}
        self.shorter = 0
        self.down = False
        self.asked: list[tuple[str, str]] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repository: str, revision: str) -> int | None:
        """The number of the commit of a revision: main, a tag, or the 40 digits of a commit."""
        last = len(self.repositories[repository]) - 1
        known = {"main": last, **self.tags, **{commit_id(number): number for number in range(last + 1)}}
        return known.get(revision)

    def downloads(self) -> list[str]:
        """The names of the files that were downloaded, in order."""
        return [path.rsplit("/", 1)[1] for method, path in self.asked if method == "GET" and "/resolve/" in path]


def commit_id(number: int) -> str:
    return f"{number:040x}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, content: bytes, body: bool = True, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _answer_json(self, content: Any, status: int = 200, **headers: str) -> None:
        self._answer(status, json.dumps(content).encode(), **headers, Content_Type="application/json")

    def _read(self, body: bool) -> None:
        self.server.asked.append((self.command, self.path))
        if self.server.down:
            self._answer(503, b"")
            return
        about = re.fullmatch(MODEL + r"(/revision/(?P<revision>[^/]+))?", self.path)
        found = about or re.fullmatch(r"/(?P<repository>.+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self.path)
        repository = found["repository"] if found else ""
        if not found or repository not in self.server.repositories:
            self._answer(401, b"", X_Error_Code="RepoNotFound")
            return
        number = self.server.commit(repository, found["revision"] or "main")
        if number is None:
            self._answer(404, b"", X_Error_Code="RevisionNotFound")
            return
        files = self.server.repositories[repository][number]
        if about:
            siblings = [{"rfilename": name} for name in files]
            self._answer_json({"id": repository, "sha": commit_id(number), "siblings": siblings})
        elif found["file"] not in files:
            self._answer(404, b"", X_Error_Code="EntryNotFound")
        else:
            content = files[found["file"]]
            headers = {"X_Repo_Commit": commit_id(number), "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
            if start:  # the rest of a file that broke off
                headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            sent = content[start : len(content) - self.server.shorter]
            self._answer(206 if start else 200, sent, body, X_Linked_Size=str(len(content)), **headers)

    def do_HEAD(self) -> None:
        self._read(body=False)

    def do_GET(self) -> None:
        self._read(body=True)

    def do_POST(self) -> None:
        self.server.asked.append((self.command, self.path))
        content = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in content.splitlines()]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer_json({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            name = f"{lines[0]['organization']}/{lines[0]['name']}"
            status = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, [])
            self._answer_json({"url": f"{self.server.base}/{name}"}, status)
        elif self.path == "/api/validate-yaml":
            self._answer_json({"warnings": [], "errors": []})
        elif re.fullmatch(MODEL + "/preupload/main", self.path):
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer_json({"files": [{"path": file["path"], **plain} for file in lines[0]["files"]]})
        elif found := re.fullmatch(MODEL + "/commit/main", self.path):
            values = [line["value"] for line in lines if line["key"] == "file"]
            commits = self.server.repositories[found["repository"]]
            commits.append({value["path"]: base64.b64decode(value["content"]) for value in values})
            number = commit_id(len(commits) - 1)
            url = f"{self.server.base}/{found['repository']}/commit/{number}"
            self._answer_json({"commitUrl": url, "commitOid": number, "success": True})
        else:
            self._answer(404, b"")

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A server that runs in a thread while the block does."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
