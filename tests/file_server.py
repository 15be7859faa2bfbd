"""A local server of files, for tests of downloads. It can break off, change its files, and lie in its headers."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATE = "Thu, 26 Nov 2026 08:00:00 GMT"


class FileServer(ThreadingHTTPServer):
    """Serves `files`, content by path, and 404 for all other paths.

    validators: the headers that identify a version, of ETag and Last-Modified. honest: whether If-Range is obeyed.
    breaks_after: the number of bytes after which the next answer breaks off. headers: replace those of every answer;
    None removes one. then: what the server does after the content: "ends", "is silent" or "goes on" (up to 100 MB).
    sent: the bytes of all answers. asked: (path, Range or "") of each GET request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.validators = ("ETag", "Last-Modified")
        self.honest = True
        self.breaks_after: int | None = None
        self.headers: dict[str, str | None] = {}
        self.sent = 0
        self.then = "ends"
        self.stopped = threading.Event()
        self.asked: list[tuple[str, str]] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def _answer(self, body: bool) -> None:
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        known = {"ETag": tag, "Last-Modified": DATE}
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        if self.server.honest and self.headers.get("If-Range", tag) not in (tag, DATE):
            start = 0
        if start and start >= len(content):
            self.send_error(416)
            return
        headers = {name: known[name] for name in self.server.validators}
        headers["Content-Length"] = str(len(content) - start)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if start else 200)
        for name, value in (headers | self.server.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if body:
            end = None if self.server.breaks_after is None else start + self.server.breaks_after
            self.server.breaks_after = None
            self._send(content[start:end])
            with suppress(ConnectionError):
                for _ in range(100 if self.server.then == "goes on" else 0):
                    self._send(bytes(10**6))
        if self.server.then == "is silent":
            self.server.stopped.wait(30)

    def _send(self, data: bytes) -> None:
        chunked = "Transfer-Encoding" in self.server.headers
        self.server.sent += len(data)
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        self._answer(body=True)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def file_server() -> Iterator[FileServer]:
    """A server that runs in a thread while the block does."""
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
