"""Tests of scripts/download_clevr_dataset.sh against a local server."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, file_server

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


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        server.files = {f"/good/{name}": archive(split) for split, name in PARTS.items()}
        yield server


def download(server: FileServer, *words: object, sources: str = "good") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "VIDM_SOURCES": " ".join(f"{server.base}/{source}" for source in sources.split()),
        "no_proxy": "127.0.0.1",
    }
    return subprocess.run([str(SCRIPT), *map(str, words)], env=environment, capture_output=True, text=True, timeout=60)


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
        assert hashlib.sha256(server.files[f"/good/{name}"]).hexdigest() in done.stdout
        assert f"{folder}/{split}: 3 videos" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train", "val"]


def test_an_interrupted_download_continues_and_an_existing_split_is_not_downloaded(server, tmp_path):
    (tmp_path / "train").mkdir()
    server.breaks_after = 1000
    assert "is incomplete: run this again" in error_of(download(server, tmp_path))
    server.asked.clear()
    done = download(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.asked == [(f"/good/{PARTS['val']}", "bytes=1000-"), (f"/good/{PARTS['test']}", "")]
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
    server.headers["Content-Length"] = str(10**15)
    assert re.search(r"4000000\.0 GB are needed in .* GB are free", error_of(download(server, tmp_path)))
    assert server.asked == []


def test_an_archive_with_a_wrong_byte_is_deleted(server, tmp_path):
    path = f"/good/{PARTS['train']}"
    content = bytearray(server.files[path])
    content[200] ^= 1  # inside the first video
    server.files[path] = bytes(content)
    done = download(server, tmp_path)
    assert "video_train.zip is not a valid zip archive" in error_of(done)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_unpacks_to_more_than_the_disk_has_is_reported_before_unpacking(server, tmp_path):
    """The archive's directory says that its first video has a petabyte less one."""
    path = f"/good/{PARTS['train']}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", allowZip64=True) as file:
        file.writestr("video_00000.mp4", "small")
        file.filelist[0].file_size = 10**15 - 1
    server.files[path] = buffer.getvalue()
    assert re.search(r"unpacks to 1000000\.0 GB, but only .* GB are free", error_of(download(server, tmp_path)))
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize("attack", ["a[$(touch broken-in)]", "$(touch broken-in)", "1e3", "0x10", "-5", "9" * 30])
def test_a_length_that_is_no_number_is_refused_and_not_executed(server, tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    server.headers["Content-Length"] = attack
    assert "cannot reach" in error_of(download(server, tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "message"), [(["--force"], "unknown option --force"), (["a", "b"], "not a and b")])
def test_an_invalid_command_is_a_one_line_error(server, words, message):
    assert message in error_of(download(server, *words))
    assert server.asked == []
