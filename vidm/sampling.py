"""A folder of videos from a checkpoint: split over processes, gone on with after a stop, settings beside each.

    sample_folder(load_generator("checkpoint.pt"), SampleConfig(content="frames", out="results/samples"))

The unit of work is a batch of consecutive videos: a process makes it whole, always the same one, so that files do not
depend on the number of processes or on an interruption, to the last bit. Ours.

Where videos begin: images, or the first frames of videos, found and read.

paths = list_content("data/CLEVRER")
frame = read_first_frame(paths[0])     # uint8 (H, W, 3)
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


def is_image(path: Path) -> bool:
    """Whether a first frame is a file of its own rather than the beginning of a video."""
    return path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES


def list_content(content: str | Path) -> list[Path]:
    """Where first frames come from: an image or a video, or a folder's images, or else its videos at any depth.

    Videos that cannot be read are named and left out. Raises FileNotFoundError or ValueError when there are none.
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


def conversion(path: Path) -> str:
    """What was done to an image to read it as 8-bit RGB, in words; empty where nothing was, or for a video."""
    if not is_image(path):
        return ""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            return "16 bits a channel come to 8"
        if image.has_transparency_data:
            return "transparency is laid on white"
        return "" if image.mode == "RGB" else f"{image.mode} becomes RGB"


# First frames by index for a batch of indices; one that cannot be had is left out.
FirstFrameSource = Callable[[range], dict[int, np.ndarray]]

# How many videos are made from nothing unless it is said.
DRAWN_VIDEOS = 16
# Settings that say where and how much, not what a video is.
ELSEWHERE = ("content", "content_resume", "out", "num_samples", "grid", "report")


# First frames


def _reader(paths: list[Path]) -> FirstFrameSource:
    """First frames by index, again from the start where there are fewer; an unreadable one is named and left out."""
    told: set[str] = set()

    def read(batch: range) -> dict[int, np.ndarray]:
        frames = {}
        for i in batch:
            path = paths[i % len(paths)]
            try:
                frames[i] = read_first_frame(path)
                done = conversion(path)
            except (VideoError, FileNotFoundError) as error:
                tqdm.write(f"skipped: {error}")
                continue
            if done and done not in told:
                told.add(done)
                tqdm.write(f"{path}: {done}")
        return frames

    return read


def _first_frames_of(generator: Generator, settings: SampleConfig) -> tuple[int, FirstFrameSource, list[Path]]:
    """How many videos there are to make, where a batch's first frames come from, and the files of those, if any."""
    if generator.content_model is not None:
        num_videos = DRAWN_VIDEOS if settings.num_samples is None else settings.num_samples
        return num_videos, lambda batch: dict(zip(batch, generator.draw_first_frames(batch, settings), strict=True)), []
    paths = list_content(settings.content)
    num_videos = len(paths) if settings.num_samples is None else settings.num_samples
    if num_videos > len(paths):
        print0(f"{num_videos} videos from {len(paths)} first frames: video i begins with frame i modulo {len(paths)}")
    return num_videos, _reader(paths), paths


# What is there, and what is to be done


def video_path(settings: SampleConfig, index: int) -> Path:
    """Where video `index` is written; its settings lie beside it, under the same name with .json."""
    return Path(settings.out, f"video_{index:05d}{SUFFIXES[settings.format]}")


def _record_path(video: Path) -> Path:
    return video.with_name(f"{video.stem}.json")


def _records(generator: Generator, settings: SampleConfig, num_videos: int, paths: list[Path]) -> list[dict[str, Any]]:
    """What is written beside each video: all that it follows from."""
    values = {name: value for name, value in asdict(settings).items() if name not in ELSEWHERE}
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
    """Whether a video is there with just this record. Raises ValueError for one that is there with another."""
    in_the_way = [video.with_suffix(suffix) for suffix in SUFFIXES.values() if suffix != video.suffix]
    for other in in_the_way:
        if other.exists():
            raise ValueError(f"{other} is there already, in another format: remove it or give another --out")
    if not video.exists():
        return False
    try:
        there = json.loads(_record_path(video).read_text())
        old, new = ({"first_frame": r["first_frame"], **r["settings"]} for r in (there, record))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{video} is there already and nothing beside it says what it is: remove it or give another --out"
        ) from error
    for name in new:
        if old.get(name) != new[name]:
            raise ValueError(
                f"{video} is there already, with {name} {old.get(name)} and not {new[name]}: give another --out, or "
                "remove it to make it anew"
            )
    return True


