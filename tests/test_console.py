"""Tests of printing: no name of a file reaches the terminal as a control character, and progress bars still work."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from vidm.console import CommandParser, console, printable
from vidm.runtime import exit_on_user_error
from vidm.video_io import write_video

ROOT = Path(__file__).parent.parent
# A title, colours, the end of the line, C1's control sequence, the direction of text, and a byte that is not UTF-8.
NAME = "a\x1b]0;title\x07\x1b[31m\r\n\x9b2J\u202eb\udce4"
ESCAPED = r"a\x1b]0;title\x07\x1b[31m\r\n\x9b2J\u202eb\udce4"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


class Terminal(io.TextIOWrapper):
    """A UTF-8 stream in memory."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_control_characters_are_escaped_and_other_text_is_not() -> None:
    assert printable(NAME) == printable(printable(NAME)) == ESCAPED
    text = "\xdcberraschung/\u0432\u0438\u0434\u0435\u043e \u732b.mp4:\t1 x 2"
    assert printable(text) == text


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028"])
@pytest.mark.parametrize("write", [print, tqdm.write])
def test_what_is_printed_is_one_line_whatever_the_name_of_a_file(
    monkeypatch: pytest.MonkeyPatch, end: str, write
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console():
        write(f"skipped: a{end}error: b.mp4", file=sys.stderr)
    assert terminal.text() == f"skipped: a{end.encode('unicode_escape').decode()}error: b.mp4\n"


def test_several_lines_are_several_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with console():
        print("first", "second", sep="\n")
        sys.stdout.write("third\n\n")
    assert terminal.text() == "first\nsecond\nthird\n\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("write", [print, tqdm.write])
def test_what_is_printed_is_escaped(monkeypatch: pytest.MonkeyPatch, stream: str, write) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, stream, terminal)
    with console():
        write(f"skipped: {NAME}", file=getattr(sys, stream))
    assert terminal.text() == f"skipped: {ESCAPED}\n"


def test_a_terminal_that_is_not_utf8_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal("ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    with console():
        print("\u0432\u0438\u0434\u0435\u043e\udce4")
    assert terminal.text() == "\\u0432\\u0438\\u0434\\u0435\\u043e\\udce4\n"


def test_nested_bars_move_the_cursor_as_without_escaping(monkeypatch: pytest.MonkeyPatch) -> None:
    def bars() -> str:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with console() if escaped else open(os.devnull):
            for _ in tqdm(range(2), desc="outer", mininterval=0, bar_format="{desc} {n}"):
                for _ in tqdm(range(2), desc="inner", mininterval=0, leave=False, bar_format="{desc} {n}"):
                    pass
        return terminal.text()

    escaped = False
    plain = bars()
    escaped = True
    assert bars() == plain
    assert "\x1b[A" in plain


def test_the_description_of_a_bar_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console(), tqdm(total=1, desc=NAME) as bar:
        bar.update()
    assert ESCAPED in terminal.text()
    assert not CONTROL.search(terminal.text().replace("\r", ""))


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_an_error_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str], kind: type) -> None:
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        raise kind(f"{NAME}\nsecond line is damaged")
    assert capsys.readouterr().err == f"error: {ESCAPED}\\nsecond line is damaged\n"


def test_an_error_without_a_message_has_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        raise ValueError
    assert capsys.readouterr().err == "error: ValueError\n"


def test_an_error_of_the_system_names_the_file_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        tmp_path.mkdir()
    assert capsys.readouterr().err == f"error: {tmp_path}: File exists\n"


def test_a_mistake_in_a_command_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        CommandParser("a command").parse_args([NAME])
    assert capsys.readouterr().err == f"error: unrecognized arguments: {ESCAPED}\n"


def videos_of_hostile_names(folder: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    for name in ("first", "second", "third", "fourth"):
        write_video(folder / f"{name}{NAME}.npy", frames)
    (folder / f"damaged{NAME}.npy").write_bytes(b"")
    (folder / f"other{NAME}.mpg").write_bytes(b"")


@pytest.mark.parametrize("command", ["evaluate_FVD.py", "scripts/check_dataset.py", "scripts/preprocess_dataset.py"])
def test_commands_on_folders_of_hostile_names_print_them_escaped_and_write_their_files(
    tmp_path: Path, command: str
) -> None:
    folder = tmp_path / f"videos{NAME}"
    folder.mkdir()
    videos_of_hostile_names(folder)
    json_path, page = tmp_path / "a.json", tmp_path / "a.html"
    flags, written = {
        "evaluate_FVD.py": (
            ["-dir1", folder, "-dir2", folder, "-n", 4, "-i3d", "random", "--json", json_path, "--report", page],
            {"a.json", "a.html"},
        ),
        "scripts/check_dataset.py": ([folder, "--out", tmp_path / "a.png"], {"a.png"}),
        "scripts/preprocess_dataset.py": (
            ["--data", folder, "--out", tmp_path / "a", "--frames", "--workers", 1],
            {"a"},
        ),
    }[command]
    line = [sys.executable, str(ROOT / command), *map(str, flags)]
    done = subprocess.run(line, capture_output=True, env=os.environ | {"PYTHONUTF8": "1"}, timeout=300)
    printed = (done.stdout + done.stderr).decode().replace("\r", "")
    assert done.returncode == 0, printed
    assert "Traceback" not in printed
    assert f"damaged{ESCAPED}.npy" in printed
    assert not CONTROL.search(printed.replace("\x1b[A", ""))
    assert {path.name for path in tmp_path.glob("a*")} == written


@pytest.mark.parametrize("script", ["check_dataset", "convert_checkpoint", "pack_dataset", "preprocess_dataset"])
def test_an_empty_path_does_not_mean_the_working_folder(script, tmp_path):
    path = ROOT / "scripts" / f"{script}.py"
    paths = ["", "x.pt"] if script == "convert_checkpoint" else ["--data", "", "--out", "x", "--frames"]
    paths = [""] if script == "check_dataset" else paths[: 4 if script == "pack_dataset" else None]
    done = subprocess.run([sys.executable, str(path), *paths], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: argument \S+: is empty: give a path\n", done.stderr)
    assert not list(tmp_path.iterdir())
