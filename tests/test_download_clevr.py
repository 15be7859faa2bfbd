"""Tests of scripts/download_clevr_dataset.sh against a local server."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "download_clevr_dataset.sh"
PARTS = {"train": "train/video_train.zip", "val": "validation/video_validation.zip", "test": "test/video_test.zip"}

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def archive(split: str) -> bytes:
    """Return a zip of three videos, in CLEVRER's folders; each contains its split and number."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for number in range(3):
            file.writestr(f"video_00000-01000/video_{number:05d}.mp4", f"{split} {number} " * 500)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serve the archives below /good, completely or from the start of a range, and 404 elsewhere."""

    def answer(self, body: bool) -> None:
        content = self.server.archives.get(self.path.removeprefix("/good/"))
        if content is None:
            self.send_error(404)
            return
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(self.server.claimed or len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self.server.asked.append((self.path, start))
            self.wfile.write(content[start:])

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.archives = {name: archive(split) for split, name in PARTS.items()}
    server.asked = []
    server.claimed = 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def download(server: ThreadingHTTPServer, *words: object, sources: str = "good") -> subprocess.CompletedProcess[str]:
    base = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {
        **os.environ,
        "VIDM_SOURCES": " ".join(f"{base}/{source}" for source in sources.split()),
        "no_proxy": "127.0.0.1",
    }
    return subprocess.run([str(SCRIPT), *map(str, words)], env=environment, capture_output=True, text=True)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error line of a run that failed with exit code 2."""
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_three_splits_are_downloaded_and_unpacked_and_their_sha256_is_printed(server, tmp_path):
    folder = tmp_path / "data of mine" / "CLEVRER"
    done = download(server, folder)
    assert done.returncode == 0, done.stderr
    for split, name in PARTS.items():
        videos = sorted((folder / split).rglob("*.mp4"))
        assert [video.read_text() for video in videos] == [f"{split} {number} " * 500 for number in range(3)]
        assert hashlib.sha256(server.archives[name]).hexdigest() in done.stdout
        assert f"{folder}/{split}: 3 videos" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train", "val"]


def test_an_interrupted_download_continues_and_an_existing_split_is_not_downloaded(server, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / ".val.zip.part").write_bytes(server.archives[PARTS["val"]][:1000])
    (tmp_path / ".test.zip.part").write_bytes(server.archives[PARTS["test"]])
    done = download(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.asked == [(f"/good/{PARTS['val']}", 1000)]  # the third was complete and not yet unpacked
    assert "train exists already" in done.stdout
    assert len(list(tmp_path.rglob("*.mp4"))) == 6


def test_a_dry_run_prints_what_would_happen_and_does_nothing(server, tmp_path):
    done = download(server, "--dry-run", tmp_path / "new")
    assert done.returncode == 0
    for split, name in PARTS.items():
        assert f"/good/{name} and unpack it into {tmp_path}/new/{split}" in done.stdout
    assert "are free; whether" in done.stdout
    assert server.asked == []
    assert list(tmp_path.iterdir()) == []


def test_sources_are_tried_in_turn(server, tmp_path):
    assert download(server, tmp_path, sources="bad good").returncode == 0
    assert len(list(tmp_path.rglob("*.mp4"))) == 9


def test_without_a_network_there_is_a_one_line_error_and_no_folder(server, tmp_path):
    done = download(server, tmp_path / "new", sources="bad worse")
    assert len(done.stderr.splitlines()) == 1
    assert "cannot reach" in error_of(done)
    assert "scripts/make_synthetic_dataset.py" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_reported_before_the_download(server, tmp_path):
    server.claimed = 10**15
    assert re.search(r"4000000\.0 GB are needed in .* GB are free", error_of(download(server, tmp_path)))
    assert server.asked == []


def test_an_archive_with_a_wrong_byte_is_deleted(server, tmp_path):
    content = bytearray(server.archives[PARTS["train"]])
    content[200] ^= 1  # inside the first video
    server.archives[PARTS["train"]] = bytes(content)
    done = download(server, tmp_path)
    assert "video_train.zip is not a valid zip archive" in error_of(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "message"), [(["--force"], "unknown option --force"), (["a", "b"], "not a and b")])
def test_an_invalid_command_is_a_one_line_error(server, words, message):
    assert message in error_of(download(server, *words))
    assert server.asked == []
