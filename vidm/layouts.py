"""List the clips in a folder of videos. Ours.

A clip is a video file or, in a folder without any video file, a folder that directly contains frames, at any depth. A
flat folder, one folder per class, CLEVRER's train/video_00000-01000/video_00000.mp4 and the frame folders of Sky
Time-lapse and TaiChi-HD are all recognized without a flag. So is a pack (vidm.packs), whose clips have the paths that
they had in the packed folder. A split is a subfolder (train, val, test) or one of UCF-101's official lists. A csv file
(vidm.csv_list) lists videos or parts of them, with their classes and splits.

    index = index_clips("data/CLEVRER", min_frames=128, split="train")
    print(index.found, len(index.paths), index.skipped_message())
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shlex import quote
from tarfile import is_tarfile
from zipfile import is_zipfile

from vidm.console import printable
from vidm.csv_list import LIST_NAME, CutClip, is_list, list_clips
from vidm.distributed import on_main
from vidm.files import atomic_write
from vidm.folder_walk import Listing, Skipped, count_of, find_clips
from vidm.packs import Pack, is_pack, list_pack, pack_of, probe
from vidm.probe_cache import probe_all
from vidm.settings import arguments_named
from vidm.ucf101 import UCF_LISTS, ucf_lists, ucf_split
from vidm.video_io import VIDEO_SUFFIXES, VideoError

LAYOUTS = ("auto", "videos", "frames", "both", "ucf101", "csv")
SKIPPED_SHOWN = 10
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True)
class ClipIndex:
    """The usable clips of a folder in natural order: `num_frames[i]` belongs to `paths[i]`.

    `skipped` contains (path, reason) of clips that are unreadable, too short or listed but missing; `bad` contains the
    same without those that are only too short. `longest` is the largest number of frames of any readable clip, `found`
    a one-line description of the folder, and `passed_over` the part of it that says what is not used. `classes[i]` is
    the class of `paths[i]`; the list is empty if clips have none.
    """

    root: Path
    paths: list[Path]
    num_frames: list[int]
    skipped: Skipped
    bad: Skipped = field(default_factory=list)
    longest: int = 0
    found: str = ""
    passed_over: str = ""
    classes: list[str] = field(default_factory=list)

    def at(self, places: Sequence[int]) -> "ClipIndex":
        """Return the index of the clips at some places."""
        paths, lengths = [self.paths[i] for i in places], [self.num_frames[i] for i in places]
        return replace(self, paths=paths, num_frames=lengths, classes=[self.classes[i] for i in places if self.classes])

    def name_of(self, path: Path) -> Path:
        """Return a clip's path in the folder; a csv file may list others, which keep their paths."""
        return path.relative_to(self.root) if path.is_relative_to(self.root) else path

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
    lists = ucf_lists(root)
    is_folder = bool(split) and (root / split).is_dir()
    if layout == "ucf101" or (layout == "auto" and not is_folder and split in lists):
        if not lists:
            raise ValueError(f"{root}: no {UCF_LISTS}/trainlist01.txt in or next to it; get UCF-101's official lists")
        if split not in lists:
            raise ValueError(f"--split {split}: choose one of UCF-101's lists: {', '.join(lists)}")
        return ucf_split(root, split, lists)
    if split and not is_folder:
        splits = [path.name for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."] + list(lists)
        raise ValueError(f"--split {split}: {root} has no such folder or list; choose from {', '.join(splits[:10])}")
    folder = root / split
    splits = [name for name in SPLIT_FOLDERS if (folder / name).is_dir()] + list(ucf_lists(folder))
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
    if layout == "csv" or is_list(root):
        return _survey_list(root, min_frames, layout, split, progress)
    listing = _list_clips(root, layout, split)
    if pack := pack_of(root):  # its index has the lengths
        lengths = [_num_frames_or_reason(path, pack) for path in listing.clips]
    else:
        lengths = probe_all(root / split, listing.clips, _num_frames_or_reason, progress)
    clips = [CutClip(path, length, "") for path, length in zip(listing.clips, lengths, strict=True)]
    return _index_of(root, listing, clips, min_frames)


def _index_of(root: Path, listing: Listing, clips: Sequence[CutClip], min_frames: int) -> ClipIndex:
    """Return the index of clips, without those that cannot be read or are too short."""
    skipped, bad = list(listing.bad), list(listing.bad)
    usable = []
    for path, length, label in clips:
        if isinstance(length, str):
            skipped.append((path, length))
            bad.append((path, length))
        elif length < min_frames:
            skipped.append((path, f"{path}: has {length} frames, {min_frames} are needed"))
        else:
            usable.append((path, length, label))
    return ClipIndex(
        root,
        paths=[path for path, _, _ in usable],
        num_frames=[length for _, length, _ in usable],
        skipped=skipped,
        bad=bad,
        longest=max((length for _, length, _ in clips if isinstance(length, int)), default=0),
        found=printable(listing.found),
        passed_over=printable(listing.passed_over),
        classes=[label for _, _, label in usable if label],
    )


def _survey_list(root: Path, min_frames: int, layout: str, split: str, progress: bool) -> ClipIndex:
    """Return the index of the clips of a csv file, or of the one in a folder."""
    if layout not in ("auto", "csv"):
        raise ValueError(f"{root} is a list of clips, which --layout csv reads; for {layout}, give a folder")
    file = root if is_list(root) else root / LIST_NAME
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}; --layout csv needs it, or a csv file in place of the folder")
    clips, found = list_clips(file, split, _num_frames_or_reason, progress)
    return _index_of(file.parent, Listing([], [], found), clips, min_frames)


