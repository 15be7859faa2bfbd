"""Pair generated videos with the real ones that they continue: by first frame, by name, or by order. Ours.

    pairs = pair_videos(index_clips("real"), index_clips("results/samples"))
    pairs.real.paths[3], pairs.made.paths[3], pairs.how        # "by first frame"

Sampling records next to each video which file its first frame is from, and a digest of the frame, so that a video is
also found after its folder was moved or packed. A missing or damaged video therefore does not shift the others.
"""

import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vidm.console import short
from vidm.files import can_be_path, read_json
from vidm.frame_names import describe_gaps
from vidm.layouts import ClipIndex, Skipped
from vidm.packs import frame_sha256, read_frames
from vidm.segments import segment_of, segment_path
from vidm.video_io import VIDEO_SUFFIXES, VideoError

DRAWN = "drawn"  # in place of a path, for first frames of a content generator
# Where first frames came from; see first_frames_of.
GENERATED, OF_REAL = "generated", "those of the real videos"


class Pairs(NamedTuple):
    """Pairs of videos: real.paths[i] belongs to made.paths[i].

    `how` is "by first frame", "by name" or "by order"; `unpaired` has (path, reason) of generated videos left out.
    """

    real: ClipIndex
    made: ClipIndex
    how: str
    unpaired: Skipped


# The place of the real video in its index, or, without one, the reason.
_Match = int | str


def _without_suffix(path: Path) -> Path:
    """Remove the suffix of a video file, also in a.mp4[0:16]; a folder such as clip_0.1 keeps its name."""
    if segment := segment_of(path):
        return segment_path(_without_suffix(segment.path), segment.start, segment.stop)
    is_file = path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()
    return path.with_suffix("") if is_file else path


def _record(video: Path) -> dict[str, str]:
    """Return the first frame that sampling recorded next to a video, and its digest; empty without such a record."""
    plain = _without_suffix(video)
    with suppress(OSError, ValueError):
        record = read_json(plain.with_name(f"{plain.name}.json"))
        if isinstance(record, dict) and can_be_path(record.get("first_frame")):
            digest = record.get("first_frame_sha256")
            return {
                "first_frame": record["first_frame"],
                "first_frame_sha256": digest if isinstance(digest, str) else "",
            }
    return {}


def sampled_with(video: Path) -> tuple[str, str]:
    """Return the checkpoint and the setting --fit that sampling recorded next to a video; "" and "" without a record.

    Ours.
    """
    plain = _without_suffix(video)
    with suppress(OSError, ValueError):
        record = read_json(plain.with_name(f"{plain.name}.json"))
        if isinstance(record, dict) and isinstance(record.get("checkpoint"), str):
            settings = record.get("settings")
            padded = isinstance(settings, dict) and settings.get("fit") == "pad"
            return short(record["checkpoint"]), "pad" if padded else "crop"
    return "", ""


def _first_frame(path: Path) -> str:
    try:
        return frame_sha256(read_frames(path, [0])[0])
    except (VideoError, FileNotFoundError):
        return ""


def _by_first_frame(real: ClipIndex, made: ClipIndex, split: str = "") -> list[_Match] | None:
    """Match by the recorded path, else by the digest of the first frame. Return None if nothing was recorded."""
    records = [_record(path) for path in made.paths]
    if not any(records):
        return None
    places = {os.path.realpath(path): place for place, path in enumerate(real.paths)}
    reasons = {os.path.realpath(path): reason for path, reason in real.skipped}
    sources = [os.path.realpath(record.get("first_frame", "")) for record in records]
    digests = [record.get("first_frame_sha256", "") for record in records]
    by_digest: dict[str, list[int]] = defaultdict(list)
    if any(digest and source not in places for digest, source in zip(digests, sources, strict=True)):
        with ThreadPoolExecutor() as pool:
            for place, found in enumerate(pool.map(_first_frame, real.paths)):
                by_digest[found].append(place)
    named = f"split {split} of {real.root}" if split else real.root
    matches: list[_Match] = []
    for video, record, source, digest in zip(made.paths, records, sources, digests, strict=True):
        same = by_digest[digest] if digest else []
        same = [place for place in same if real.paths[place].name == Path(source).name] or same
        if not record:
            matches.append(f"{video}: has no record of its first frame")
        elif record["first_frame"] == DRAWN:
            matches.append(f"{video}: continues no real video, its first frame was generated")
        elif source in places:
            matches.append(places[source])
        elif source in reasons:
            matches.append(f"{video}: continues a real video that is skipped ({reasons[source]})")
        elif len(same) == 1:
            matches.append(same[0])
        else:
            where = f"{len(same)} videos of {named} begin" if same else f"no video of {named} begins"
            matches.append(f"{video}: {where} with its first frame, which is from {record['first_frame']}")
    return matches


