"""What commands read and print: a file's name cannot control the terminal, a full disk under a log ends no run. Ours.

with console():
    print(f"skipped: {path}")
"""

import argparse
import os
import re
import reprlib
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TextIO

from vidm.files import is_full

LONGEST_TEXT = 1000  # characters of a value in a message
# How progress bars move the cursor: to the beginning of the line, or, in a text of its own, up.
_MOVES = re.compile(r"\r|(\x1b\[A)+\Z")


def printable(text: str) -> str:
    r"""Escape line ends, other control characters but tabs, and bytes that are not UTF-8, as \udcXX: one line. Ours."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def command_line() -> str:
    """Return the command that started this program, as it can be typed again, for a record. Ours."""
    return shlex.join(sys.argv)


def short(value: object) -> str:
    """A value from a file as text for a message: its beginning, whatever its length and nesting. Ours."""
    return value[:LONGEST_TEXT] if isinstance(value, str) else reprlib.repr(value)


class _Console:
    """A text stream that escapes what it is given, and drops what it cannot write while the disk is full.

    A text ends lines only at its end, because a line end within it may be part of a file's name. Several lines are
    several texts: print(*lines, sep="\\n").
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        moves = found[0] if (found := _MOVES.match(text)) else ""
        line = text[len(moves) :].rstrip("\n")
        escaped = moves + printable(line) + text[len(moves) + len(line) :]
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._full_disk_ignored():
            self._stream.write(escaped.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._full_disk_ignored():
            self._stream.flush()

    def close(self) -> None:
        """Drop what is still buffered: Python would find it at the end, and exit with 120."""
        try:
            self._stream.flush()
        except OSError as error:
            if not is_full(error):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _full_disk_ignored(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not is_full(error):
                raise


@contextmanager
def console() -> Iterator[None]:
    """Escape what is printed while the block runs, and drop it while the disk is full. Ours."""
    before = sys.stdout, sys.stderr
    with closing(_Console(sys.stdout)) as sys.stdout, closing(_Console(sys.stderr)) as sys.stderr:
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean NAME?" with the most similar known name; "" if no name is similar."""
    return "".join(f"; did you mean {similar}?" for similar in get_close_matches(name, known, 1, cutoff))


class CommandParser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, without the usage, and accepts no abbreviations.

    The meaning of an abbreviation would depend on the command, and change when a flag is added.
    """

    def __init__(self, description: str, **options: Any) -> None:
        super().__init__(description=description, allow_abbrev=False, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but an unknown flag is reported with the most similar one, which also has - in place of _."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for flag in self._option_string_actions if len(flag) > 2]
            written = unknown[0].split("=", 1)[0].replace("_", "-")
            meant = did_you_mean(written, flags, cutoff=0.75) if written.startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return options

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # allow_abbrev is only about flags with --: -n would still be taken for -ns.
        return [found for found in super()._get_option_tuples(option_string) if option_string.startswith(found[1])]

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}\n")


def typed_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> dict[str, str]:
    """Return the flags in a command by the names of their values, as they were typed: {"resolution": "-r"}. Ours."""
    words = (word.split("=", 1)[0] for word in (sys.argv[1:] if argv is None else argv))
    return {parser._option_string_actions[word].dest: word for word in words if word in parser._option_string_actions}


def given_path(text: str) -> Path:
    """The type of an argument that is a path: an empty one would mean the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: give a path")
    return Path(text)