def refuse_archive(path: Path) -> None:
    """Raise ValueError if a file is a zip or tar archive. Ours."""
    if is_zipfile(path) or is_tarfile(path):
        raise ValueError(f"{path} is an archive: unpack it and give the folder with its files")


def _existing_folder(root: str | Path) -> Path:
    """Return the folder or csv file. Every process checks that it exists: nodes may have different disks."""
    root = Path(root)
    if root.is_file():
        if is_list(root):
            return root
        refuse_archive(root)
        is_video = root.name.lower().endswith(VIDEO_SUFFIXES)
        raise ValueError(
            f"{root} is {'one video' if is_video else 'a file'}: give a folder of videos, such as {root.parent}"
        )
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a pipe or a device: give a folder of videos")
    if is_list(root):
        raise FileNotFoundError(f"no such file: {root}")
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}; {_where_data_comes_from(root)}")
    return root


@arguments_named()
def survey_clips(
    root: str | Path, min_frames: int = 1, layout: str = "auto", split: str = "", progress: bool = False
) -> ClipIndex:
    """List every clip below a folder, of its split, or of a csv file; hidden and other files are ignored.

    The layout `videos` uses only video files, `frames` only folders of frames, `both` both, `ucf101` the clips of an
    official list (splits train1 to train3, test1 to test3), and `csv` those that `clips.csv` in the folder lists; a csv
    file in place of a folder needs no layout. `auto` uses folders of frames only if there is no video file: images
    beside videos are taken for thumbnails. Clips with fewer than `min_frames` frames and unreadable clips
    are skipped, possibly all. With `progress`, a bar is shown after three seconds. With several processes, all must
    call this; the main one opens the videos, and all get the same index. Raises FileNotFoundError for a missing folder,
    ValueError for a file and for an unknown layout or split. Ours.
    """
    return on_main(partial(_survey, _existing_folder(root), min_frames, layout, split, progress), ClipIndex)


def _nothing_found(folder: Path, passed_over: str) -> str:
    nothing = f"no videos and no folders of frames in {folder}"
    if not passed_over:
        return f"{nothing}: give the folder that contains them"
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


@arguments_named()
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
