"""Format measurements as a table for the terminal, a JSON record and an HTML page. Ours.

    measured = {"FVD16": compute_fvd(real, generated, detector, 16, neighbours=True)}
    choices = {"real": real, "generated": generated, **circumstances("cpu")}
    print(*table_of(measured, None), sep="\n")
    write_json("fvd.json", record_of(measured, None, choices))
    write_evaluation_report("fvd.html", measured, None, choices)

All three contain the settings of the measurement, without which numbers cannot be compared.
"""

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from vidm.datasets import fit_frames, window_length
from vidm.files import append, atomic_write, target_of
from vidm.frame_metrics import FrameMetrics
from vidm.metrics import FVDResult, VISResult
from vidm.packs import read_frames
from vidm.report import Distance, Report, VideoRow, write_report
from vidm.runtime import provenance
from vidm.video_io import write_video

SHOWN = 4
FPS = 8
LIBRARIES = ("python", "vidm", "torch", "numpy", "av", "pillow")
FLOOR = "floor: real against other real videos"

Measured = Mapping[str, FVDResult]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def table_of(measured: Measured, frames: FrameMetrics | None, metrics: Sequence[str] = ("psnr", "ssim")) -> list[str]:
    """Return lines for a terminal: every number with its deviation over repeats, its floor and its clips.

    `metrics` names the frame metrics to print.
    """
    lines = [f"{'':<14}{'value':>12}{'deviation':>12}{'floor':>12}   clips"]
    for name, result in measured.items():
        real, made = result.num_samples
        height, width = result.size
        stride = f" at stride {result.frame_strides[1]}" if result.frame_strides[1] > 1 else ""
        clips = f"{real} against {made} videos, {result.num_frames} frames{stride}, {width} x {height}"
        numbers = "".join(f"{_number(value):>12}" for value in (result.value, result.deviation, result.floor))
        lines.append(f"{name:<14}{numbers}   {clips}")
        if result.kernel is not None:
            kernels = "".join(f"{_number(value):>12}" for value in (result.kernel, result.kernel_deviation, None))
            lines.append(f"{name + ' kernel':<14}{kernels}   in the same features")
    for name, label in (("psnr", "PSNR, dB"), ("ssim", "SSIM")):
        if frames and name in metrics:
            lines.append(
                f"{label:<14}{_number(getattr(frames, name)):>12}{'':>27}{frames.num_pairs} pairs {frames.pairing}"
            )
    return lines


def text_of_vis(result: VISResult) -> list[str]:
    """Return two lines for a terminal: the score and its clips."""
    height, width = result.size
    return [
        f"{result.value:.4f} +- {result.deviation:.4f}  {result.name}",
        f"{result.num_samples} videos, their first {result.num_frames} frames at {width} x {height}, "
        f"{result.num_classes} classes, {result.splits} splits, seed {result.seed}, {len(result.skipped)} skipped",
    ]


def warnings_of(measured: Measured, frames: FrameMetrics | None) -> list[str]:
    """Return the warnings of all measurements, each once."""
    warnings = [warning for result in measured.values() for warning in result.warnings]
    return list(dict.fromkeys([*warnings, *(frames.warnings if frames else ())]))


def circumstances(device: torch.device | str) -> dict[str, Any]:
    """Return the date, the versions of the libraries and the machine, for a record."""
    found = provenance(LIBRARIES, device)
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "device": found["device"]}
    return {"date": found["date"], "versions": found["versions"], "machine": machine}