def _unfinished(settings: SampleConfig, records: list[dict[str, Any]]) -> tuple[list[range], set[int]]:
    """Batches that are not whole, and the videos in all batches that are finished."""
    finished = {i for i, record in enumerate(records) if _is_finished(video_path(settings, i), record)}
    starts = range(0, len(records), settings.batch_size)
    batches = [range(start, min(start + settings.batch_size, len(records))) for start in starts]
    return [batch for batch in batches if not finished.issuperset(batch)], finished


def _write(settings: SampleConfig, record: dict[str, Any], frames: np.ndarray) -> None:
    """The record first: a video that is there without one is not ours."""
    video = video_path(settings, record["index"])
    with atomic_write(_record_path(video)) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_video(video, frames, fps=settings.fps)


def _write_grid(settings: SampleConfig, num_frames: int) -> None:
    """The first videos as one mosaic beside the folder, not in it: it is no sample. One that is missing is black."""
    rows, columns = settings.grid_shape()
    paths = [video_path(settings, i) for i in range(rows * columns)]
    videos = {i: read_video(path) for i, path in enumerate(paths) if path.exists()}
    for i, video in videos.items():  # a gif keeps equal frames as one
        videos[i] = np.concatenate([video, video[-1:].repeat(num_frames - len(video), axis=0)])
    black = np.zeros_like(next(iter(videos.values())))
    cells = [videos.get(i, black) for i in range(rows * columns)]
    lines = [np.concatenate(cells[row * columns : (row + 1) * columns], axis=2) for row in range(rows)]
    out = Path(settings.out)
    write_video(out.with_name(f"{out.name}_grid.mp4"), np.concatenate(lines, axis=1), fps=settings.fps)


# The folder


def sample_folder(generator: Generator, settings: SampleConfig) -> None:
    """Make out/video_%05d.mp4 (or .gif, .npy, a folder of frames), each with its settings beside it as .json.

    First frames are those in settings.content, an image, a video (its first frame counts), or a folder of them, those
    that can be read numbered in natural order, used again where more videos are asked for; or they are drawn by a
    content generator. Where one turns out damaged only now, it is named and its number left out. Batches are shared by
    the processes; a video does not depend on who makes it. Videos that are there already, with the same settings, are
    left as they are, and so are all other files. Raises ValueError or FileNotFoundError, before anything is written,
    when the content is missing, a setting cannot be, or a video of other settings has the place of one.
    """
    out = Path(settings.out)
    generator.check(settings)
    num_videos, first_frames, paths = _first_frames_of(generator, settings)
    rows, columns = settings.grid_shape()
    if rows * columns > num_videos:
        raise ValueError(f"--grid {settings.grid} takes {rows * columns} videos, and {num_videos} are made")

    def plan() -> tuple[list[dict[str, Any]], list[range], set[int]]:
        records = _records(generator, settings, num_videos, paths)
        return records, *_unfinished(settings, records)

    records, batches, finished = on_main(plan)  # and nobody writes before all know
    if finished:
        print0(f"{len(finished)} of {num_videos} videos are finished already")
    out.mkdir(parents=True, exist_ok=True)
    mine = batches[rank() :: world_size()]
    num_written = 0
    side, began = generator.config.model.image_size, time.monotonic()
    told = False
    with tqdm(total=sum(map(len, mine)), desc="sample", unit="video", disable=not is_main()) as bar:
        for batch in mine:
            frames = first_frames(batch)
            others = {frame.shape[:2] for frame in frames.values()} - {(side, side)}
            if others and not told and is_main():
                height, width = others.pop()
                bar.write(f"first frames of {width}x{height} are cropped and resized to {side}x{side}, as in training")
                told = True
            if frames:
                videos = generator.animate_batch(list(frames.values()), list(frames), settings, progress=is_main())
                for i, video in zip(frames, videos, strict=True):
                    if i not in finished:
                        _write(settings, records[i], video)
                num_written += len(videos)
                frames_made = num_written * videos.shape[1] * world_size()
                bar.set_postfix_str(f"{frames_made / (time.monotonic() - began):.1f} frames/s")
            bar.update(len(batch))
    if mine and not num_written:
        with suppress(OSError):
            out.rmdir()
        raise ValueError(f"none of the first frames in {settings.content} can be read")
    barrier()
    if settings.grid and is_main():
        _write_grid(settings, generator.num_frames(settings))
