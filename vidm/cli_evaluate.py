"""The evaluation commands: they parse flags, measure, and print or write the results.

python evaluate_FVD.py -dir1 real -dir2 generated -n 16
python scripts/evaluate_VIS.py -dir2 generated -n 16
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from vidm.clip_choice import ClipSelection, FolderContents, choose_clips, contents_of, index_of
from vidm.console import CommandParser
from vidm.detectors import (
    PROTOCOLS,
    STYLEGAN_V,
    Detector,
    identity_of,
    load_classifier,
    load_detector,
)
from vidm.distributed import is_main, on_main, print0, world_size
from vidm.evaluation import circumstances, ready_to_write, table_of, text_of_vis, warnings_of, write_results
from vidm.features import MeasureSettings
from vidm.files import LARGEST
from vidm.frame_metrics import FrameMetrics, frame_metrics_of
from vidm.frame_size import FITS, frame_size
from vidm.images import LARGEST_SIDE
from vidm.launch import launch
from vidm.layouts import LAYOUTS
from vidm.metrics import SPLITS, FVDResult, compute_vis, fvd_of
from vidm.runtime import exit_on_user_error

NUM_FRAMES = 128
METRICS = ("fvd", "kvd", "psnr", "ssim")
# StyleGAN-V's three measurements: 16 frames, 128 frames, and 16 frames at stride 8.
SUITE = {"FVD16": (16, 1), "FVD128": (128, 1), "FVD128 by 8": (16, 8)}
NOT_SPECIFIED = "not specified"
# The smallest and largest values of flags, if not 1 and LARGEST. numpy takes no larger seed.
RANGES = {"seed": (0, 2**32 - 1), "workers": (1, 1024), "resolution": (1, LARGEST_SIDE)}
# Whether a generator was trained on the videos of a split of this name, unless --real says otherwise.
USE_OF_SPLIT = {"train": "train", **dict.fromkeys(("val", "valid", "validation", "test"), "held-out")}
USES = tuple(dict.fromkeys(USE_OF_SPLIT.values()))


# Flags


def _metrics(text: str) -> list[str]:
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in METRICS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(METRICS)}")
    return chosen


def _add_common_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-b", "--batch", type=int, default=32, metavar="N", help="videos per batch (32)")
    parser.add_argument(
        "-r",
        "--resolution",
        type=frame_size,
        metavar="R",
        help="size that frames are brought to: R for squares, HxW for height x width (default: as stored)",
    )
    parser.add_argument(
        "--fit", choices=FITS, help="with -r: crop frames of another shape to their centre, or pad them (crop)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads that read videos (default: the cores, shared by processes)"
    )
    parser.add_argument(
        "--cache", metavar="DIR", help="folder that keeps features for later runs; a stopped run continues from it"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers and all settings as JSON")


def _add_protocol_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the metrics and the protocol."""
    parser.add_argument(
        "-i3d",
        "--i3d",
        metavar="FILE",
        help="TorchScript I3D, a program that you trust, or random (default: the downloaded I3D if any, else random)",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default=STYLEGAN_V.name,
        help=f"chooses the detector's input, the clips' starts and the covariance ({STYLEGAN_V.name})",
    )
    parser.add_argument(
        "--suite", action="store_true", help="16 frames, 128 frames, and 16 at stride 8, not -n and --frame-stride"
    )
    parser.add_argument(
        "--metrics",
        type=_metrics,
        default=["fvd"],
        metavar="LIST",
        help=f"some of {','.join(METRICS)}; the last two compare each generated video with its real one (fvd)",
    )
    parser.add_argument(
        "--repeats", type=int, default=1, metavar="R", help="draw clips R times and print mean and deviation (1)"
    )


def evaluate_parser() -> argparse.ArgumentParser:
    """Return the parser of evaluate_FVD.py, with all its flags."""
    parser = CommandParser(
        "Frechet video distance between the real videos (or frame folders, or packs) of one folder and the "
        "generated ones of another."
    )
    parser.add_argument("-dir1", "--dir1", required=True, metavar="DIR", help="real videos")
    parser.add_argument("-dir2", "--dir2", required=True, metavar="DIR", help="generated videos")
    parser.add_argument(
        "-n", "--nframes", type=int, default=NUM_FRAMES, metavar="N", help=f"frames per clip ({NUM_FRAMES})"
    )
    parser.add_argument(
        "-ns",
        "--nsamples",
        type=int,
        metavar="N",
        help=f"videos of each folder (default: all, at most {STYLEGAN_V.max_videos})",
    )
    parser.add_argument("--frame-stride", type=int, default=1, metavar="K", help="take every K-th frame (1)")
    parser.add_argument(
        "--real-stride",
        type=int,
        default=1,
        metavar="K",
        help="multiply the stride of real videos by K, for a model trained with --frame-stride K (1)",
    )
    parser.add_argument("--split", default="", metavar="NAME", help="split of dir1: a subfolder or UCF-101 list (all)")
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="layout of dir1, as in training (auto)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the choice of videos and clips (0)")
    _add_protocol_flags(parser)
    parser.add_argument("--real", choices=USES, help="record whether the generator was trained on dir1's videos")
    parser.add_argument(
        "--first-frames",
        choices=("generated", *USES),
        help="record where the first frames of dir2's videos came from",
    )
    _add_common_flags(parser)
    parser.add_argument("--report", metavar="FILE", help="write a page with numbers, curves, best and worst videos")
    return parser