def record_of(measured: Mapping[str, Any], frames: FrameMetrics | None, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of JSON values: the `choices`, each result by name, and PSNR and SSIM if measured."""
    if "contents" in choices:
        contents = {folder: contents._asdict() for folder, contents in choices["contents"].items()}
        choices = {**choices, "contents": contents}
    results = {name: asdict(result) | {"deviation": result.deviation} for name, result in measured.items()}
    return {**choices, "results": results} | ({"frame_metrics": asdict(frames)} if frames else {})


def write_json(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write a record atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def _clip(path: Path, start: int, result: FVDResult, stride: int) -> np.ndarray:
    frames = read_frames(path, range(start, start + window_length(result.num_frames, stride), stride))
    return frames if result.resolution is None else fit_frames(frames, result.resolution, result.fit)


def _rows(result: FVDResult, folder: Path) -> list[VideoRow]:
    """Return rows of the generated videos nearest to a real one and of the farthest, each next to that real video."""
    found = result.neighbours
    shown = dict.fromkeys([*found[:SHOWN], *found[-SHOWN:]])
    rows = []
    for number, neighbour in enumerate(shown):
        kind = "best" if number < min(SHOWN, len(found)) else "worst"
        media = [folder / f"{number}-made.mp4", folder / f"{number}-real.mp4"]
        write_video(media[0], _clip(neighbour.path, 0, result, result.frame_strides[1]), fps=FPS)
        write_video(media[1], _clip(neighbour.nearest, neighbour.start, result, result.frame_strides[0]), fps=FPS)
        caption = f"{kind}: {neighbour.path.name}, {neighbour.distance:.4g} from {neighbour.nearest.name}"
        rows.append(VideoRow(caption, media))
    return rows


def _distances(measured: Measured) -> list[Distance]:
    """Return the lines of the table of distances; floors are marked only if there is a single measurement."""
    lines = []
    for name, result in measured.items():
        if result.floor is not None:
            lines.append(Distance(f"{name}, {FLOOR}", result.floor, floor=len(measured) == 1))
        lines.append(Distance(f"{name}, generated against real videos", result.value))
    return lines


def _settings(choices: Mapping[str, Any], measured: Measured) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, choice in choices.items():
        if name == "contents":
            flat.update({f"contents of {folder}": str(contents) for folder, contents in choice.items()})
        elif isinstance(choice, Mapping):
            flat[name] = ", ".join(f"{key} {value}" for key, value in choice.items())
        else:
            flat[name] = choice
    for name, result in measured.items():
        real, made = result.num_samples
        flat[name] = f"{real} against {made} videos, {result.num_frames} frames, strides {result.frame_strides}, " + (
            f"values {', '.join(map(_number, result.values))}, kernel distance {_number(result.kernel)}, "
            f"{result.feature_dim} features, {len(result.skipped)} skipped"
        )
    return flat


def write_evaluation_report(
    path: str | Path, measured: Measured, frames: FrameMetrics | None, choices: Mapping[str, Any]
) -> None:
    """Write the page with numbers, floors, best and worst videos next to the nearest real ones, curves and choices.

    The videos are those of the first measurement, if it was made with neighbours=True.
    """
    first = next(iter(measured.values()), None)
    curves: dict[str, Sequence[float]] = {}
    if frames:
        curves = {"PSNR by frame, dB": frames.psnr_by_frame, "SSIM by frame": frames.ssim_by_frame}
    with TemporaryDirectory() as folder:
        report = Report(
            title="Evaluation",
            intro="Generated videos compared with real ones. Each video that is shown is next to the real one with the "
            "nearest features: first the nearest pairs, then the farthest.",
            columns=["generated", "nearest real video"],
            rows=_rows(first, Path(folder)) if first else [],
            distance_name=first.name if first else "",
            distances=_distances(measured),
            notes=warnings_of(measured, frames),
            settings=_settings(choices, measured),
            curves=curves,
        )
        write_report(path, report)


@contextmanager
def ready_to_write(*paths: str | Path | None) -> Iterator[None]:
    """Raise, before a block that takes long, the errors of outputs that could not be written after it; None is no
    output. Missing folders are created. Ours."""
    with ExitStack() as opened:
        for path in [path for path in paths if path]:
            target = target_of(path)
            if target.is_dir():
                raise ValueError(f"{path} is a folder: give the name of a file")
            if target.is_fifo():  # held open, because its reader ends with the last process that writes
                with suppress(OSError):
                    opened.callback(os.close, os.open(target, os.O_WRONLY | os.O_NONBLOCK))
            if target.exists() and not target.is_file():
                append(target, b"")
            target.parent.mkdir(parents=True, exist_ok=True)
        yield


def write_results(
    json_path: str | None,
    report_path: str | None,
    measured: Mapping[str, Any],
    frames: FrameMetrics | None,
    choices: Mapping[str, Any],
) -> None:
    """Write the record and the page, each if there is a path for it, and print where they are."""
    if json_path:
        write_json(json_path, record_of(measured, frames, choices))
        print(f"wrote all numbers and settings to {json_path}")
    if report_path:
        write_evaluation_report(report_path, measured, frames, choices)
        print(f"wrote {report_path}: open it in a browser")
