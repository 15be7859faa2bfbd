"""Tests of atomic writing: a file or folder appears complete or not at all."""

from pathlib import Path

import pytest

from vidm.files import atomic_dir, atomic_write


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
