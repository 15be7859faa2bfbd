"""List the clips in a folder of videos. Ours.

A clip is a video file or, in a folder without any video file, a folder that directly contains frames, at any depth. A
flat folder, one folder per class, CLEVRER's train/video_00000-01000/video_00000.mp4 and the frame folders of Sky
Time-lapse and TaiChi-HD are all recognized without a flag. So is a pack (vidm.packs), whose clips have the paths that
they had in the packed folder. A split is a subfolder (train, val, test) or one of UCF-101's official lists.

    index = index_clips("data/CLEVRER", min_frames=128, split="train")
    print(index.found, len(index.paths), index.skipped_message())
"""

import os
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote
from tarfile import is_tarfile
from zipfile import is_zipfile

from vidm.console import printable
from vidm.distributed import on_main
from vidm.files import atomic_write, regular_file
from vidm.folder_walk import Listing, Skipped, count_of, find_clips
from vidm.packs import Pack, is_pack, list_pack, pack_of, probe
from vidm.probe_cache import probe_all
from vidm.video_io import VIDEO_SUFFIXES, VideoError, natural_key

LAYOUTS = ("auto", "videos", "frames", "both", "ucf101")
SKIPPED_SHOWN = 10
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")
UCF_LISTS = "ucfTrainTestlist"
MAX_LIST_BYTES = 1 << 22  # the longest of UCF-101's has about half a megabyte
UCF_LIST = re.compile(r"(train|test)list0?([0-9]+)\.txt")


@dataclass(frozen=True)
class ClipIndex:
    """The usable clips of a folder in natural order: `num_frames[i]` belongs to `paths[i]`.

    `skipped` contains (path, reason) of clips that are unreadable, too short or listed but missing; `bad` contains the
    same without those that are only too short. `longest` is the largest number of frames of any readable clip, `found`
    a one-line description of the folder, and `passed_over` the part of it that says what is not used.
    """

    root: Path
    paths: list[Path]
    num_frames: list[int]
    skipped: Skipped
    bad: Skipped = field(default_factory=list)
    longest: int = 0
    found: str = ""
    passed_over: str = ""

    def skipped_message(self) -> str:
        """Return a line for each of the first ten skipped clips, then their number; empty if no clip was skipped."""
        lines = [f"skipped: {reason}" for _, reason in self.skipped[:SKIPPED_SHOWN]]
        if len(self.skipped) > SKIPPED_SHOWN:
            lines.append(f"{len(self.skipped)} of {len(self.skipped) + len(self.paths)} clips were skipped")
        return "\n".join(map(printable, lines))


def _where_data_comes_from(root: Path) -> str:
    return (
        f"generate synthetic data with `python scripts/make_synthetic_dataset.py --out {quote(str(root))}`, "
        "or put the CLEVRER videos there: http://clevrer.csail.mit.edu"
    )


# UCF-101's official splits


def _ucf_lists(root: Path) -> dict[str, Path]:
    """Return the official lists, next to the class folders or one level up: {"train1": .../trainlist01.txt, ...}."""
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


def _ucf_split(root: Path, split: str, lists: dict[str, Path]) -> Listing:
    """List the clips that one of the official lists names; a listed clip that does not exist is bad."""
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


# The layouts


def _list_packed(root: Path, layout: str, split: str) -> Listing:
    """List a pack's clips, or those that were in the subfolder `split` of the packed folder."""
    if layout != "auto":
        raise ValueError(f"--layout {layout}: {root} is a pack, which has no layouts: omit --layout")
    clips = [path for path in list_pack(root) if not split or path.relative_to(root).parts[:1] == (split,)]
    if split and not clips:
        raise ValueError(f"--split {split}: the pack {root} has no clips from a folder of that name")
    return Listing(clips, [], f"{split + ': ' if split else ''}{count_of(len(clips), 'clip')} of a pack")


