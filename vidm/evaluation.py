"""Write measurements as a JSON record and an HTML page. Ours.

    measured = {f"{label_of(detector)}16": compute_fvd(real, generated, detector, 16, neighbours=True)}
    choices = {"real": real, "generated": generated, **circumstances("cpu")}
    write_json("fvd.json", record_of(measured, None, choices))
    write_evaluation_report("fvd.html", measured, None, choices)

Both contain the settings of the measurement, without which numbers cannot be compared.
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

from vidm.console import command_line
from vidm.datasets import fit_frames, window_length
from vidm.files import append, atomic_write, target_of
from vidm.folder_walk import count_of
from vidm.frame_metrics import FrameMetrics
from vidm.metric_results import FVDResult
from vidm.packs import read_frames
from vidm.report import Distance, Report, VideoRow, decimal, write_report
from vidm.result_tables import FRAME_METRICS, Measured, labelled, mark_of, number_text, pairs_text
from vidm.runtime import provenance
from vidm.video_io import write_video

SHOWN = 4
FPS = 8
LIBRARIES = ("python", "vidm", "torch", "numpy", "av", "pillow")
# What a measurement does with the first frame of generated videos, if it was given. Published distances include it.
GIVEN_FRAME = "counts in distances, not in PSNR and SSIM"
CLIP_STARTS = {False: "at the first frame", True: "at a frame drawn by the seed"}


def _times_floor(value: float, floor: float | None) -> str:
    return f"{decimal(value / floor, 2)} \N{MULTIPLICATION SIGN}" if floor else ""


def _repeated(label: str, deviation: float | None, result: FVDResult) -> str:
    """A label with the deviation over repeats, if there is one."""
    return label if deviation is None else f"{label}; mean of {len(result.values)}, deviation {deviation:.4g}"


def distances_of(result: FVDResult, name: str = "", kind: str = "Frechet") -> list[Distance]:
    """Return the lines of a page's table: the distance, that of fewer videos which its floor is of, and the floor.

    Only a distance that says something is shown as a multiple of its floor. [] for a kind that was not measured. Ours.
    """
    if kind not in result.measures:
        return []
    found = result.measures[kind]
    prefix, mark = f"{labelled(name, kind)}: " if name else "", mark_of(found)
    real, made = result.num_samples
    label = _repeated(f"{prefix}{made} generated against {real} real videos", found.deviation, result)
    lines = [
        Distance(label, found.value, note=mark or (_times_floor(found.value, found.floor) if found.is_whole else ""))
    ]
    if found.matched is None or found.floor is None or result.matched_samples is None:
        return lines
    reference, count = result.matched_samples
    if not found.is_whole:
        label = f"{prefix}matched: {count} generated against {reference} real videos"
        label = _repeated(label, found.matched_deviation, result)
        lines.append(Distance(label, found.matched, note=mark or _times_floor(found.matched, found.floor)))
    floors = {"Frechet": f"{count} other real against the same {reference} real videos"}
    floors["kernel"] = f"real videos divided at random into {count} and {reference}"
    label = _repeated(f"{prefix}floor: {floors[kind]}", found.floor_deviation, result)
    return [*lines, Distance(label, found.floor, floor=True)]


def warnings_of(measured: Measured, frames: FrameMetrics | None) -> list[str]:
    """Return the warnings of all measurements, each once."""
    warnings = [warning for result in measured.values() for warning in result.warnings]
    return list(dict.fromkeys([*warnings, *(frames.warnings if frames else ())]))


def circumstances(device: torch.device | str) -> dict[str, Any]:
    """Return the date, the command, the versions of the libraries and the machine, for a record."""
    found = provenance(LIBRARIES, device)
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "device": found["device"]}
    return {"date": found["date"], "command": command_line(), "versions": found["versions"], "machine": machine}


def record_of(measured: Mapping[str, Any], frames: FrameMetrics | None, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of JSON values: the `choices`, each result by name, and PSNR and SSIM if measured."""
    if "contents" in choices:
        contents = {folder: contents._asdict() for folder, contents in choices["contents"].items()}
        choices = {**choices, "contents": contents}
    results = {name: asdict(result) | {"deviation": result.deviation} for name, result in measured.items()}
    for name, result in measured.items():
        for kind, found in result.measures.items() if isinstance(result, FVDResult) else ():
            prefix = "" if kind == "Frechet" else f"{kind}_"
            extra = {"deviation": found.deviation, "says_nothing": found.says_nothing, "needed": found.needed}
            results[name] |= {f"{prefix}{key}": value for key, value in extra.items()}
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
    near = min(SHOWN, (len(found) + 1) // 2)
    shown = [("nearest", each) for each in found[:near]]
    shown += [("farthest", each) for each in found[max(near, len(found) - SHOWN) :]]
    rows = []
    for number, (kind, neighbour) in enumerate(shown):
        media = [folder / f"{number}-made.mp4", folder / f"{number}-real.mp4"]
        write_video(media[0], _clip(neighbour.path, 0, result, result.frame_strides[1]), fps=FPS)
        write_video(media[1], _clip(neighbour.nearest, neighbour.start, result, result.frame_strides[0]), fps=FPS)
        caption = f"{kind}: {neighbour.path.name}, {neighbour.distance:.4g} from {neighbour.nearest.name}"
        rows.append(VideoRow(caption, media))
    return rows


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
        (real, made), (real_stride, made_stride) = result.num_samples, result.frame_strides
        flat[name] = (
            f"{real} real and {made} generated videos, {count_of(result.num_frames, 'frame')} at stride {real_stride} "
            f"(real) and {made_stride} (generated), {result.feature_dim} features, {len(result.skipped)} skipped"
        )
        if len(result.values) > 1:
            flat[f"{name}: repeats"] = ", ".join(map(number_text, result.values))
        if len(result.kernel_values) > 1:
            flat[f"{labelled(name, 'kernel')}: repeats"] = ", ".join(map(number_text, result.kernel_values))
    return flat


def write_evaluation_report(
    path: str | Path, measured: Measured, frames: FrameMetrics | None, choices: Mapping[str, Any]
) -> None:
    """Write the page with numbers, floors, curves, the nearest and the farthest videos next to real ones, and choices.

    The videos are those of the first measurement, if it was made with neighbours=True.
    """
    first = next(iter(measured.values()), None)
    curves: dict[str, Sequence[float]] = {}
    if frames:  # without frame 0, which is given
        by_frame = [each[1:] or each for each in (frames.psnr_by_frame, frames.ssim_by_frame)]
        labels = f"PSNR by frame, dB; mean {frames.psnr:.4g}", f"SSIM by frame; mean {frames.ssim:.4g}"
        curves = {f"{label}; {pairs_text(frames)}": each for label, each in zip(labels, by_frame, strict=True)}
    last = len(frames.psnr_by_frame) - 1 if frames else 0
    intro = "Generated videos compared with real ones."
    if first:
        intro += (
            " Each video that is shown is next to the real one with the nearest features (their Euclidean distance "
            "is in the caption): first the nearest pairs, then the farthest."
        )
    with TemporaryDirectory() as folder:
        report = Report(
            title="Evaluation",
            intro=intro,
            columns=["generated", "nearest real video"],
            rows=_rows(first, Path(folder)) if first else [],
            distance_name=first.name if first else "",
            distances=[line for name, result in measured.items() for line in distances_of(result, name)],
            kernel_distances=[
                line for name, result in measured.items() for line in distances_of(result, name, "kernel")
            ],
            notes=warnings_of(measured, frames),
            settings=_settings(choices, measured),
            curves=curves,
            x_ranges=dict.fromkeys(curves, (min(1, last), last)),
            axes={label: ("frame", unit) for label, unit in zip(curves, FRAME_METRICS.values(), strict=False)},
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
