"""Evaluation: flags in, one call out.

python evaluate_FVD.py -dir1 real -dir2 generated -n 16
python scripts/evaluate_VIS.py -dir2 generated -n 16
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from vidm.clip_choice import choose_clips
from vidm.detectors import C3D_PATH, I3D_PATH, PROTOCOLS, STYLEGAN_V, Detector, load_classifier, load_detector, name_of
from vidm.distributed import is_main, launch, world_size
from vidm.evaluation import circumstances, record_of, table_of, write_evaluation_report, write_json
from vidm.frame_metrics import FrameMetrics, compute_frame_metrics
from vidm.metrics import SPLITS, FVDResult, compute_fvd, compute_vis
from vidm.runtime import exit_on_user_error

METRICS = ("fvd", "kvd", "psnr", "ssim")
# StyleGAN-V's three: 16 frames, 128 frames, and 16 frames that span 128.
SUITE = {"FVD16": (16, 1), "FVD128": (128, 1), "FVD128 by 8": (16, 8)}
NOT_SAID = "not said"
TRAIN_SPLIT, HELD_OUT_SPLITS = "train", ("val", "valid", "validation", "test")


def _metrics(text: str) -> list[str]:
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in METRICS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(METRICS)}")
    return chosen


def _add_common_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-b", "--batch", type=int, default=32, metavar="N", help="videos at a time (32)")
    parser.add_argument(
        "-r",
        "--resolution",
        type=int,
        metavar="R",
        help="crop frames to the central square and resize it to R x R, antialiased (default: as stored)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads that read videos (default: the cores, shared by processes)"
    )
    parser.add_argument(
        "--cache", metavar="DIR", help="keep features there, by content and protocol: a run that was stopped goes on"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers and every choice behind them")


def evaluate_parser() -> argparse.ArgumentParser:
    """All flags of evaluate_FVD.py."""
    parser = argparse.ArgumentParser(
        description="Frechet video distance between the real videos (or frame folders, or packs) of one folder and the "
        "generated ones of another."
    )
    parser.add_argument("-dir1", "--dir1", required=True, metavar="DIR", help="real videos")
    parser.add_argument("-dir2", "--dir2", required=True, metavar="DIR", help="generated videos")
    parser.add_argument("-n", "--nframes", type=int, default=128, metavar="N", help="frames per clip (128)")
    parser.add_argument(
        "-ns",
        "--nsamples",
        type=int,
        metavar="N",
        help=f"videos of each folder (default: all, at most {STYLEGAN_V.max_videos})",
    )
    parser.add_argument(
        "-i3d",
        "--i3d",
        metavar="FILE",
        help=f"TorchScript I3D, or random (default: {I3D_PATH} if it is there, else random)",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default=STYLEGAN_V.name,
        help=f"what the detector sees, and the covariance ({STYLEGAN_V.name})",
    )
    parser.add_argument("--frame-stride", type=int, default=1, metavar="K", help="take every K-th frame (1)")
    parser.add_argument(
        "--real-stride",
        type=int,
        default=1,
        metavar="K",
        help="thin the real videos by K besides, for a model trained with --frame-stride K (1)",
    )
    parser.add_argument(
        "--suite", action="store_true", help="FVD16, FVD128 and FVD128 at stride 8 instead of -n and --frame-stride"
    )
    parser.add_argument(
        "--metrics",
        type=_metrics,
        default=["fvd"],
        metavar="LIST",
        help="of fvd, kvd, psnr, ssim, with commas; the last two compare each generated video with its real one (fvd)",
    )
    parser.add_argument("--split", default="", metavar="NAME", help="of dir1: a subfolder or UCF-101 list (all)")
    parser.add_argument(
        "--real", choices=("train", "held-out"), help="what dir1's videos were to the generator, to be recorded"
    )
    parser.add_argument(
        "--first-frames",
        choices=("generated", "train", "held-out"),
        help="where the first frames of dir2's videos came from, to be recorded",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws videos and where clips begin (0)")
    parser.add_argument(
        "--repeats", type=int, default=1, metavar="R", help="draw clips R times: mean and deviation of the numbers (1)"
    )
    _add_common_flags(parser)
    parser.add_argument("--report", metavar="FILE", help="write a page with numbers, curves, best and worst videos")
    return parser


def evaluate_vis_parser() -> argparse.ArgumentParser:
    """All flags of scripts/evaluate_VIS.py."""
    parser = argparse.ArgumentParser(
        description="Video inception score of the generated videos of a folder; real ones have no part in it."
    )
    parser.add_argument("-dir2", "--dir2", required=True, metavar="DIR", help="generated videos")
    parser.add_argument("-n", "--nframes", type=int, default=16, metavar="N", help="first frames of each (16)")
    parser.add_argument("-ns", "--nsamples", type=int, metavar="N", help="videos (default: all, at most 2048)")
    parser.add_argument(
        "-c3d",
        "--c3d",
        metavar="FILE",
        help=f"TorchScript C3D, or random (default: {C3D_PATH} if it is there, else random)",
    )
    parser.add_argument("--splits", type=int, default=SPLITS, metavar="N", help=f"parts to average over ({SPLITS})")
    parser.add_argument(
        "--seed", type=int, default=42, metavar="N", help="draws videos and shuffles them before the cut (42)"
    )
    _add_common_flags(parser)
    return parser


def _ready_to_write(*paths: str | None) -> None:
    """Say before the work what could not be written after it."""
    for path in paths:
        if path and Path(path).is_dir():
            raise ValueError(f"{path} is a folder: give the name of a file")
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)


def _common(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    return {
        "num_samples": options.nsamples,
        "resolution": options.resolution,
        "batch_size": options.batch,
        "workers": options.workers or max(cores // world_size(), 1),
        "progress": True,
        "seed": options.seed,
        "cache": options.cache,
        "device": device,
    }


def _what_is_real(options: argparse.Namespace) -> str:
    if options.real:
        return options.real
    split = options.split.rstrip("123")
    known = {TRAIN_SPLIT: "train", **dict.fromkeys(HELD_OUT_SPLITS, "held-out")}
    return known.get(split, NOT_SAID)


def _refuse_short_videos(options: argparse.Namespace, clips: Iterable[tuple[int, int]]) -> None:
    """Of a suite, say before the first measurement what the last could not take."""
    for num_frames, stride in clips:
        choose_clips(
            options.dir1, num_frames, options.nsamples, stride=stride * options.real_stride, split=options.split
        )
        choose_clips(options.dir2, num_frames, options.nsamples, stride=stride)


def _write(
    options: argparse.Namespace, measured: dict[str, Any], frames: FrameMetrics | None, choices: dict[str, Any]
) -> None:
    if options.json:
        write_json(options.json, record_of(measured, frames, choices))
        print(f"every choice and number: {options.json}")
    if getattr(options, "report", None):
        write_evaluation_report(options.report, measured, frames, choices)
        print(f"{options.report}: open it in a browser")


def _frame_metrics(options: argparse.Namespace, num_frames: int, stride: int, device: torch.device) -> FrameMetrics:
    return compute_frame_metrics(
        options.dir1,
        options.dir2,
        num_frames,
        options.nsamples,
        options.resolution,
        frame_stride=stride,
        real_stride=options.real_stride,
        split=options.split,
        device=device,
    )


def _fvd(
    options: argparse.Namespace,
    detector: Detector,
    num_frames: int,
    stride: int,
    neighbours: bool,
    device: torch.device,
) -> FVDResult:
    return compute_fvd(
        options.dir1,
        options.dir2,
        detector,
        num_frames,
        protocol=PROTOCOLS[options.protocol],
        frame_stride=stride,
        real_stride=options.real_stride,
        split=options.split,
        repeats=options.repeats,
        kernel="kvd" in options.metrics,
        neighbours=neighbours,
        **_common(options, device),
    )


def _choices(options: argparse.Namespace, detector: Detector, device: torch.device) -> dict[str, Any]:
    return {
        "real": options.dir1,
        "split": options.split or "all",
        "real videos were": _what_is_real(options),
        "generated": options.dir2,
        "first frames were": options.first_frames or NOT_SAID,
        "protocol": options.protocol,
        "seed": options.seed,
        "detector": {"name": name_of(detector), "sha256": getattr(detector, "sha256", None)},
        **circumstances(device),
    }


def _evaluate_fvd(device: torch.device, options: argparse.Namespace) -> None:
    with exit_on_user_error():
        _ready_to_write(options.json, options.report)
        detector = load_detector(options.i3d, device)
        name = f"FVD{options.nframes}" + (f" by {options.frame_stride}" if options.frame_stride > 1 else "")
        clips = SUITE if options.suite else {name: (options.nframes, options.frame_stride)}
        distances = bool({"fvd", "kvd"} & set(options.metrics))
        if distances:
            _refuse_short_videos(options, clips.values())
        frames = None
        if {"psnr", "ssim"} & set(options.metrics):
            frames = _frame_metrics(options, *max(clips.values()), device)
        measured: dict[str, FVDResult] = {}
        for name, (num_frames, stride) in clips.items() if distances else ():
            with_neighbours = bool(options.report) and not measured
            measured[name] = _fvd(options, detector, num_frames, stride, with_neighbours, device)
        if not is_main():
            return
        choices = _choices(options, detector, device)
        if measured:
            print(name_of(detector))
        told = ("protocol", "split", "real videos were", "first frames were", "seed")
        print(", ".join(f"{key} {choices[key]}" for key in told))
        if NOT_SAID in choices.values():
            print("say what they were with --real and --first-frames: it belongs beside the number")
        print(table_of(measured, frames, options.metrics))
        for warning in dict.fromkeys(warning for result in measured.values() for warning in result.warnings):
            print(f"warning: {warning}", file=sys.stderr)
        _write(options, measured, frames, choices)


def _evaluate_vis(device: torch.device, options: argparse.Namespace) -> None:
    with exit_on_user_error():
        _ready_to_write(options.json)
        classifier = load_classifier(options.c3d, device)
        result = compute_vis(
            options.dir2, classifier, options.nframes, splits=options.splits, **_common(options, device)
        )
        if not is_main():
            return
        height, width = result.size
        print(f"{result.value:.4f} +- {result.deviation:.4f}  {result.name}")
        print(
            f"{result.num_samples} videos, their first {result.num_frames} frames at {width} x {height}, "
            f"{result.num_classes} classes, {result.splits} splits, seed {result.seed}, {len(result.skipped)} skipped"
        )
        if result.num_samples < result.splits * result.num_classes:
            print(
                f"warning: with {result.num_samples} videos in {result.splits} splits a score cannot exceed "
                f"{result.num_samples / result.splits:g}, whatever the videos; have more, or fewer --splits",
                file=sys.stderr,
            )
        if result.softmax:
            print("the classifier gave scores, of which a softmax was taken", file=sys.stderr)
        detector = {"name": name_of(classifier), "sha256": getattr(classifier, "sha256", None)}
        choices = {"generated": options.dir2, "detector": detector, **circumstances(device)}
        _write(options, {"VIS": result}, None, choices)


def _run(worker: Callable[..., None], options: argparse.Namespace) -> None:
    with exit_on_user_error():
        launch(worker, (options,))


def evaluate_fvd_main(argv: Sequence[str] | None = None) -> None:
    """evaluate_FVD.py: print the distance between two folders, and what it is a distance of; also under torchrun."""
    _run(_evaluate_fvd, evaluate_parser().parse_args(argv))


def evaluate_vis_main(argv: Sequence[str] | None = None) -> None:
    """scripts/evaluate_VIS.py: print the inception score of a folder; also under torchrun."""
    _run(_evaluate_vis, evaluate_vis_parser().parse_args(argv))
