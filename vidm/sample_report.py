"""Write OUT/report.html for a folder of samples: first frames, generated and real videos, distances, drift. Ours.

write_sample_report(generator, settings)     # after sample_folder(generator, settings)
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from vidm.csv_list import is_list
from vidm.datasets import fit_frames
from vidm.detectors import NUM_RANDOM_FEATURES, STYLEGAN_V, load_detector
from vidm.distributed import is_main, print0
from vidm.evaluation import CLIP_STARTS, GIVEN_FRAME, circumstances, distances_of
from vidm.files import can_be_path, read_json
from vidm.first_frames import is_image
from vidm.floor import enough_for
from vidm.folder_walk import count_of
from vidm.frame_metrics import drift
from vidm.frame_size import FrameSize, sides_of
from vidm.generator import Generator
from vidm.metric_results import FVDResult
from vidm.metrics import compute_fvd
from vidm.packs import probe, read_frames
from vidm.pairing import DRAWN
from vidm.report import Report, VideoRow, write_report
from vidm.sample_config import SampleConfig
from vidm.sampling import video_path
from vidm.video_io import read_video, write_video

SHOWN = 8  # videos on the page
WINDOWS = 4  # windows of frames in the curve of the drift
MIN_SIZE = 16  # pixels; the detectors do not accept smaller videos
MIN_I3D_FRAMES = 10  # shorter videos are measured by the random detector


def _checked(found: Any) -> dict[str, Any]:
    """Return the parts of a record that a page needs. Raises ValueError if it has others."""
    settings = found.get("settings") if isinstance(found, dict) else None
    if not isinstance(settings, dict) or not can_be_path(found.get("first_frame")):
        raise ValueError("it has no settings or no first frame")
    plain = {name: value for name, value in settings.items() if isinstance(value, (str, int, float))}
    if not (type(found.get("index")) is int and found["index"] >= 0 and {"seed", "sampler", "steps"} <= plain.keys()):
        raise ValueError("it has no index, seed, sampler or steps")
    psi = plain.get("psi")
    if not (isinstance(psi, (int, float)) and 0 <= psi <= 1):
        raise ValueError("its psi is not a number from 0 to 1")
    return {"index": found["index"], "first_frame": found["first_frame"], "settings": plain}


def _records(settings: SampleConfig) -> list[dict[str, Any]]:
    """Return the JSON records of the existing videos, by index; other files of such names are printed and skipped.

    Raises ValueError if there are none.
    """
    records = []
    for path in sorted(Path(settings.out).glob("video_*.json")):
        try:
            record = _checked(read_json(path))
            video = video_path(settings, record["index"])
            if video.exists() and path.name == f"{video.stem}.json":
                records.append(record)
        except (OSError, ValueError) as error:
            print0(f"skipped: {path}: not a record of a sampled video ({error})")
    if not records:
        raise ValueError(f"no video in {settings.out} has a record of how it was sampled: sample again")
    return records


def _rows(
    generator: Generator, settings: SampleConfig, records: list[dict[str, Any]], num_real: int, folder: Path
) -> list[VideoRow]:
    """Return a row for each of the first videos: first frame, generated video, `num_real` frames of the real one."""
    size, data = generator.config.model.image_size, generator.config.data
    rows = []
    for record in records[:SHOWN]:
        frames = read_video(video_path(settings, record["index"]))
        name = str(record["index"])
        media = [folder / f"{name}.png", folder / f"{name}.mp4"]
        Image.fromarray(frames[0]).save(media[0])
        write_video(media[1], frames, settings.fps)
        if num_real:
            numbers = range(0, num_real * data.frame_stride, data.frame_stride)
            real = read_frames(record["first_frame"], numbers)
            media.append(folder / f"{name}-real.mp4")
            write_video(media[2], fit_frames(real, size, data.fit), settings.fps)
        used = record["settings"]
        how = f"seed {used['seed']}, {used['sampler']}, {used['steps']} steps, psi {used['psi']:g}"
        if used.get("class_name"):
            guidance = used.get("guidance", 1)
            how = f"class {used['class_name']}, " + (f"guidance {guidance}, " if guidance != 1 else "") + how
        rows.append(VideoRow(f"video {record['index']}: {how}; first frame {Path(record['first_frame']).name}", media))
    return rows


def _real_videos(settings: SampleConfig, records: list[dict[str, Any]]) -> list[Path]:
    """Return the real videos of the first frames; empty if these come from images, one video or a generator."""
    if not settings.content or not (Path(settings.content).is_dir() or is_list(settings.content)):
        return []
    paths = [Path(name) for name in dict.fromkeys(record["first_frame"] for record in records)]
    return [] if any(is_image(path) for path in paths) else paths


def _num_real(generator: Generator, settings: SampleConfig, paths: list[Path]) -> int:
    """Return how many frames of every real video can be compared with generated ones; 0 if fewer than two."""
    stride = generator.config.data.frame_stride
    lengths = [(probe(path).num_frames - 1) // stride + 1 for path in paths]
    shortest = min([generator.num_frames(settings), *lengths])
    return shortest if paths and shortest > 1 else 0


def _no_distances(
    settings: SampleConfig, records: list[dict[str, Any]], num_real: int, num_samples: int, size: FrameSize
) -> str:
    """Say why there is no distance of `num_samples` videos with `num_real` real frames each; "" if there is one."""
    if not num_samples:
        drawn = records[0]["first_frame"] == DRAWN
        what = "first frames were generated" if drawn else "first frames are not of a folder or list of videos"
        return f"{what}; evaluate_FVD.py -dir1 REAL -dir2 {settings.out} compares with any real videos"
    if not num_real:
        return "a real or generated video has only one frame"
    if num_samples < 2:
        return "it needs two generated and two real videos"
    return f"frames are smaller than {MIN_SIZE} pixels" if min(sides_of(size)) < MIN_SIZE else ""


def _settings_of(records: list[dict[str, Any]]) -> dict[str, str]:
    """Return the settings of all videos; of a setting that differs, how many videos have each value."""
    counts = {name: Counter(record["settings"].get(name) for record in records) for name in records[0]["settings"]}
    found = {}
    for name, values in counts.items():
        texts = {value: str(value) if len(values) == 1 else f"{value} ({count})" for value, count in values.items()}
        found[name] = ", ".join(text for value, text in texts.items() if value not in (None, ""))
    return {name: text for name, text in found.items() if text}


def _protocol_of(result: FVDResult) -> dict[str, str]:
    """Say how the page's distance was measured, and how evaluate_FVD.py measures."""
    real, made = result.num_samples
    return {
        "distance": f"{real} real videos, drawn by the seed if there are more, and {made} generated ones, "
        f"the first {count_of(result.num_frames, 'frame')}; "
        f"protocol {result.protocol}; evaluate_FVD.py draws equally many with -ns {made}, and begins real clips "
        f"{CLIP_STARTS[STYLEGAN_V.random_start]}",
        "given first frame": GIVEN_FRAME,
    }


