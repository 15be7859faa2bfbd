"""Sampling a folder of videos from a checkpoint, split over processes and resumable, with a settings file per video.

    sample_folder(load_generator("checkpoint.pt"), SampleConfig(content="frames", out="results/samples"))

First frames are images, the first frames of videos, or the content generator's. The unit of work is a batch of
consecutive videos, which one process makes as a whole, so that files do not depend on the number of processes or on an
interruption, to the last bit. Ours.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vidm.config import SUFFIXES, SampleConfig
from vidm.distributed import barrier, is_main, on_main, print0, rank, world_size
from vidm.files import atomic_write, sha256_of
from vidm.generator import Generator
from vidm.layouts import index_clips
from vidm.packs import read_frames
from vidm.runtime import versions_of
from vidm.video_io import VIDEO_SUFFIXES, VideoError, frame_files, read_image, read_video, write_video

# The default number of videos with generated first frames.
NUM_GENERATED = 16
# Settings that decide where and how many videos are written, not what is in them.
NOT_RECORDED = ("content", "content_resume", "out", "num_samples", "grid", "report")

# First frames by video index, for a batch of indices; unreadable ones are left out.
FirstFrameSource = Callable[[range], dict[int, np.ndarray]]


def is_image(path: Path) -> bool:
    """Whether a first frame is an image file rather than the beginning of a video."""
    return path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES


def list_content(content: str | Path) -> list[Path]:
    """Files of first frames: one image or video, or a folder's images, or if it has none its videos at any depth.

    Unreadable videos are printed and left out. Raises FileNotFoundError or ValueError if nothing is left.
    """
    content = Path(content)
    if not content.exists():
        raise FileNotFoundError(f"no such file or folder of first frames: {content} (--content)")
    if content.is_file():
        return [content]
    images = frame_files(content)
    if images:
        return images
    index = index_clips(content, min_frames=1)
    if index.skipped:
        print0(index.skipped_message())
    return index.paths


def read_first_frame(path: Path) -> np.ndarray:
    """An image, or the first frame of a video: uint8 (H, W, 3). Raises VideoError."""
    return read_image(path) if is_image(path) else read_frames(path, [0])[0]


def _conversion(path: Path) -> str:
    """How read_first_frame converts an image to 8-bit RGB, in words; empty without a conversion or for a video."""
    if not is_image(path):
        return ""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            return "16 bits per channel are reduced to 8"
        if image.has_transparency_data:
            return "transparency is blended with white"
        return "" if image.mode == "RGB" else f"{image.mode} is converted to RGB"


def _reader(paths: list[Path]) -> FirstFrameSource:
    """Reads first frames, from the beginning again after the last; prints unreadable files and each conversion once."""
    printed: set[str] = set()

    def read(batch: range) -> dict[int, np.ndarray]:
        frames = {}
        for i in batch:
            path = paths[i % len(paths)]
            try:
                frames[i] = read_first_frame(path)
                converted = _conversion(path)
            except (VideoError, FileNotFoundError) as error:
                tqdm.write(f"skipped: {error}")
                continue
            if converted and converted not in printed:
                printed.add(converted)
                tqdm.write(f"{path}: {converted}")
        return frames

    return read


def _first_frames_of(generator: Generator, settings: SampleConfig) -> tuple[int, FirstFrameSource, list[Path]]:
    """The number of videos to make, the source of their first frames, and the files of these, if any."""
    if generator.content_model is not None:
        num_videos = settings.num_samples or NUM_GENERATED
        return num_videos, lambda batch: dict(zip(batch, generator.draw_first_frames(batch, settings), strict=True)), []
    paths = list_content(settings.content)
    num_videos = settings.num_samples or len(paths)
    if num_videos > len(paths):
        print0(f"{num_videos} videos from {len(paths)} first frames: video i begins with frame i modulo {len(paths)}")
    return num_videos, _reader(paths), paths


def video_path(settings: SampleConfig, index: int) -> Path:
    """The file of video `index`; its settings are stored next to it, under the same name with .json."""
    return Path(settings.out, f"video_{index:05d}{SUFFIXES[settings.format]}")


def _record_path(video: Path) -> Path:
    return video.with_name(f"{video.stem}.json")


def _records(generator: Generator, settings: SampleConfig, num_videos: int, paths: list[Path]) -> list[dict[str, Any]]:
    """The content of each video's settings file: everything that determines the video."""
    values = {name: value for name, value in asdict(settings).items() if name not in NOT_RECORDED}
    values["num_frames"] = generator.num_frames(settings)
    values["frame_stride"] = generator.config.data.frame_stride
    values["checkpoint_sha256"] = sha256_of([generator.path])
    values["content_checkpoint_sha256"] = sha256_of([generator.content_path]) if generator.content_path else None
    return [
        {
            "index": i,
            "first_frame": str(paths[i % len(paths)]) if paths else "drawn",
            "settings": values,
            "checkpoint": str(generator.path),
            "versions": versions_of(("vidm", "torch")),
        }
        for i in range(num_videos)
    ]


