"""Walk a folder and find its clips, or its images, and what is passed over. Ours.

    listing = find_clips(Path("data/CLEVRER"), "auto")
    print(listing.found)       # 20000 videos in 20 folders up to 2 levels down; passed over: 3 .mpg (not read)

Images anywhere beside videos are taken for thumbnails, so that a data set of videos is not mixed with its previews.
"""

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vidm.frame_names import Frames, choose_frames, choose_images, is_numbered_through
from vidm.images import open_image
from vidm.packs import is_pack, list_pack
from vidm.video_io import ANIMATION_SUFFIXES, FRAME_SUFFIXES, VIDEO_SUFFIXES, VideoError, natural_key, videos_among

# Formats of videos, images, arrays and archives that may be somebody's data. Those that are read are not counted.
MEDIA_SUFFIXES = tuple(
    (
        ".mp4 .m4v .mov .qt .mkv .webm .avi .mpg .mpeg .m2v .ts .mts .m2ts .wmv .asf .flv .f4v .3gp .3g2 .ogv .ogg "
        ".vob .rm .rmvb .divx .mxf .y4m .yuv .h264 .264 .h265 .265 .hevc .ivf .dv .gif .apng .png .jpg .jpeg .webp "
        ".jfif .bmp .tif .tiff .ppm .pgm .pnm .tga .jp2 .jxl .heic .heif .avif .exr .dng .npy .npz .h5 .hdf5 .mat "
        ".tfrecord .tfrecords .lmdb .mdb .parquet .zip .tar .tgz .gz .bz2 .xz .zst .rar .7z"
    ).split()
)

# The system's own folders have links to every other one. /dev/shm is a disk in memory.
SYSTEM_FOLDERS = ("/proc", "/sys", "/dev")
MEMORY_DISK = "/dev/shm"

Skipped = list[tuple[Path, str]]


class Listing(NamedTuple):
    """Paths of clips, bad clips and folders known before any clip is opened, a one-line description of the folder,
    and the part of it that says what is passed over."""

    clips: list[Path]
    bad: Skipped
    found: str
    passed_over: str = ""


@dataclass
class _Tree:
    """Everything below a folder: videos, clips of packs, folders of images with their names, formats not read.

    `stills` has gif and webp files of one frame, beside other files, by folder.
    """

    videos: list[Path] = field(default_factory=list)
    packed: list[Path] = field(default_factory=list)
    images: dict[Path, list[str]] = field(default_factory=dict)
    stills: dict[Path, list[str]] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    bad: Skipped = field(default_factory=list)


def count_of(number: int, noun: str, rest: str = "") -> str:
    """Return a count with its noun: "1 folder of frames", "2 folders of frames". Ours."""
    return f"{number} {noun}{'' if number == 1 else 's'}{rest}"


def _is_below(folder: str, *others: str) -> bool:
    return any(Path(folder).is_relative_to(other) for other in others)


def _reason_to_stay_out(folder: str, root: str) -> str:
    """Return why a folder below `root`, both without links in their paths, is not entered; '' if it is."""
    if _is_below(folder, *SYSTEM_FOLDERS) and not _is_below(folder, MEMORY_DISK):
        return f"{folder} belongs to the system"
    if folder != root and _is_below(root, folder):
        return f"it is a link to {folder}, which contains {root}"
    return ""


def _scan(root: Path) -> _Tree:
    """Visit each folder below `root` once, even if several links lead to it, but none that contains `root`."""
    tree = _Tree()
    real_root = os.path.realpath(root)
    visited: set[str] = set()

    def cannot_be_listed(error: OSError) -> None:
        tree.bad.append((Path(error.filename), f"{error.filename}: the folder cannot be listed ({error.strerror})"))

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=cannot_be_listed):
        real = os.path.realpath(folder)
        reason = _reason_to_stay_out(real, real_root)
        if reason and real not in visited:
            tree.bad.append((Path(folder), f"{folder}: the folder is not read: {reason}"))
        if reason or real in visited:
            visited.add(real)
            subfolders.clear()
            continue
        visited.add(real)
        if is_pack(folder):
            tree.packed += list_pack(folder)
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        visible = [name for name in names if not name.startswith(".")]
        videos = videos_among(Path(folder), visible)
        tree.videos += videos
        taken = {path.name for path in videos}
        if images := [name for name in visible if name.lower().endswith(FRAME_SUFFIXES) and name not in taken]:
            tree.images[Path(folder)] = images
        others = (name.lower() for name in visible if not name.lower().endswith((*VIDEO_SUFFIXES, *FRAME_SUFFIXES)))
        tree.unread.update(Path(name).suffix for name in others if name.endswith(MEDIA_SUFFIXES))
    _separate_stills(tree)
    return tree


def _is_still(path: Path) -> bool:
    with suppress(Exception), open_image(path) as image:  # a damaged animation is reported when it is read
        return not getattr(image, "is_animated", False)
    return False


def _separate_stills(tree: _Tree) -> None:
    """Take animations of one frame out of the videos, unless the folder contains nothing but animations."""
    animations = [path for path in tree.videos if path.suffix.lower() in ANIMATION_SUFFIXES]
    if len(animations) < len(tree.videos) or tree.images:
        stills = set(filter(_is_still, animations))
        tree.videos = [path for path in tree.videos if path not in stills]
        for path in stills:
            tree.stills.setdefault(path.parent, []).append(path.name)