def continued_videos(real: ClipIndex, made: ClipIndex) -> dict[Path, Path]:
    """Return the real video that each generated one continues, of those whose recorded first frame is known. Ours."""
    matches = _by_first_frame(real, made) or []
    return {path: real.paths[match] for path, match in zip(made.paths, matches, strict=False) if isinstance(match, int)}


def first_frames_of(real: ClipIndex, made: ClipIndex) -> str:
    """Say where the first frames of generated videos came from, as sampling recorded it; "" if no record says it.

    This is GENERATED, OF_REAL or "from FOLDER"; of several, the most frequent with their numbers of videos. Ours.
    """
    continued = continued_videos(real, made)

    def origin(video: Path) -> str:
        source = _record(video).get("first_frame", "")
        if source in ("", DRAWN):
            return GENERATED if source else ""
        return OF_REAL if video in continued else f"from {short(str(Path(source).parent))}"

    counts = Counter(map(origin, made.paths))
    if len(counts) == 1:
        return next(iter(counts))
    named = [f"{name or 'not recorded'} ({count})" for name, count in counts.most_common(3)]
    return ", ".join(named + ["..."] * (len(counts) > 3))


def _by_name(real: ClipIndex, made: ClipIndex, split: str) -> list[_Match] | None:
    """Match by the path in the folder or its split, with any suffix of a video. Return None unless all names match."""
    known: dict[Path, _Match] = {}
    skipped: list[tuple[Path, _Match]] = [(path, reason) for path, reason in real.skipped]
    rows = [*skipped, *((path, place) for place, path in enumerate(real.paths))]
    is_split = all(path.is_relative_to(real.root / split) for path, _ in rows)  # UCF-101's are lists, not folders
    inside = replace(real, root=real.root / split) if is_split else real
    for path, match in rows:
        known[inside.name_of(_without_suffix(path))] = match
    for path, match in rows:  # a name with its suffix comes first
        known[inside.name_of(path)] = match
    matches: list[_Match] = []
    for path in made.paths:
        found = known.get(made.name_of(path), known.get(made.name_of(_without_suffix(path))))
        if found is None:
            return None
        matches.append(f"{path}: its real video is skipped ({found})" if isinstance(found, str) else found)
    return matches


def _by_order(real: ClipIndex, made: ClipIndex) -> list[_Match]:
    """Match by position. Raises ValueError if a video is known to be missing, since it would shift the others."""
    fewer = len(made.paths) < len(real.paths)
    missing = describe_gaps([path.name for path in made.paths]) if fewer else ""
    if len(made.paths) <= len(real.paths) and not real.skipped and not made.skipped and not missing:
        return list(range(len(made.paths)))
    raise ValueError(
        f"the {len(made.paths)} videos of {made.root} cannot be paired with the {len(real.paths)} of {real.root} "
        f"({len(real.skipped) + len(made.skipped)} skipped{missing and ', ' + missing}): PSNR and SSIM need a real "
        "video for each, of the same name or position, or named in its .json"
    )


def pair_videos(real: ClipIndex, made: ClipIndex, split: str = "") -> Pairs:
    """Pair each generated video with the real one that it continues.

    Videos are paired by the recorded first frame if sampling recorded any; else by their paths in the folders, without
    the suffix of a video file, if every generated one has a real one's; else by order, if both folders are complete. Of
    the real videos' folder, `split` is the subfolder that was indexed. Raises ValueError, naming the folders, if no
    video can be paired. Ours.
    """
    how, matches = "by first frame", _by_first_frame(real, made, split)
    if matches is None:
        how, matches = "by name", _by_name(real, made, split)
    if matches is None:
        how, matches = "by order", _by_order(real, made)
    unpaired = [(path, match) for path, match in zip(made.paths, matches, strict=True) if isinstance(match, str)]
    places = [place for place, match in enumerate(matches) if isinstance(match, int)]
    if not places:
        raise ValueError(
            f"none of the {len(made.paths)} videos of {made.root} can be paired with a real one; "
            f"the first: {unpaired[0][1]}"
        )
    chosen = [match for match in matches if isinstance(match, int)]
    return Pairs(real.at(chosen), made.at(places), how, unpaired)
