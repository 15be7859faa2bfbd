"""What is remembered of a video is what looking at it again would find."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vidm import probe_cache
from vidm.probe_cache import remembered


class Counted:
    """Reads the number that a file holds, a text where it holds none, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, path: Path) -> int | str:
        self.asked.append(path.name)
        if path.is_dir():
            return len(list(path.iterdir()))
        text = path.read_text()
        return int(text) if text.isdigit() else f"{path}: no number"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files and a folder of two, with a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    (data / "frames").mkdir(parents=True)
    for name, number in {"a": "1", "b": "2", "frames/0": "x", "frames/1": "x"}.items():
        (data / name).write_text(number)
    return [data / "a", data / "b", data / "frames"]


def ask(files: list[Path]) -> tuple[list[int | str], list[str]]:
    counted = Counted()
    return remembered(files[0].parent, files, counted), counted.asked


def test_what_is_known_is_not_asked_again_and_is_the_same(files: list[Path]) -> None:
    assert ask(files) == ([1, 2, 2], ["a", "b", "frames"])
    assert ask(files) == ([1, 2, 2], [])
    assert ask(files[::-1]) == ([2, 2, 1], [])


def replace_keeping_size_and_times(path: Path) -> None:
    state = path.stat()
    other = path.with_name("other")
    other.write_text("9")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    ("change", "expected", "asked"),
    [
        (lambda data: (data / "a").write_text("77"), [77, 2, 2], ["a"]),
        (lambda data: replace_keeping_size_and_times(data / "a"), [9, 2, 2], ["a"]),
        (lambda data: (data / "frames" / "2").write_text("x"), [1, 2, 3], ["frames"]),
        (lambda data: (data / "frames" / "1").write_text("cut"), [1, 2, 2], ["frames"]),
        (lambda data: (data / "frames" / "1").unlink(), [1, 2, 1], ["frames"]),
    ],
    ids=["longer file", "same size and times", "a frame more", "a frame rewritten", "a frame less"],
)
def test_what_has_changed_is_looked_at_again(
    files: list[Path], change: Callable[[Path], object], expected: list[int], asked: list[str]
) -> None:
    ask(files)
    change(files[0].parent)
    assert ask(files) == (expected, asked)
    assert ask(files) == (expected, [])


def test_a_reason_is_asked_for_again(files: list[Path]) -> None:
    files[0].write_text("none")
    reason = f"{files[0]}: no number"
    assert ask(files) == ([reason, 2, 2], ["a", "b", "frames"])
    assert ask(files) == ([reason, 2, 2], ["a"])


def test_another_reader_looks_again(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ask(files)
    monkeypatch.setattr(probe_cache.av, "__version__", "0.0")
    assert ask(files)[1] == ["a", "b", "frames"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"readers": "x"}', '{"readers": "x", "found": {"a": 1}}', '{"found": []}', "\udcff"]
)
def test_a_damaged_cache_is_no_cache(files: list[Path], tmp_path: Path, text: str) -> None:
    ask(files)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    kept.write_text(text, "utf-8", "surrogateescape")
    assert ask(files) == ([1, 2, 2], ["a", "b", "frames"])
    assert ask(files)[1] == []


@pytest.mark.parametrize("home", ["a file", "relative"])
def test_without_a_place_to_keep_it_all_is_asked_every_time(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", home if home == "relative" else str(tmp_path / home))
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        assert ask(files) == ([1, 2, 2], ["a", "b", "frames"])
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_written_beside_the_data(files: list[Path], tmp_path: Path) -> None:
    before = sorted((tmp_path / "data").rglob("*"))
    ask(files)
    assert sorted((tmp_path / "data").rglob("*")) == before
