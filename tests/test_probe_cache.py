"""Tests of the cache: a cached number equals the one that probing again would find."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vidm import probe_cache
from vidm.probe_cache import probe_all


class Counted:
    """Read the number in a file, or return the reason if there is none; `asked` lists the files of all calls."""

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
    """Two files and a folder of two files, with a new cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    (data / "frames").mkdir(parents=True)
    for name, number in {"a": "1", "b": "2", "frames/0": "x", "frames/1": "x"}.items():
        (data / name).write_text(number)
    return [data / "a", data / "b", data / "frames"]


def ask(files: list[Path]) -> tuple[list[int | str], list[str]]:
    counted = Counted()
    return probe_all(files[0].parent, files, counted), counted.asked


def test_a_cached_number_is_the_same_and_is_not_probed_again(files: list[Path]) -> None:
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
    ids=["longer file", "same size and times", "added frame", "rewritten frame", "removed frame"],
)
def test_a_changed_file_is_probed_again(
    files: list[Path], change: Callable[[Path], object], expected: list[int], asked: list[str]
) -> None:
    ask(files)
    change(files[0].parent)
    assert ask(files) == (expected, asked)
    assert ask(files) == (expected, [])


def test_a_file_without_a_number_is_probed_again(files: list[Path]) -> None:
    files[0].write_text("none")
    reason = f"{files[0]}: no number"
    assert ask(files) == ([reason, 2, 2], ["a", "b", "frames"])
    assert ask(files) == ([reason, 2, 2], ["a"])


@pytest.mark.parametrize("reader", ["PyAV", "this package"])
def test_another_version_of_pyav_or_of_the_cache_probes_again(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    ask(files)
    if reader == "PyAV":
        monkeypatch.setattr(probe_cache.av, "__version__", "0.0")
    else:
        monkeypatch.setattr(probe_cache, "CACHE_VERSION", probe_cache.CACHE_VERSION + 1)
    assert ask(files) == ([1, 2, 2], ["a", "b", "frames"])
    assert ask(files)[1] == []


def test_touching_a_source_file_of_the_package_does_not_probe_again(files: list[Path]) -> None:
    ask(files)
    source = Path(probe_cache.__file__).with_name("posgn.py")
    state = source.stat()
    os.utime(source)
    try:
        assert ask(files) == ([1, 2, 2], [])
    finally:
        os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_cache_in_the_older_format_with_a_hash_of_the_sources_is_ignored(files: list[Path], tmp_path: Path) -> None:
    ask(files)
    (cached,) = (tmp_path / "cache").rglob("*.json")
    content = json.loads(cached.read_text())
    content["readers"] = f"PyAV {probe_cache.av.__version__} {'0' * 64}"
    cached.write_text(json.dumps(content))
    assert ask(files) == ([1, 2, 2], ["a", "b", "frames"])
    assert ask(files)[1] == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"readers": "x"}', '{"readers": "x", "found": {"a": 1}}', '{"found": []}', "\udcff"]
)
def test_a_damaged_cache_is_ignored(files: list[Path], tmp_path: Path, text: str) -> None:
    ask(files)
    (cached,) = (tmp_path / "cache").rglob("*.json")
    cached.write_text(text, "utf-8", "surrogateescape")
    assert ask(files) == ([1, 2, 2], ["a", "b", "frames"])
    assert ask(files)[1] == []


@pytest.mark.parametrize("number", [0, -1, 10**9, 10**400, 1.5, True, "1", None, [1], {}])
def test_a_cached_number_that_no_video_has_is_probed_again(files: list[Path], tmp_path: Path, number: object) -> None:
    ask(files)
    (cached,) = (tmp_path / "cache").rglob("*.json")
    content = json.loads(cached.read_text())
    content["found"][str(files[1])][1] = number
    cached.write_text(json.dumps(content))
    assert ask(files) == ([1, 2, 2], ["b"])


@pytest.mark.parametrize("text", ["[" * 10**6, '{"found": ' * 10**5])
def test_a_deeply_nested_cache_is_ignored(files: list[Path], tmp_path: Path, text: str) -> None:
    ask(files)
    (cached,) = (tmp_path / "cache").rglob("*.json")
    cached.write_text(text)
    assert ask(files) == ([1, 2, 2], ["a", "b", "frames"])


def test_a_cache_that_is_a_pipe_or_a_link_out_of_its_folder_is_not_used(files: list[Path], tmp_path: Path) -> None:
    ask(files)
    (cached,) = (tmp_path / "cache").rglob("*.json")
    cached.unlink()
    os.mkfifo(cached)
    assert ask(files) == ask(files) == ([1, 2, 2], ["a", "b", "frames"])
    cached.unlink()
    cached.symlink_to(files[0])
    assert ask(files) == ([1, 2, 2], ["a", "b", "frames"])
    assert files[0].read_text() == "1"


@pytest.mark.parametrize("home", ["a file", "relative"])
def test_without_a_writable_cache_every_call_probes(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", home if home == "relative" else str(tmp_path / home))
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        assert ask(files) == ([1, 2, 2], ["a", "b", "frames"])
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_written_next_to_the_data(files: list[Path], tmp_path: Path) -> None:
    before = sorted((tmp_path / "data").rglob("*"))
    ask(files)
    assert sorted((tmp_path / "data").rglob("*")) == before