def evaluate_vis_parser() -> argparse.ArgumentParser:
    """Return the parser of scripts/evaluate_VIS.py, with all its flags."""
    parser = CommandParser("Video inception score of the generated videos of a folder; real videos are not used.")
    parser.add_argument("-dir2", "--dir2", required=True, metavar="DIR", help="generated videos")
    parser.add_argument("-n", "--nframes", type=int, default=16, metavar="N", help="first frames per video (16)")
    parser.add_argument("-ns", "--nsamples", type=int, metavar="N", help="videos (default: all, at most 2048)")
    parser.add_argument(
        "-c3d",
        "--c3d",
        metavar="FILE",
        help="TorchScript C3D, a program that you trust, or random (default: the downloaded C3D if any, else random)",
    )
    parser.add_argument("--splits", type=int, default=SPLITS, metavar="N", help=f"parts to average over ({SPLITS})")
    parser.add_argument(
        "--seed", type=int, default=42, metavar="N", help="seed of the choice and the order of videos (42)"
    )
    _add_common_flags(parser)
    return parser


# Commands


def _workers(options: argparse.Namespace) -> int:
    return options.workers or max((os.cpu_count() or 1) // world_size(), 1)


def _selections(options: argparse.Namespace) -> dict[str, ClipSelection]:
    """Return the clips of dir1 for every measurement, by the measurement's name."""
    protocol = PROTOCOLS[options.protocol]
    frames = (options.nframes, options.nsamples, options.resolution, options.frame_stride, options.real_stride)
    videos = (options.split, options.seed, protocol.random_start, protocol.max_videos)
    fit = options.fit or "crop"
    selection = ClipSelection(options.dir1, *frames, *videos, layout=options.layout, fit=fit)
    if options.suite:
        return {name: replace(selection, num_frames=n, frame_stride=stride) for name, (n, stride) in SUITE.items()}
    name = f"FVD{options.nframes}" + (f" by {options.frame_stride}" if options.frame_stride > 1 else "")
    return {name: selection}


def _found(*selections: ClipSelection) -> dict[str, FolderContents]:
    """Return what is in each folder and print it. All processes call this."""
    contents = {str(each.folder): on_main(partial(contents_of, index_of(each)), FolderContents) for each in selections}
    for folder, found in contents.items():
        print0(f"{folder}: {found}")
    return contents


def _choices(options: argparse.Namespace, detector: Detector, device: torch.device) -> dict[str, Any]:
    list_name = options.split.rstrip("123")  # UCF-101's lists are train1, test1, ...
    return {
        "real": options.dir1,
        "split": options.split or "all",
        "layout": options.layout,
        "real videos were": options.real or USE_OF_SPLIT.get(list_name, NOT_SPECIFIED),
        "generated": options.dir2,
        "first frames were": options.first_frames or NOT_SPECIFIED,
        "protocol": options.protocol,
        "seed": options.seed,
        "detector": identity_of(detector),
        **circumstances(device),
    }


def _print(
    measured: dict[str, FVDResult], frames: FrameMetrics | None, metrics: list[str], choices: dict[str, Any]
) -> None:
    if measured:
        print(choices["detector"]["name"])
    printed = ("protocol", "split", "real videos were", "first frames were", "seed")
    print(", ".join(f"{key} {choices[key]}" for key in printed))
    if NOT_SPECIFIED in choices.values():
        print("record where the videos came from with --real and --first-frames: numbers cannot be compared without it")
    print(*table_of(measured, frames, metrics), sep="\n")
    for warning in warnings_of(measured, frames):
        print(f"warning: {warning}", file=sys.stderr)


def _check_common_flags(options: argparse.Namespace) -> None:
    """Raise ValueError, naming the flag, for invalid values."""
    for name, value in vars(options).items():
        if value == "" and name != "split":
            raise ValueError(f"--{name} is empty: give a path, or leave it out")
        least, most = RANGES.get(name, (1, LARGEST))
        numbers = value if isinstance(value, tuple) else (value,)
        if any(type(number) is int and not least <= number <= most for number in numbers):
            shown = "x".join(map(str, numbers))
            raise ValueError(f"--{name.replace('_', '-')} {shown}: give a number from {least} to {most}")
    if options.fit and not options.resolution:
        raise ValueError("--fit has no effect without -r: frames are used as stored")


def _check_fvd_flags(options: argparse.Namespace) -> None:
    """Raise ValueError, naming the flag, for invalid values and for flags without effect."""
    _check_common_flags(options)
    if options.suite and (options.nframes != NUM_FRAMES or options.frame_stride != 1):
        raise ValueError("-n and --frame-stride have no effect with --suite, which has its own")
    if options.repeats != 1 and not {"fvd", "kvd"} & set(options.metrics):
        raise ValueError("--repeats has no effect on PSNR and SSIM: add fvd or kvd to --metrics")


def _evaluate_fvd(device: torch.device, options: argparse.Namespace) -> None:
    with exit_on_user_error(), ready_to_write(options.json, options.report):
        detector = load_detector(options.i3d, device)
        protocol = PROTOCOLS[options.protocol]
        settings = MeasureSettings(
            detector, protocol, options.batch, _workers(options), device, progress=True, cache=options.cache
        )
        pairs = {name: (real, real.generated(options.dir2)) for name, real in _selections(options).items()}
        contents = _found(*min(pairs.values(), key=lambda pair: pair[0].length))
        distances = bool({"fvd", "kvd"} & set(options.metrics))
        if distances:
            for pair in pairs.values():  # report videos that are too short for any measurement before the first one
                for selection in pair:
                    choose_clips(selection)
        frames = None
        if {"psnr", "ssim"} & set(options.metrics):
            longest = max(pairs.values(), key=lambda pair: (pair[1].num_frames, pair[1].frame_stride))
            frames = frame_metrics_of(*longest, device)
        measured: dict[str, FVDResult] = {}
        for name, pair in pairs.items() if distances else ():
            neighbours = bool(options.report) and not measured  # the page shows those of the first measurement
            measured[name] = fvd_of(*pair, settings, options.repeats, "kvd" in options.metrics, neighbours)
        if is_main():
            choices = {**_choices(options, detector, device), "contents": contents}
            _print(measured, frames, options.metrics, choices)
            write_results(options.json, options.report, measured, frames, choices)


def _evaluate_vis(device: torch.device, options: argparse.Namespace) -> None:
    with exit_on_user_error(), ready_to_write(options.json):
        classifier = load_classifier(options.c3d, device)
        contents = _found(ClipSelection(options.dir2, options.nframes))
        result = compute_vis(
            options.dir2,
            classifier,
            options.nframes,
            options.nsamples,
            options.resolution,
            options.batch,
            _workers(options),
            progress=True,
            splits=options.splits,
            fit=options.fit or "crop",
            seed=options.seed,
            cache=options.cache,
            device=device,
        )
        if not is_main():
            return
        print(*text_of_vis(result), sep="\n")
        if result.num_samples < result.splits * result.num_classes:
            print(
                f"warning: with {result.num_samples} videos in {result.splits} splits a score cannot exceed "
                f"{result.num_samples / result.splits:g}, for any videos; use more videos or fewer --splits",
                file=sys.stderr,
            )
        if result.softmax:
            print("the classifier returned scores: a softmax was applied", file=sys.stderr)
        choices = {"generated": options.dir2, "detector": identity_of(classifier), **circumstances(device)}
        choices |= {"contents": contents}
        write_results(options.json, None, {"VIS": result}, None, choices)


def _run(check: Callable[..., None], worker: Callable[..., None], options: argparse.Namespace) -> None:
    with exit_on_user_error():
        check(options)
        launch(worker, (options,))


def evaluate_fvd_main(argv: Sequence[str] | None = None) -> None:
    """evaluate_FVD.py: print the distance between two folders with its settings; also under torchrun."""
    _run(_check_fvd_flags, _evaluate_fvd, evaluate_parser().parse_args(argv))


def evaluate_vis_main(argv: Sequence[str] | None = None) -> None:
    """scripts/evaluate_VIS.py: print the inception score of a folder; also under torchrun."""
    _run(_check_common_flags, _evaluate_vis, evaluate_vis_parser().parse_args(argv))
