"""The clips in UCF-101's official lists of splits. Ours.

lists = ucf_lists(Path("data/UCF-101"))                        # {"train1": .../trainlist01.txt, ...}
listing = ucf_split(Path("data/UCF-101"), "train1", lists)
"""

import os
import re
from pathlib import Path

from vidm.files import regular_file
from vidm.folder_walk import Listing, find_clips
from vidm.video_io import VIDEO_SUFFIXES, natural_key

UCF_LISTS = "ucfTrainTestlist"
MAX_LIST_BYTES = 1 << 22  # the longest of UCF-101's has about half a megabyte
UCF_LIST = re.compile(r"(train|test)list0?([0-9]+)\.txt")


def ucf_lists(root: Path) -> dict[str, Path]:
    """Return the official lists next to the class folders or one level up, by their splits. Ours."""
    above = Path(os.path.abspath(root)).parent
    for folder in (root / UCF_LISTS, root, above / UCF_LISTS, above):
        names = sorted(os.listdir(folder)) if folder.is_dir() and os.access(folder, os.R_OK) else []
        lists = {f"{m[1]}{m[2]}": folder / m[0] for m in map(UCF_LIST.fullmatch, names) if m}
        if lists:
            return lists
    return {}


def _class_and_name(path: Path) -> tuple[str, str]:
    """Return the key that matches a clip to a line of a list, even if the video was converted to mp4 or frames."""
    return path.parent.name, path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def _lines_of(path: Path) -> list[str]:
    with regular_file(path).open("rb") as file:
        data = file.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise ValueError(f"{path} has more than {MAX_LIST_BYTES} bytes: it is not one of UCF-101's lists; remove it")
    return data.decode("utf-8", "surrogateescape").splitlines()


def _without_class(line: str) -> str:
    """Return a line without the number of the class, with which those of a training list end."""
    words = line.strip().rsplit(maxsplit=1)
    return words[0] if len(words) == 2 and words[1].isascii() and words[1].isdigit() else line.strip()


def ucf_split(root: Path, split: str, lists: dict[str, Path]) -> Listing:
    """List the clips that one of the official lists names; a listed clip that does not exist is bad.

    Raises ValueError for a file that is no list. Ours.
    """
    existing: dict[tuple[str, str], Path] = {}
    everything = find_clips(root, "both")
    for path in everything.clips:
        existing.setdefault(_class_and_name(path), path)
    classes = {name for name, _ in existing}
    listed = [Path(line) for line in dict.fromkeys(map(_without_class, _lines_of(lists[split]))) if line]
    clips = [existing[key] for key in map(_class_and_name, listed) if key in existing]
    missing = [path for path in listed if _class_and_name(path) not in existing]
    missing_classes = sorted({path.parent.name for path in missing} - classes)
    bad = list(everything.bad)
    for path in missing:
        what = f"the folder of class {path.parent.name}" if path.parent.name in missing_classes else "the file"
        bad.append((root / path, f"{root / path}: listed in {lists[split].name}, but {what} does not exist"))
    used = {path.parent.name for path in clips}
    found = f"UCF-101, {lists[split].name}: {len(clips)} of the {len(listed)} videos listed, {len(used)} classes"
    if missing_classes:
        found += f"; missing: {', '.join(missing_classes)}"
    found += f"; passed over: {everything.passed_over}" if everything.passed_over else ""
    return Listing(sorted(clips, key=natural_key), bad, found, everything.passed_over)