def _list_clips(root: Path, layout: str, split: str) -> Listing:
    if layout not in LAYOUTS:
        raise ValueError(f"--layout {layout}: choose from {', '.join(LAYOUTS)}")
    if Path(split).is_absolute() or ".." in Path(split).parts:  # a checkpoint's split is taken on resuming
        raise ValueError(f"--split {split}: it leads out of {root}; give the name of a folder in it")
    if is_pack(root):
        return _list_packed(root, layout, split)
    lists = _ucf_lists(root)
    is_folder = bool(split) and (root / split).is_dir()
    if layout == "ucf101" or (layout == "auto" and not is_folder and split in lists):
        if not lists:
            raise ValueError(f"{root}: no {UCF_LISTS}/trainlist01.txt in or next to it; get UCF-101's official lists")
        if split not in lists:
            raise ValueError(f"--split {split}: choose one of UCF-101's lists: {', '.join(lists)}")
        return _ucf_split(root, split, lists)
    if split and not is_folder:
        splits = [path.name for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."] + list(lists)
        raise ValueError(f"--split {split}: {root} has no such folder or list; choose from {', '.join(splits[:10])}")
    folder = root / split
    splits = [name for name in SPLIT_FOLDERS if (folder / name).is_dir()] + list(_ucf_lists(folder))
    hint = f" (all of it is used; --split chooses from {', '.join(splits)})" if splits else ""
    listing = find_clips(folder, layout, hint)
    return listing._replace(found=f"{split}: {listing.found}") if split else listing


# Public names


def _num_frames_or_reason(path: Path, pack: Pack | None = None) -> int | str:
    try:
        return (pack.probe if pack else probe)(path).num_frames
    except (VideoError, FileNotFoundError) as error:
        return str(error)


def _survey(root: Path, min_frames: int, layout: str, split: str, progress: bool) -> ClipIndex:
    clips, bad, found, passed_over = _list_clips(root, layout, split)
    if pack := pack_of(root):  # its index has the lengths
        lengths = [_num_frames_or_reason(path, pack) for path in clips]
    else:
        lengths = probe_all(root / split, clips, _num_frames_or_reason, progress)
    skipped, bad = list(bad), list(bad)
    paths, num_frames = [], []
    for path, length in zip(clips, lengths, strict=True):
        if isinstance(length, str):
            skipped.append((path, length))
            bad.append((path, length))
        elif length < min_frames:
            skipped.append((path, f"{path}: has {length} frames, {min_frames} are needed"))
        else:
            paths.append(path)
            num_frames.append(length)
    longest = max((length for length in lengths if isinstance(length, int)), default=0)
    return ClipIndex(root, paths, num_frames, skipped, bad, longest, printable(found), printable(passed_over))


def refuse_archive(path: Path) -> None:
    """Raise ValueError if a file is a zip or tar archive. Ours."""
    if is_zipfile(path) or is_tarfile(path):
        raise ValueError(f"{path} is an archive: unpack it and give the folder with its files")


def _existing_folder(root: str | Path) -> Path:
    """Return the folder. Every process checks that it exists, because nodes may have different disks."""
    root = Path(root)
    if root.is_file():
        refuse_archive(root)
        is_video = root.name.lower().endswith(VIDEO_SUFFIXES)
        raise ValueError(
            f"{root} is {'one video' if is_video else 'a file'}: give a folder of videos, such as {root.parent}"
        )
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a pipe or a device: give a folder of videos")
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}; {_where_data_comes_from(root)}")
    return root


def survey_clips(
    root: str | Path, min_frames: int = 1, layout: str = "auto", split: str = "", progress: bool = False
) -> ClipIndex:
    """List every clip below a folder, or of its split; hidden and other files are ignored.

    The layout `videos` uses only video files, `frames` only folders of frames, `both` both, and `ucf101` the clips of
    an official list (splits train1 to train3, test1 to test3). `auto` uses folders of frames only if there is no video
    file: images beside videos are taken for thumbnails. Clips with fewer than `min_frames` frames and unreadable clips
    are skipped, possibly all. With `progress`, a bar is shown after three seconds. With several processes, all must
    call this; the main one opens the videos, and all get the same index. Raises FileNotFoundError for a missing folder,
    ValueError for a file and for an unknown layout or split. Ours.
    """
    return on_main(partial(_survey, _existing_folder(root), min_frames, layout, split, progress), ClipIndex)


def _nothing_found(folder: Path, passed_over: str) -> str:
    nothing = f"no videos and no folders of frames in {folder}"
    if not passed_over:
        return f"{nothing}; {_where_data_comes_from(folder)}"
    advice = "give another --layout" if "--layout" in passed_over else "convert videos to mp4 and images to png"
    return f"{nothing}, passed over: {passed_over}; {advice}"


def _refuse_bad_fraction(index: ClipIndex, max_bad_fraction: float, bad_list: Path) -> None:
    total = len(index.paths) + len(index.skipped)
    if len(index.bad) <= max_bad_fraction * total:
        return
    with atomic_write(bad_list) as temporary:
        lines = [reason.replace("\n", "\\n") for _, reason in index.bad]  # the name of a file may have line ends
        temporary.write_text("\n".join(lines) + "\n", "utf-8", "surrogateescape")
    raise ValueError(
        f"{len(index.bad)} of the {total} clips in {index.root} cannot be read, more than the allowed fraction "
        f"{max_bad_fraction:g} (--max-bad-fraction): they are listed in {bad_list}; repair or remove them"
    )


def index_clips(
    root: str | Path,
    min_frames: int = 1,
    layout: str = "auto",
    split: str = "",
    max_bad_fraction: float = 1.0,
    bad_list: str | Path = "bad_videos.txt",
    progress: bool = False,
) -> ClipIndex:
    """List the clips of a folder as survey_clips does, and require at least one.

    Unreadable and short clips are skipped: the caller may print `skipped_message()`. If more than `max_bad_fraction`
    of all clips are unreadable or missing, their list is written to the file `bad_list`, one per line. Raises
    ValueError in that case, and if no clip is usable; FileNotFoundError for a missing folder. Ours.
    """
    root = _existing_folder(root)

    def usable() -> ClipIndex:
        index = _survey(root, min_frames, layout, split, progress)
        if not index.paths and not index.skipped:
            raise ValueError(_nothing_found(root / split, index.passed_over))
        _refuse_bad_fraction(index, max_bad_fraction, Path(bad_list))
        others = f"; passed over: {index.passed_over}" if index.passed_over else ""
        if not index.paths and index.longest == 0:
            raise ValueError(
                f"none of the {len(index.bad)} videos in {root} can be read; the first: {index.bad[0][1]}{others}"
            )
        if not index.paths:
            raise ValueError(
                f"no video in {root} has the {min_frames} frames asked for, the longest has {index.longest}: "
                f"ask for at most {index.longest}, including those that --frame-stride skips{others}"
            )
        return index

    return on_main(usable, ClipIndex)
