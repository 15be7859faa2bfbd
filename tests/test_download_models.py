"""Tests of scripts/download_models.sh against a local server."""

import hashlib
import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "download_models.sh"
I3D = "i3d_torchscript.pt"
SPYNET = "spynet_20210409-c6c1bd09.pth"
CONTENT = bytes(range(256)) * 400

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT, or the requested end of it, for paths below /good, and 404 for all others."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        if not self.path.startswith("/good/"):
            self.send_error(404)
            return
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(CONTENT[start:])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def download(server, folder: Path, *names: str, sources: str = "good") -> subprocess.CompletedProcess:
    base = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {
        **os.environ,
        "VIDM_MODELS": str(folder),
        "VIDM_SOURCES": " ".join(f"{base}/{source}" for source in sources.split()),
        "no_proxy": "127.0.0.1",
    }
    return subprocess.run([SCRIPT, *names], env=environment, capture_output=True, text=True)


def test_a_model_is_downloaded_and_its_sha256_is_printed(server, tmp_path):
    done = download(server, tmp_path, "i3d")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / I3D).read_bytes() == CONTENT
    assert hashlib.sha256(CONTENT).hexdigest() in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == [I3D]


def test_an_interrupted_download_resumes(server, tmp_path):
    (tmp_path / f".{I3D}.part").write_bytes(CONTENT[:5000])
    assert download(server, tmp_path, "i3d").returncode == 0
    assert (tmp_path / I3D).read_bytes() == CONTENT
    assert server.requests == [(f"/good/{I3D}", "bytes=5000-")]


def test_sources_are_tried_in_order(server, tmp_path):
    done = download(server, tmp_path, "i3d", sources="bad good")
    assert done.returncode == 0
    assert [path for path, _ in server.requests] == [f"/bad/{I3D}", f"/good/{I3D}"]


def test_an_existing_file_is_not_downloaded_again(server, tmp_path):
    download(server, tmp_path, "i3d")
    server.requests.clear()
    assert "exists already" in download(server, tmp_path, "i3d").stdout
    assert server.requests == []


def test_a_file_with_a_wrong_sha256_is_deleted(server, tmp_path):
    done = download(server, tmp_path, "spynet")
    assert done.returncode == 2
    assert "should begin with c6c1bd09" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_message_lists_all_files_that_no_source_has(server, tmp_path):
    done = download(server, tmp_path, "i3d", "c3d", sources="bad worse")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: could not download: {I3D} c3d_ucf101.pt. "
        f"Get the files elsewhere and put them into {tmp_path} (see its README.md)"
    ]
    assert SPYNET not in done.stdout


def test_an_unknown_name_is_an_error(server, tmp_path):
    done = download(server, tmp_path, "gpt")
    assert done.returncode == 2
    assert "unknown model gpt: choose from spynet i3d c3d motion" in done.stderr
    assert server.requests == []