def _joined_names(*parts: dict[Path, list[str]]) -> dict[Path, list[str]]:
    folders = {folder for part in parts for folder in part}
    return {folder: [name for part in parts for name in part.get(folder, [])] for folder in folders}


# Descriptions


def _describe(root: Path, videos: list[Path], folders: Iterable[Path], bad: Skipped) -> str:
    """Describe in one line the clips of a folder and where they are."""
    parts = []
    if videos:
        parents = {path.parent for path in videos}
        depths = {len(parent.relative_to(root).parts) for parent in parents}
        where = f"{count_of(len(parents), 'folder')} up to {count_of(max(depths), 'level')} down"
        if depths in ({0}, {1}):
            where = "one flat folder" if depths == {0} else count_of(len(parents), "subfolder")
        parts.append(f"{count_of(len(videos), 'video')} in {where}")
    if levels := [len(path.relative_to(root).parts) for path in folders]:
        where = f" up to {count_of(max(levels), 'level')} down" if max(levels) else ""
        parts.append(count_of(len(levels), "folder", " of frames") + where)
    if bad:
        parts.append(count_of(len(bad), "folder", " not read"))
    return " and ".join(parts) or "no videos and no folders of frames"


def _unread(tree: _Tree) -> str:
    return f"{', '.join(f'{count} {suffix}' for suffix, count in tree.unread.most_common())} (not read)"


def _where(root: Path, folders: Iterable[Path]) -> str:
    first, *others = sorted(folders, key=natural_key)
    return f"{first.relative_to(root)}" + (f" and {count_of(len(others), 'other folder')}" if others else "")


def _images_in(root: Path, images: dict[Path, list[str]]) -> str:
    return f"{count_of(sum(map(len, images.values())), 'image')} in {_where(root, images)}"


def _passed_over(root: Path, tree: _Tree, layout: str, folders: dict[Path, list[str]]) -> str:
    """Describe what is not used: images other than those in `folders`, videos, and formats that are not read."""
    images = tree.stills if folders else _joined_names(tree.images, tree.stills)
    parts = []
    if images and tree.videos and layout == "auto":
        parts.append(f"{_images_in(root, images)}, beside videos (thumbnails unless --layout is both or frames)")
    elif images:
        parts.append(f"{_images_in(root, images)} ({'single gif or webp' if folders else f'--layout {layout}'})")
    if tree.videos and layout == "frames":
        parts.append(f"{count_of(len(tree.videos), 'video')} (--layout frames)")
    if tree.unread:
        parts.append(_unread(tree))
    return ", ".join(parts)


def _frames(folder: Path, names: list[str]) -> Frames:
    try:
        return choose_frames(folder, names)
    except VideoError:
        return Frames([], "")  # the folder is reported as a clip that cannot be read


def _joined(root: Path, main: str, notes: dict[Path, str], passed_over: str) -> str:
    """Join the parts of a description, with the first of the notes on folders."""
    parts = [main]
    if notes:
        first = min(notes, key=natural_key)
        others = f" (and {count_of(len(notes) - 1, 'folder')} like it)" if len(notes) > 1 else ""
        parts.append(f"in {first.relative_to(root)}{others}, {notes[first]}")
    if passed_over:
        parts.append(f"passed over: {passed_over}")
    return "; ".join(parts)


# Public names


def find_clips(root: Path, layout: str, hint: str = "") -> Listing:
    """List the clips below a folder: video files, folders of frames, and the clips of packs.

    The layout "videos" takes only video files, "frames" only folders of frames, "both" both, and "auto" folders of
    frames only if there is no video file. `hint` follows the counts in the description. Ours.
    """
    tree = _scan(root)
    videos = tree.packed + (tree.videos if layout != "frames" else [])
    with_images = layout in ("frames", "both") or (layout == "auto" and not tree.videos)
    folders = tree.images if with_images else {}
    passed_over = _passed_over(root, tree, layout, folders)
    notes = {folder: note for folder, names in folders.items() if (note := _frames(folder, names).note)}
    main = _describe(root, videos, folders, tree.bad) + hint
    return Listing(
        sorted([*videos, *folders], key=natural_key), tree.bad, _joined(root, main, notes, passed_over), passed_over
    )


def find_images(root: Path) -> Listing | None:
    """List the single images below a folder, in natural order; None if it contains videos, packs or frames of videos.

    Subfolders contain frames if each has the frames 00000, 00001, ... (or from 00001 on). Images that belong to another
    one, such as masks, are passed over. Ours.
    """
    tree = _scan(root)
    images = _joined_names(tree.images, tree.stills)
    if not images or tree.videos or tree.packed:
        return None
    if root not in images and all(is_numbered_through(_frames(*item).names) for item in images.items()):
        return None
    chosen = {folder: choose_images(folder, names) for folder, names in images.items()}
    paths = [folder / name for folder in sorted(chosen, key=natural_key) for name in chosen[folder].names]
    notes = {folder: frames.note for folder, frames in chosen.items() if frames.note}
    main = f"{count_of(len(paths), 'image')} in {count_of(len(chosen), 'folder')}"
    passed_over = _unread(tree) if tree.unread else ""
    return Listing(paths, tree.bad, _joined(root, main, notes, passed_over), passed_over)
