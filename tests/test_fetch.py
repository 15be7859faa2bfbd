"""Tests of scripts/fetch.sh: a download continues only if it is the same file; what a server says is never run, and
what it sends is bounded in size and time."""

import os
import shutil
import socket
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


def shell(commands: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run commands after the script, with words as their parameters."""
    command = ["bash", "-uc", f'. "$0" && {commands}', str(SCRIPT), *map(str, words)]
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def fetch(
    server: FileServer, part: Path, length: object = "", limits: str = "true"
) -> subprocess.CompletedProcess[str]:
    return shell(f'{limits} && fetch "$@"', f"{server.base}/file", part, *([length] if length else []))


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
    elif begun_with == "another length":
        record.write_text(record.read_text().replace(f"Content-Length: {len(OLD)}", "Content-Length: 9000"))
    assert fetch(server, part, len(OLD)).returncode == 0
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


@pytest.mark.parametrize("name", ["part", "part.from"])
def test_a_pipe_is_not_opened(server, tmp_path, name):
    (tmp_path / "part").write_bytes(OLD[:5000])
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert fetch(server, tmp_path / "part").returncode == 0
    assert (tmp_path / "part").read_bytes() == OLD
    assert (tmp_path / "part.from").is_file()


@pytest.mark.parametrize("announced", ["the right length", "nothing"])
@pytest.mark.parametrize("known", [True, False])
def test_a_server_that_sends_without_end_is_cut_off(server, tmp_path, announced, known):
    """curl ignores the length of an answer in chunks. Without a known length, the largest allowed one counts."""
    server.then = "goes on"
    server.headers = {"Transfer-Encoding": "chunked"} if announced == "the right length" else {"Content-Length": None}
    done = fetch(server, tmp_path / "part", len(OLD) if known else "", f"largest={len(OLD)}")
    assert done.returncode != 0
    assert f"above {len(OLD)} bytes" in done.stderr
    assert server.sent < 50e6
    assert list(tmp_path.iterdir()) == []


def test_the_rest_of_a_part_is_no_longer_than_announced(server, tmp_path):
    broken_off(server, tmp_path / "part")
    server.then, server.headers = "goes on", {"Transfer-Encoding": "chunked"}
    done = fetch(server, tmp_path / "part", len(OLD))
    assert done.returncode != 0
    assert server.sent < 50e6
    assert list(tmp_path.iterdir()) == []


def test_a_part_whose_length_is_above_the_largest_is_thrown_away(server, tmp_path):
    broken_off(server, tmp_path / "part")
    assert fetch(server, tmp_path / "part", limits="largest=9000").returncode != 0
    assert server.asked == WHOLE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [len(OLD) - 1, len(OLD) + 1])
def test_a_file_of_another_length_than_announced_before_is_refused(server, tmp_path, length):
    assert fetch(server, tmp_path / "part", length).returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_is_not_waited_for(server, tmp_path):
    """A part outlives the silence, and continues."""
    server.breaks_after, server.then = 5000, "is silent"
    assert fetch(server, tmp_path / "part", limits="silence=2").returncode != 0
    assert (tmp_path / "part").read_bytes() == OLD[:5000]
    server.then = "ends"
    assert fetch(server, tmp_path / "part").returncode == 0
    assert (tmp_path / "part").read_bytes() == OLD
    assert server.asked == WHOLE + REST


@pytest.mark.parametrize("command", ["fetch", "size_of"])
def test_a_server_that_never_answers_is_not_waited_for(tmp_path, command):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}/file"
        assert shell(f'silence=2 && {command} "$@"', address, tmp_path / "part").returncode != 0
    assert list(tmp_path.iterdir()) == []


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
