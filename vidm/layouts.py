"""A folder of videos -> a list of clips. Ours.

A clip is a video file or a folder that directly holds png or jpg frames, at any depth: a flat folder, one folder a
class, CLEVRER's train/video_00000-01000/video_00000.mp4 and extracted frames are all read without being told. So is a
pack (vidm.packs), whose clips stand here by the paths that they had in the folder it was made of.

    index = index_clips("data/CLEVRER", min_frames=128)
    print(len(index.paths), index.skipped_message())
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vidm.packs import is_pack, list_pack, probe
from vidm.video_io import FRAME_SUFFIXES, VIDEO_SUFFIXES, VideoError, natural_key

SKIPPED_SHOWN = 10


@dataclass(frozen=True)
class ClipIndex:
    """The clips of a folder in natural order: `num_frames[i]` belongs to `paths[i]`; `skipped` has (path, reason)."""

    root: Path
    paths: list[Path]
    num_frames: list[int]
    skipped: list[tuple[Path, str]]

    def skipped_message(self) -> str:
        """Return a line for each of the first ten clips that were skipped, and a count; empty if there are none."""
        lines = [f"skipped: {reason}" for _, reason in self.skipped[:SKIPPED_SHOWN]]
        if len(self.skipped) > SKIPPED_SHOWN:
            lines.append(f"{len(self.skipped)} of {len(self.skipped) + len(self.paths)} clips were skipped in all")
        return "\n".join(lines)


def _where_data_comes_from(root: Path) -> str:
    return (
        f"make embedded data with `python scripts/make_synthetic_dataset.py --out {root}`, "
        "or put the real CLEVRER videos there: http://clevrer.csail.mit.edu"
    )


def _refuse_unlisted(error: OSError) -> None:
    raise ValueError(f"{error.filename}: the folder cannot be listed ({error.strerror})")


def _list_clips(root: Path) -> list[Path]:
    """Return every video file and frame folder below `root`; each folder is visited once, however links lead to it."""
    clips: list[Path] = []
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_unlisted):
        if os.path.realpath(folder) in visited:
            subfolders.clear()
            continue
        visited.add(os.path.realpath(folder))
        if is_pack(folder):
            clips += list_pack(folder)
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        visible = [name for name in names if not name.startswith(".")]
        videos = [Path(folder, name) for name in visible if name.lower().endswith(VIDEO_SUFFIXES)]
        # Images beside videos are thumbnails rather than a clip.
        has_frames = not videos and any(name.lower().endswith(FRAME_SUFFIXES) for name in visible)
        clips += [Path(folder)] if has_frames else videos
    return sorted(clips, key=natural_key)


def _num_frames_or_reason(path: Path) -> int | str:
    try:
        return probe(path).num_frames
    except (VideoError, FileNotFoundError) as error:
        return str(error)


def index_clips(root: str | Path, min_frames: int = 1) -> ClipIndex:
    """List the clips below a folder that have at least `min_frames` frames; hidden and other files are ignored.

    Unreadable and short clips are skipped, not fatal: the caller may print `skipped_message()`. Raises
    FileNotFoundError for a missing folder, ValueError if it holds no clip or none that will do, or cannot be
    listed. Ours.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}; {_where_data_comes_from(root)}")
    clips = _list_clips(root)
    if not clips:
        raise ValueError(f"no videos and no folders of frames in {root}; {_where_data_comes_from(root)}")
    with ThreadPoolExecutor() as pool:  # decoders let other threads run, and disks answer many at once
        probed = list(pool.map(_num_frames_or_reason, clips))
    paths, num_frames, skipped = [], [], []
    for path, found in zip(clips, probed, strict=True):
        if isinstance(found, str):
            skipped.append((path, found))
        elif found < min_frames:
            skipped.append((path, f"{path}: has {found} frames, {min_frames} are needed"))
        else:
            paths.append(path)
            num_frames.append(found)
    if not paths:
        longest = max((found for found in probed if isinstance(found, int)), default=0)
        if longest == 0:
            raise ValueError(f"none of the {len(clips)} videos in {root} can be read; the first: {skipped[0][1]}")
        raise ValueError(
            f"no video in {root} has the {min_frames} frames asked for, the longest has {longest}: "
            f"ask for at most {longest}"
        )
    return ClipIndex(root, paths, num_frames, skipped)