def _origin(generator: Generator, settings: SampleConfig) -> dict[str, str]:
    found = circumstances(generator.device)
    chosen = {"split": settings.split, "layout": settings.layout if settings.layout != "auto" else ""}
    content = {"first frames": settings.content or "generated"} | {name: each for name, each in chosen.items() if each}
    if generator.content_path:
        content["content checkpoint"] = str(generator.content_path)
    return {"checkpoint": str(generator.path), **content, "date": found["date"], "command": found["command"]}


def write_sample_report(generator: Generator, settings: SampleConfig) -> None:
    """Write OUT/report.html for the samples in OUT. All processes call it; the main one writes.

    If the first frames come from real videos, each generated video is shown next to the real one. With two or more
    videos, the page also shows the distance between equally many generated and real videos, with its floor, and, with
    enough videos for it, the drift, which is the distance within windows of frames. Both use as many frames as the
    shortest video has.
    """
    records = _records(settings)
    real = _real_videos(settings, records)
    num_real = _num_real(generator, settings, real)
    size, data = generator.config.model.image_size, generator.config.data
    result: FVDResult | None = None
    curve: tuple[float, ...] = ()
    num_samples, window = min(len(records), len(real)), max(num_real // WINDOWS, 2)
    missing = _no_distances(settings, records, num_real, num_samples, size)
    if not missing:
        protocol = replace(STYLEGAN_V, name="stylegan-v, real clips from their first frame", random_start=False)
        folders = (settings.content, settings.out)
        detector = load_detector(None if num_real >= MIN_I3D_FRAMES else "random", generator.device)
        common: dict[str, Any] = {
            "resolution": size,
            "num_samples": num_samples,
            "fit": data.fit,
            "split": settings.split,
            "layout": settings.layout,
            "real_stride": data.frame_stride,
            "device": generator.device,
        }
        result = compute_fvd(*folders, detector, num_real, protocol=protocol, **common)
        if num_samples >= enough_for(NUM_RANDOM_FEATURES):
            curve = drift(*folders, num_real, window, **common)
    if not is_main():
        return
    with TemporaryDirectory() as folder:
        rows = _rows(generator, settings, records, num_real, Path(folder))
        notes = list(result.warnings) if result else []
        if result and not curve:
            needed = enough_for(NUM_RANDOM_FEATURES)
            notes.append(f"no curve of the drift: {count_of(num_samples, 'video')}, and it needs {needed}")
        drift_label = f"random-feature Frechet distance within windows of {window} frames"
        report = Report(
            title="Generated videos",
            intro=f"{count_of(len(records), 'video')} of {count_of(generator.num_frames(settings), 'frame')}, "
            f"{len(rows)} shown." + (f" No distance to real videos: {missing}." if missing else ""),
            columns=["first frame", "generated", "ground truth"][: len(rows[0].media)],
            rows=rows,
            distance_name=result.name if result else "",
            distances=distances_of(result) if result else (),
            notes=notes,
            settings={
                **_origin(generator, settings),
                **(_protocol_of(result) if result else {}),
                **_settings_of(records),
            },
            curves={drift_label: curve} if curve else {},
            axes={drift_label: ("window", "distance")},
        )
        write_report(Path(settings.out, "report.html"), report)
