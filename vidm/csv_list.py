"""The clips that a csv file lists: whole videos or parts of them, with classes and splits. Ours.

    path,start,length,class,split
    juggling/a.mp4,0,64,juggling,train
    juggling/a.mp4,64,64,juggling,test

    clips, found = list_clips(Path("data/clips.csv"), "train", lambda path: probe(path).num_frames)
    clips[0]                          # CutClip(path=Path("data/juggling/a.mp4[0:64]"), length=64, label="juggling")

Paths are relative to the folder of the file. Everything that is wrong with a row is a ValueError that names its line.
"""

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from vidm.files import regular_file
from vidm.folder_walk import count_of
from vidm.packs import pack_of
from vidm.probe_cache import probe_all
from vidm.segments import segment_path
from vidm.video_io import natural_key

LIST_NAME = "clips.csv"  # in a folder, with --layout csv
COLUMNS = ("path", "start", "length", "class", "split")
MAX_BYTES = 1 << 28  # some million rows


class Row(NamedTuple):
    """A clip: `length` frames of a video from frame `start` on, to its end if None; `where` names the file and line."""

    where: str
    path: Path
    start: int
    length: int | None
    label: str
    split: str


class CutClip(NamedTuple):
    """The path of a clip, its number of frames or the reason why its video cannot be read, and its class."""

    path: Path
    length: int | str
    label: str


def is_list(path: str | Path) -> bool:
    """Return whether a path is that of a list of clips. Ours."""
    return Path(path).suffix.lower() == ".csv" and not Path(path).is_dir()


def _lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield where each row is and its values. Raises ValueError for what is not csv in UTF-8."""
    with regular_file(file).open("rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{file} has more than {MAX_BYTES >> 20} MiB: it is not a list of clips")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}, line {line}: is not UTF-8; save the list in this encoding") from None
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        for values in reader:
            if values:
                yield f"{file}, line {reader.line_num}", values
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: is not csv ({error})") from None


def _columns(where: str, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    known = f"the first line names the columns, with commas between them: path, and any of {', '.join(COLUMNS[1:])}"
    for name in names:
        if name not in COLUMNS:
            raise ValueError(f"{where}: unknown column {name!r}; {known}")
        if names.count(name) > 1:
            raise ValueError(f"{where}: column {name} is there twice; {known}")
    if "path" not in names:
        raise ValueError(f"{where}: there is no column path; {known}")
    return names


def _number(where: str, name: str, text: str) -> int | None:
    if not text.strip():
        return None
    if not re.fullmatch("[0-9]{1,9}", text.strip()):
        raise ValueError(f"{where}: {name} is {text!r}; give a number of frames, from 0 on")
    return int(text)


def _read_rows(file: Path) -> list[Row]:
    rows, columns = [], None
    for where, values in _lines(file):
        if columns is None:
            columns = _columns(where, values)
            continue
        if len(values) != len(columns):
            numbers = f"{count_of(len(values), 'value')} for {count_of(len(columns), 'column')}"
            raise ValueError(f"{where}: has {numbers} (quote names with commas)")
        row = dict(zip(columns, values, strict=True))
        for name in ("path", "class", "split"):
            if not row.get(name, name).strip():
                raise ValueError(f"{where}: its {name} is empty")
        start, length = (_number(where, name, row.get(name, "")) for name in ("start", "length"))
        if length == 0:
            raise ValueError(f"{where}: length is 0; give 1 or more, or nothing for all frames from the start on")
        rows.append(
            Row(where, file.parent / row["path"], start or 0, length, row.get("class", ""), row.get("split", ""))
        )
    if not rows:
        raise ValueError(f"{file} lists no clips")
    return rows


def _rows_of_split(file: Path, rows: list[Row], split: str) -> list[Row]:
    chosen = [row for row in rows if not split or row.split == split]
    if not chosen:
        splits = list(dict.fromkeys(row.split for row in rows))
        choices = f"choose from {', '.join(splits[:10])}" if all(splits) else "it has no column split"
        raise ValueError(f"--split {split}: {file} has no such split; {choices}")
    return chosen


def _path_of(row: Row, num_frames: int) -> tuple[Path, int]:
    """Return the path and number of frames of a row's clip. Raises ValueError if its video has fewer frames."""
    stop = num_frames if row.length is None else row.start + row.length
    if row.start >= num_frames or stop > num_frames:
        wanted = f"frames {row.start} to {stop - 1} are" if row.start < stop else f"start {row.start} is"
        raise ValueError(f"{row.where}: {wanted} not in {row.path}, which has {num_frames} frames, counted from 0")
    if (row.start, stop) == (0, num_frames):
        return row.path, num_frames
    path = segment_path(row.path, row.start, stop)
    if os.path.lexists(path):
        raise ValueError(f"{row.where}: its clip would have the path of another file, {path}; rename that")
    return path, stop - row.start


def _cut(rows: list[Row], lengths: Mapping[Path, int | str]) -> list[CutClip]:
    """Return the clips of rows, given each video's number of frames, or the reason why it cannot be read."""
    clips: list[CutClip] = []
    known: dict[tuple[Path, int, int | None], str] = {}
    for row in rows:
        found = lengths[row.path]
        path, length = (row.path, found) if isinstance(found, str) else _path_of(row, found)
        # Of a video that cannot be read, only equal rows are known to be of the same clip.
        key = (path, row.start, row.length) if isinstance(length, str) else (path, 0, 0)
        if key in known:
            raise ValueError(f"{row.where}: is the same clip as {known[key]}: {path}; remove one")
        known[key] = row.where
        clips.append(CutClip(path, length, row.label))
    return clips


def _describe(clips: list[CutClip], num_videos: int, splits: list[str], split: str) -> str:
    found = f"{split + ': ' if split else ''}{count_of(len(clips), 'clip')} of {count_of(num_videos, 'video')}"
    if classes := {clip.label for clip in clips} - {""}:
        found += f", {len(classes)} class{'' if len(classes) == 1 else 'es'}"
    return found + (f" (all of it is used; --split chooses from {', '.join(splits[:10])})" if splits else "")


def list_clips(
    file: Path, split: str, probe: Callable[[Path], int | str], progress: bool = False
) -> tuple[list[CutClip], str]:
    """Return the clips that a list names, or those of a split, in natural order, and their description in one line.

    `probe` returns a video's number of frames, or the reason why it cannot be read; each video is opened once. Raises
    ValueError or FileNotFoundError, naming the line, for a row that is malformed, is of a video that does not exist or
    of frames that it does not have, or is the same clip as another row; ValueError for an unknown split. Ours.
    """
    everything = _read_rows(file)
    rows = _rows_of_split(file, everything, split)
    paths = list(dict.fromkeys(row.path for row in rows))
    missing = {path for path in paths if not path.exists() and not pack_of(path)}
    for row in rows:
        if row.path in missing:
            raise FileNotFoundError(f"{row.where}: no such file: {row.path}; paths are relative to the list's folder")
    lengths = dict(zip(paths, probe_all(file, paths, probe, progress), strict=True))
    clips = sorted(_cut(rows, lengths), key=lambda clip: natural_key(clip.path))
    splits = [] if split else list(dict.fromkeys(row.split for row in rows if row.split))
    return clips, _describe(clips, len(paths), splits, split)
