"""Tests of scripts/fetch.sh: a download continues only if it is the same file; what a server says is never run."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, file_server

SCRIPT = Path(__file__).parent.parent / "scripts" / "fetch.sh"
OLD, NEW = bytes(range(256)) * 400, bytes(range(255, -1, -1)) * 400
WHOLE, REST = [("/file", "")], [("/file", "bytes=5000-")]

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        server.files["/file"] = OLD
        yield server


def fetch(server: FileServer, part: Path, length: object = "") -> subprocess.CompletedProcess[str]:
    command = ["bash", "-uc", '. "$0" && fetch "$@"', str(SCRIPT), f"{server.base}/file", str(part)]
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    words = [str(length)] if length else []
    return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=60)


def broken_off(server: FileServer, part: Path) -> None:
    """Begin a download that breaks off after 5,000 bytes."""
    server.breaks_after = 5000
    assert fetch(server, part).returncode != 0
    assert part.read_bytes() == OLD[:5000]
    server.asked.clear()


@pytest.mark.parametrize("validators", [("ETag",), ("Last-Modified",), ("ETag", "Last-Modified")])
def test_an_interrupted_download_continues(server, tmp_path, validators):
    server.validators = validators
    broken_off(server, tmp_path / "part")
    assert fetch(server, tmp_path / "part").returncode == 0
    assert (tmp_path / "part").read_bytes() == OLD
    assert server.asked == REST


def test_without_a_validator_the_download_starts_again(server, tmp_path):
    server.validators = ()
    broken_off(server, tmp_path / "part")
    assert fetch(server, tmp_path / "part").returncode == 0
    assert (tmp_path / "part").read_bytes() == OLD
    assert server.asked == WHOLE


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_has_changed_is_downloaded_whole(server, tmp_path, honest):
    """Also from a server that ignores If-Range and sends the rest of another file."""
    broken_off(server, tmp_path / "part")
    server.files["/file"], server.honest = NEW, honest
    assert fetch(server, tmp_path / "part").returncode == 0
    assert (tmp_path / "part").read_bytes() == NEW
    assert server.asked == REST + WHOLE


def test_a_file_that_has_become_shorter_is_downloaded_whole(server, tmp_path):
    broken_off(server, tmp_path / "part")
    server.files["/file"] = NEW[:3000]
    assert fetch(server, tmp_path / "part").returncode == 0
    assert (tmp_path / "part").read_bytes() == NEW[:3000]


@pytest.mark.parametrize("begun_with", ["nothing", "another address", "another length"])
def test_a_part_of_something_else_is_thrown_away(server, tmp_path, begun_with):
    part, record = tmp_path / "part", tmp_path / "part.from"
    broken_off(server, part)
    if begun_with == "nothing":
        record.unlink()
    elif begun_with == "another address":
        record.write_text(record.read_text().replace("/file", "/elsewhere"))
    length = 1000 if begun_with == "another length" else ""
    assert fetch(server, part, length).returncode == 0
    assert part.read_bytes() == OLD
    assert server.asked == WHOLE


def test_a_complete_part_is_not_downloaded_again(server, tmp_path):
    assert fetch(server, tmp_path / "part").returncode == 0
    server.asked.clear()
    assert fetch(server, tmp_path / "part", len(OLD)).returncode == 0
    assert server.asked == []


def test_a_part_outlives_a_server_that_fails(server, tmp_path):
    broken_off(server, tmp_path / "part")
    del server.files["/file"]
    assert fetch(server, tmp_path / "part").returncode != 0
    assert (tmp_path / "part").read_bytes() == OLD[:5000]
    server.files["/file"] = OLD
    assert fetch(server, tmp_path / "part").returncode == 0
    assert (tmp_path / "part").read_bytes() == OLD


@pytest.mark.parametrize("name", ["part", "part.from"])
def test_links_are_not_followed(server, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / name).symlink_to(outside)
    assert fetch(server, tmp_path / "part").returncode == 0
    assert outside.read_text() == "mine"
    assert (tmp_path / "part").read_bytes() == OLD
    assert not (tmp_path / name).is_symlink()


def test_a_failed_download_leaves_nothing(server, tmp_path):
    server.files.clear()
    assert fetch(server, tmp_path / "part").returncode != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("header", ["Content-Length", "ETag", "Last-Modified"])
@pytest.mark.parametrize(
    "attack", ["a[$(touch broken-in)]", "$(touch broken-in)", "`touch broken-in`", "1; touch broken-in"]
)
def test_headers_are_not_executed(server, tmp_path, monkeypatch, header, attack):
    monkeypatch.chdir(tmp_path)
    record = tmp_path / "part.from"
    (tmp_path / "part").write_bytes(OLD[:5000])
    lines = {"Content-Length": str(len(OLD)), "ETag": '"x"', header: attack}
    record.write_text(f"{server.base}/file\nHTTP/1.1 200 OK\n" + "".join(f"{k}: {v}\n" for k, v in lines.items()))
    assert fetch(server, tmp_path / "part").returncode == 0
    assert (tmp_path / "part").read_bytes() == OLD
    assert not (tmp_path / "broken-in").exists()