def _is_finished(video: Path, record: dict[str, Any]) -> bool:
    """Whether a video exists with exactly this record. Raises ValueError if it exists with another one."""
    for other in (video.with_suffix(suffix) for suffix in SUFFIXES.values() if suffix != video.suffix):
        if other.exists():
            raise ValueError(f"{other} already exists, in another format: remove it or give another --out")
    if not video.exists():
        return False
    try:
        found = json.loads(_record_path(video).read_text())
        old, new = ({"first_frame": r["first_frame"], **r["settings"]} for r in (found, record))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{video} already exists, without a file of its settings: remove it or give another --out"
        ) from error
    for name in new:
        if old.get(name) != new[name]:
            raise ValueError(
                f"{video} already exists, with {name} {old.get(name)} and not {new[name]}: give another --out, or "
                "remove it to make it again"
            )
    return True


def _unfinished(settings: SampleConfig, records: list[dict[str, Any]]) -> tuple[list[range], set[int]]:
    """The batches with videos to make, and the finished videos of all batches."""
    finished = {i for i, record in enumerate(records) if _is_finished(video_path(settings, i), record)}
    starts = range(0, len(records), settings.batch_size)
    batches = [range(start, min(start + settings.batch_size, len(records))) for start in starts]
    return [batch for batch in batches if not finished.issuperset(batch)], finished


def _write(settings: SampleConfig, record: dict[str, Any], frames: np.ndarray) -> None:
    """Write a video and its settings; these first, because a video without them counts as someone else's."""
    video = video_path(settings, record["index"])
    with atomic_write(_record_path(video)) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_video(video, frames, fps=settings.fps)


def _write_grid(settings: SampleConfig, num_frames: int) -> None:
    """Write the first videos as one, next to the folder, which holds only samples. Missing videos are black."""
    rows, columns = settings.grid_shape()
    paths = [video_path(settings, i) for i in range(rows * columns)]
    videos = {i: read_video(path) for i, path in enumerate(paths) if path.exists()}
    for i, video in videos.items():  # a gif stores equal frames as one
        videos[i] = np.concatenate([video, video[-1:].repeat(num_frames - len(video), axis=0)])
    black = np.zeros_like(next(iter(videos.values())))
    cells = [videos.get(i, black) for i in range(rows * columns)]
    lines = [np.concatenate(cells[row * columns : (row + 1) * columns], axis=2) for row in range(rows)]
    out = Path(settings.out)
    write_video(out.with_name(f"{out.name}_grid.mp4"), np.concatenate(lines, axis=1), fps=settings.fps)


def _make(
    generator: Generator,
    settings: SampleConfig,
    first_frames: FirstFrameSource,
    batches: list[range],
    records: list[dict[str, Any]],
    finished: set[int],
) -> int:
    """Make and write the unfinished videos of this process's batches; return the number of videos made."""
    side, began = generator.config.model.image_size, time.monotonic()
    num_made, resizing_printed = 0, False
    with tqdm(total=sum(map(len, batches)), desc="sample", unit="video", disable=not is_main()) as bar:
        for batch in batches:
            frames = first_frames(batch)
            others = {frame.shape[:2] for frame in frames.values()} - {(side, side)}
            if others and not resizing_printed and is_main():
                height, width = others.pop()
                bar.write(f"first frames of {width}x{height} are cropped and resized to {side}x{side}, as in training")
                resizing_printed = True
            if frames:
                videos = generator.animate_batch(list(frames.values()), list(frames), settings, progress=is_main())
                for i, video in zip(frames, videos, strict=True):
                    if i not in finished:
                        _write(settings, records[i], video)
                num_made += len(videos)
                frames_per_s = num_made * videos.shape[1] * world_size() / (time.monotonic() - began)
                bar.set_postfix_str(f"{frames_per_s:.1f} frames/s")
            bar.update(len(batch))
    return num_made


def sample_folder(generator: Generator, settings: SampleConfig) -> None:
    """Make out/video_%05d.mp4 (or .gif, .npy, a folder of frames), each with its settings next to it as .json.

    First frames come from settings.content, in natural order, or from the content generator. They are reused if more
    videos are wanted; one that turns out to be damaged is printed and its number left out. Processes share the batches,
    and a video does not depend on which process makes it. Existing videos with the same settings are kept, and so are
    all other files. Raises ValueError or FileNotFoundError, before anything is written, if the content is missing, the
    generator cannot follow the settings, or a video with other settings exists.
    """
    generator.check(settings)
    num_videos, first_frames, paths = _first_frames_of(generator, settings)
    rows, columns = settings.grid_shape()
    if rows * columns > num_videos:
        raise ValueError(f"--grid {settings.grid} takes {rows * columns} videos, and {num_videos} are made")

    def plan() -> tuple[list[dict[str, Any]], list[range], set[int]]:
        records = _records(generator, settings, num_videos, paths)
        return records, *_unfinished(settings, records)

    # No process writes before all have the plan.
    records, batches, finished = on_main(plan)
    if finished:
        print0(f"{len(finished)} of {num_videos} videos are finished already")
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    mine = batches[rank() :: world_size()]
    if mine and not _make(generator, settings, first_frames, mine, records, finished):
        with suppress(OSError):
            out.rmdir()
        raise ValueError(f"none of the first frames in {settings.content} can be read")
    barrier()
    if settings.grid and is_main():
        _write_grid(settings, generator.num_frames(settings))
