"""A folder of samples -> OUT/report.html: first frames, videos and what really happened, distances, drift. Ours.

write_sample_report(generator, settings)     # after sample_folder(generator, settings)
"""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from vidm.config import SampleConfig
from vidm.datasets import fit_square
from vidm.detectors import STYLEGAN_V, load_detector
from vidm.distributed import is_main
from vidm.frame_metrics import drift
from vidm.generator import Generator
from vidm.metrics import FVDResult, compute_fvd
from vidm.packs import probe, read_frames
from vidm.report import Distance, VideoRow, write_report
from vidm.sampling import is_image, video_path
from vidm.video_io import read_video, write_video

SHOWN = 8
WINDOWS = 4
TITLE = "Generated videos"


def _records(settings: SampleConfig) -> list[dict[str, Any]]:
    """What lies beside the videos that are there, in order."""
    records = [json.loads(path.read_text()) for path in sorted(Path(settings.out).glob("video_*.json"))]
    return [record for record in records if video_path(settings, record["index"]).exists()]


def _rows(
    generator: Generator, settings: SampleConfig, records: list[dict[str, Any]], num_real: int, folder: Path
) -> list[VideoRow]:
    """The first videos: the frame each begins with, the video, and `num_real` frames of what really happened."""
    side = generator.config.model.image_size
    rows = []
    for record in records[:SHOWN]:
        frames = read_video(video_path(settings, record["index"]))
        name = str(record["index"])
        media = [folder / f"{name}.png", folder / f"{name}.mp4"]
        Image.fromarray(frames[0]).save(media[0])
        write_video(media[1], frames, settings.fps)
        if num_real:
            stride = generator.config.data.frame_stride
            real = read_frames(record["first_frame"], range(0, num_real * stride, stride))
            media.append(folder / f"{name}-real.mp4")
            write_video(media[2], fit_square(real, side), settings.fps)
        made = record["settings"]
        how = f"seed {made['seed']}, {made['sampler']}, {made['steps']} steps, psi {made['psi']:g}"
        rows.append(VideoRow(f"video {record['index']}: {how}; first frame {Path(record['first_frame']).name}", media))
    return rows


def _real_videos(settings: SampleConfig, records: list[dict[str, Any]]) -> list[Path]:
    """The videos whose first frames were continued; none where these are images, drawn, or all of one video."""
    if not settings.content or not Path(settings.content).is_dir():
        return []
    paths = [Path(name) for name in dict.fromkeys(record["first_frame"] for record in records)]
    return [] if any(is_image(path) for path in paths) else paths


def _num_real(generator: Generator, settings: SampleConfig, paths: list[Path]) -> int:
    """How many frames of what really happened there are to hold against every video; 0 for too few."""
    stride = generator.config.data.frame_stride
    lengths = [(probe(path).num_frames - 1) // stride + 1 for path in paths]
    found = min([generator.num_frames(settings), *lengths])
    return found if paths and found > 1 else 0


def write_sample_report(generator: Generator, settings: SampleConfig) -> None:
    """Write the page beside the samples; all processes call, the main one writes.

    Where first frames are those of videos, every video stands beside the real one, and two numbers compare as many of
    each: the distance over as many frames as the real ones have, with its floor, and the same within windows of
    frames. With fewer than two videos there is nothing to compare.
    """
    records = _records(settings)
    real = _real_videos(settings, records)
    num_real = _num_real(generator, settings, real)
    size, stride = generator.config.model.image_size, generator.config.data.frame_stride
    result: FVDResult | None = None
    curve: tuple[float, ...] = ()
    num_samples = min(len(records), len(real))
    if num_real and num_samples > 1 and size >= 16:
        protocol = replace(STYLEGAN_V, name="stylegan-v, real clips from their first frame", random_start=False)
        folders = (settings.content, settings.out)
        detector = load_detector(None if num_real >= 10 else "random", generator.device)
        common: dict[str, Any] = {
            "resolution": size,
            "num_samples": num_samples,
            "real_stride": stride,
            "device": generator.device,
        }
        result = compute_fvd(*folders, detector, num_real, protocol=protocol, **common)
        curve = drift(*folders, num_real, max(num_real // WINDOWS, 2), **common)
    if not is_main():
        return
    with TemporaryDirectory() as folder:
        rows = _rows(generator, settings, records, num_real, Path(folder))
        distances = []
        if result:
            if result.floor is not None:
                distances.append(Distance("real against other real videos", result.floor, floor=True))
            distances.append(Distance("generated against real videos", result.value))
        write_report(
            Path(settings.out, "report.html"),
            title=TITLE,
            intro=f"{len(records)} videos of {generator.num_frames(settings)} frames, {len(rows)} of them here.",
            columns=["first frame", "generated", "what happened"][: len(rows[0].media)],
            rows=rows,
            distance_name=result.name if result else "",
            distances=distances,
            notes=result.warnings if result else (),
            settings={name: value for name, value in records[0]["settings"].items() if value not in (None, "")},
            curves={f"distance within windows of {max(num_real // WINDOWS, 2)} frames": curve} if curve else {},
        )
