"""Tests of atomic writing: a file or folder appears complete or not at all, and only regular files are replaced."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vidm.files import append, atomic_dir, atomic_file, atomic_write, locked, read_json, regular_file, sha256_of


def write_text(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("new")


def write_bytes(path: Path) -> None:
    with atomic_file(path) as file:
        file.write(b"new")


def append_bytes(path: Path) -> None:
    append(path, b"new")


WRITERS: list[Callable[[Path], None]] = [write_text, write_bytes, append_bytes]


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folders" / "notes.txt"
    with atomic_write(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert everything_in(target.parent) == ["notes.txt"]


def test_the_temporary_file_is_hidden_in_the_same_folder_and_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "video.mp4") as temporary:
        temporary.touch()
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".mp4"


def write_half_a_file(target: Path, interruption: type[BaseException]) -> None:
    with atomic_write(target) as temporary:
        temporary.write_text("half of the n")
        raise interruption


def write_half_a_folder(target: Path, interruption: type[BaseException]) -> None:
    with atomic_dir(target) as temporary:
        (temporary / "00000.png").write_text("half")
        raise interruption


@pytest.mark.parametrize("interruption", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_keeps_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("old")
    with pytest.raises(interruption):
        write_half_a_file(target, interruption)
    assert target.read_text() == "old"
    assert everything_in(tmp_path) == ["notes.txt"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # the outer block ends last


def test_writing_a_file_over_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"), atomic_write(tmp_path):
        pass


def test_a_folder_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "frames"
    with atomic_dir(target) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a.txt").write_text("whole")
        assert not target.exists()
    assert everything_in(target.parent) == ["frames", "frames/deep", "frames/deep/a.txt"]


@pytest.mark.parametrize("interruption", [OSError, KeyboardInterrupt])
def test_an_interrupted_folder_is_removed(tmp_path: Path, interruption: type[BaseException]) -> None:
    with pytest.raises(interruption):
        write_half_a_folder(tmp_path / "frames", interruption)
    assert everything_in(tmp_path) == []


def test_an_empty_folder_is_filled_and_any_other_existing_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with atomic_dir(tmp_path / "empty") as temporary:
        (temporary / "a").touch()
    for taken in ("empty", "empty/a"):  # no longer empty, and a file
        with pytest.raises(ValueError, match=f"{taken} already exists"), atomic_dir(tmp_path / taken):
            pass
    assert everything_in(tmp_path) == ["empty", "empty/a"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path, write: Callable[[Path], None]) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write(tmp_path / "pipe")
    assert os.read(reader, 100) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert everything_in(tmp_path) == ["pipe"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_pipe_that_nobody_reads_is_an_error_and_not_a_hang(tmp_path: Path, write: Callable[[Path], None]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe is a pipe or socket that no process reads"):
        write(tmp_path / "pipe")


def test_a_device_is_written_to_and_its_error_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("the device would be replaced"))
    write_text(Path("/dev/null"))
    for write in WRITERS:
        with pytest.raises(OSError, match="/dev/full was not written: No space left on device"):
            write(Path("/dev/full"))


def test_output_to_stdout_follows_what_was_printed_before(tmp_path: Path) -> None:
    code = """
from vidm.files import append, atomic_write
print("before", flush=True)
with atomic_write("/dev/stdout") as temporary:
    temporary.write_text("whole\\n")
append("/dev/fd/1", b"row\\n")
print("after")
"""
    with (tmp_path / "printed").open("w") as printed:
        subprocess.run([sys.executable, "-c", code], stdout=printed, check=True)
    assert (tmp_path / "printed").read_text() == "before\nwhole\nrow\nafter\n"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("target", ["there", "deep/there", "missing"])
def test_a_link_in_its_folder_stays_and_its_target_is_written(
    tmp_path: Path, write: Callable[[Path], None], target: str
) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("there", "deep/there"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(target)
    write(tmp_path / "link")
    assert (tmp_path / "link").readlink() == Path(target)
    assert (tmp_path / target).read_text() == "new"


def refuse_links(folder: Path, write: Callable[[Path], None]) -> None:
    """Links out of `folder`; each is refused, and what it leads to stays as it is."""
    outside = folder.with_name("outside")
    outside.mkdir()
    (outside / "file").write_text("old")
    (folder / "loop").symlink_to("loop")
    (folder / "folder").symlink_to(outside)
    for name, target in {
        "absolute": outside / "file",
        "relative": "../outside/file",
        "new": "../outside/new",
        "device": "/dev/null",
        "chain": "absolute",
        "through": "folder/file",
    }.items():
        (folder / name).symlink_to(target)
    for name in ("absolute", "relative", "new", "device", "chain", "through", "loop"):
        with pytest.raises(ValueError, match=f"{name} is a link that leads out of its folder, to "):
            write(folder / name)
        assert (folder / name).is_symlink()
    assert everything_in(outside) == ["file"]
    assert (outside / "file").read_text() == "old"


@pytest.mark.parametrize("write", WRITERS)
def test_a_link_out_of_its_folder_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "out").mkdir()
    refuse_links(tmp_path / "out", write)


def fill_folder(path: Path) -> None:
    with atomic_dir(path) as temporary:
        (temporary / "a").touch()


def test_a_link_of_a_folder_follows_the_same_rule(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refuse_links(tmp_path / "out", fill_folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    fill_folder(tmp_path / "link")
    assert everything_in(tmp_path / "empty") == ["a"]


def test_a_folder_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "out").symlink_to(tmp_path / "disk")
    write_text(tmp_path / "elsewhere" / "out" / "file")
    assert (tmp_path / "disk" / "file").read_text() == "new"


def test_the_lock_of_a_folder_is_no_link_out_of_it_and_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".lock").symlink_to("../file")
    with pytest.raises(ValueError, match=r"\.lock is a link"), locked(tmp_path / "linked"):
        pass
    assert not (tmp_path / "file").exists()
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / ".lock")
    with pytest.raises(ValueError, match=r"\.lock is a pipe"), locked(tmp_path / "piped"):
        pass


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link", "/dev/zero"):
        for read in (regular_file, read_json, lambda path: sha256_of([path])):
            with pytest.raises(ValueError, match=f"{name} is a pipe or a device: give a regular file"):
                read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing"):
        regular_file(tmp_path / "missing")


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 10**6, b"\xff", b'{"a": ' * 10**5, b"1" * 10**5, b" " * 99 + b"1"])
def test_json_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "record.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"record\.json is not JSON that can be read: ") as refused:
        read_json(tmp_path / "record.json", largest=99 if text[:1] == b" " else 10**7)
    assert "\n" not in str(refused.value)
