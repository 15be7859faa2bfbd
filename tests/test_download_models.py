"""Claims about scripts/download_models.sh, against a server on this machine."""

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
    """Serves CONTENT under any name below /good, whole or from where a range begins; elsewhere 404."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
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
    server.asked = []
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


def test_a_model_arrives_whole_with_its_sha256(server, tmp_path):
    done = download(server, tmp_path, "i3d")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / I3D).read_bytes() == CONTENT
    assert hashlib.sha256(CONTENT).hexdigest() in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == [I3D]


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    (tmp_path / f".{I3D}.part").write_bytes(CONTENT[:5000])
    assert download(server, tmp_path, "i3d").returncode == 0
    assert (tmp_path / I3D).read_bytes() == CONTENT
    assert server.asked == [(f"/good/{I3D}", "bytes=5000-")]


def test_sources_are_tried_in_turn(server, tmp_path):
    done = download(server, tmp_path, "i3d", sources="bad good")
    assert done.returncode == 0
    assert [path for path, _ in server.asked] == [f"/bad/{I3D}", f"/good/{I3D}"]


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    download(server, tmp_path, "i3d")
    server.asked.clear()
    assert "is there already" in download(server, tmp_path, "i3d").stdout
    assert server.asked == []


def test_a_wrong_sha256_is_thrown_away(server, tmp_path):
    done = download(server, tmp_path, "spynet")
    assert done.returncode == 2
    assert "should begin with c6c1bd09" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_when_all_sources_fail_there_is_one_clear_message(server, tmp_path):
    done = download(server, tmp_path, "i3d", "c3d", sources="bad worse")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: could not be fetched: {I3D} c3d_ucf101.pt. "
        f"Get them elsewhere and put them into {tmp_path} (see its README.md)"
    ]
    assert SPYNET not in done.stdout


def test_an_unknown_name_is_refused(server, tmp_path):
    done = download(server, tmp_path, "gpt")
    assert done.returncode == 2
    assert "no model is called gpt: choose from spynet i3d c3d motion" in done.stderr
    assert server.asked == []
