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
from pathlib import Path
from typing import Any

import torch

from vidm.clip_choice import (
    NUM_FRAMES,
    ClipSelection,
    FolderContents,
    choose_clips,
    contents_of,
    index_of,
    usual_num_frames,
)
from vidm.console import typed_flags
from vidm.detectors import (
    PROTOCOLS,
    Detector,
    identity_of,
    label_of,
    load_classifier,
    load_detector,
)
from vidm.distributed import is_main, on_main, print0, world_size
from vidm.evaluate_flags import (
    USE_OF_SPLIT,
    check_fvd_flags,
    check_vis_flags,
    evaluate_parser,
    evaluate_vis_parser,
)
from vidm.evaluation import (
    CLIP_STARTS,
    GIVEN_FRAME,
    circumstances,
    ready_to_write,
    warnings_of,
    write_results,
)
from vidm.features import MeasureSettings
from vidm.folder_walk import count_of
from vidm.frame_metrics import FrameMetrics, frame_metrics_of
from vidm.launch import launch
from vidm.metric_results import FVDResult
from vidm.metrics import compute_vis, fvd_of
from vidm.pairing import GENERATED, OF_REAL, first_frames_of, sampled_with
from vidm.result_tables import latex_of, table_of, text_of_vis
from vidm.runtime import exit_on_user_error

# StyleGAN-V's three measurements: 16 frames, 128 frames, and 16 frames at stride 8.
SUITE = {"16": (16, 1), "128": (128, 1), "128 by 8": (16, 8)}
NOT_SPECIFIED, NOT_RECORDED = "not specified", "not recorded"


def _workers(options: argparse.Namespace) -> int:
    return options.workers or max((os.cpu_count() or 1) // world_size(), 1)


def _num_frames(*sides: ClipSelection) -> int:
    """Return how many frames a clip has by default, and print why."""
    number, shorter = usual_num_frames(*sides)
    print0(f"-n {number}: " + (f"what most videos of {shorter} have" if number < NUM_FRAMES else "the default"))
    return number


def _selections(options: argparse.Namespace, label: str) -> dict[str, tuple[ClipSelection, ClipSelection]]:
    """Return the clips of both folders for every measurement, by the measurement's name."""
    protocol = PROTOCOLS[options.protocol]
    frames = (options.nframes or 1, options.nsamples, options.resolution, options.frame_stride, options.real_stride)
    videos = (options.split, options.seed, protocol.random_start, protocol.max_videos)
    fit = options.fit or "crop"
    real = ClipSelection(options.dir1, *frames, *videos, layout=options.layout, fit=fit)
    if options.suite:
        chosen = {name: replace(real, num_frames=n, frame_stride=stride) for name, (n, stride) in SUITE.items()}
    else:
        number = options.nframes or _num_frames(real, real.generated(options.dir2))
        name = f"{number}" + (f" by {options.frame_stride}" if options.frame_stride > 1 else "")
        chosen = {name: replace(real, num_frames=number)}
    return {f"{label}{name}": (each, each.generated(options.dir2)) for name, each in chosen.items()}


def _found(*selections: ClipSelection) -> dict[str, FolderContents]:
    """Return what is in each folder and print it. All processes call this."""
    contents = {str(each.folder): on_main(partial(contents_of, index_of(each)), FolderContents) for each in selections}
    for folder, found in contents.items():
        print0(f"{folder}: {found}")
    return contents


def _origins(options: argparse.Namespace, recorded: str) -> dict[str, str]:
    """Say where the videos came from: by the flags, the name of the split and the first frames that were `recorded`.

    Raises ValueError if flag and records differ in whether the first frames were generated.
    """
    list_name = options.split.rstrip("123")  # UCF-101's lists are train1, test1, ...
    real, given = options.real or USE_OF_SPLIT.get(list_name, NOT_SPECIFIED), options.first_frames
    if given and recorded and (given == GENERATED) != (recorded == GENERATED):
        raise ValueError(f"--first-frames {given}: sampling recorded next to the videos that they were {recorded}")
    if recorded == OF_REAL and real != NOT_SPECIFIED:
        recorded = real
    return {"real videos were": real, "first frames were": given or recorded or NOT_SPECIFIED}


def _choices(
    options: argparse.Namespace, checkpoint: str, origins: dict[str, str], detector: Detector, device: torch.device
) -> dict[str, Any]:
    protocol = PROTOCOLS[options.protocol]
    return {
        "real": options.dir1,
        "split": options.split or "all",
        "layout": options.layout,
        "generated": options.dir2,
        "checkpoint": checkpoint,
        **origins,
        "protocol": protocol.name,
        "real clips begin": CLIP_STARTS[protocol.random_start],
        "given first frame": GIVEN_FRAME,
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
    print(f"the given first frame of a generated video {choices['given first frame']}")
    origins = {"real videos were": "--real", "first frames were": "--first-frames"}
    if flags := [flag for key, flag in origins.items() if choices[key] == NOT_SPECIFIED]:
        print(f"record where the videos came from with {' and '.join(flags)}: numbers cannot be compared without it")
    print(*table_of(measured, frames, metrics), sep="\n")
    for warning in warnings_of(measured, frames):
        print(f"warning: {warning}", file=sys.stderr)


def _evaluate_fvd(device: torch.device, options: argparse.Namespace) -> None:
    with exit_on_user_error(), ready_to_write(options.json, options.report):
        detector = load_detector(options.i3d, device)
        protocol = PROTOCOLS[options.protocol]
        settings = MeasureSettings(
            detector, protocol, options.batch, _workers(options), device, progress=True, cache=options.cache
        )
        pairs = _selections(options, label_of(detector))
        shortest = min(pairs.values(), key=lambda pair: pair[0].length)
        contents = _found(*shortest)
        checkpoint, fit = sampled_with(index_of(shortest[1]).paths[0])
        origins = _origins(options, on_main(partial(first_frames_of, *map(index_of, shortest))))
        if is_main() and options.resolution and fit not in ("", shortest[0].fit):
            what = f"the generated videos were sampled by a generator with --fit {fit}, and real ones are not fitted so"
            print(f"warning: {what}: add --fit {fit}", file=sys.stderr)
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
            choices = _choices(options, checkpoint or NOT_RECORDED, origins, detector, device)
            choices["contents"] = contents
            _print(measured, frames, options.metrics, choices)
            if options.latex:
                print(*latex_of(measured, frames, options.metrics, choices["detector"]), sep="\n")
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
                f"warning: with {count_of(result.num_samples, 'video')} in {count_of(result.splits, 'split')} a score "
                "cannot exceed "
                f"{result.num_samples / result.splits:g}, for any videos; use more videos or fewer --splits",
                file=sys.stderr,
            )
        if result.softmax:
            print("the classifier returned scores: a softmax was applied", file=sys.stderr)
        choices = {"generated": options.dir2, "detector": identity_of(classifier), **circumstances(device)}
        choices |= {"contents": contents}
        write_results(options.json, None, {label_of(classifier): result}, None, choices)


def _run(
    check: Callable[..., None],
    worker: Callable[..., None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
) -> None:
    options = parser.parse_args(argv)
    typed = typed_flags(parser, argv)
    with exit_on_user_error():
        check(options, typed)
        if not Path(options.dir2).exists():
            raise FileNotFoundError(f"no such folder: {options.dir2} ({typed['dir2']})")
        launch(worker, (options,))


def evaluate_fvd_main(argv: Sequence[str] | None = None) -> None:
    """evaluate_FVD.py: print the distance between two folders with its settings; also under torchrun."""
    _run(check_fvd_flags, _evaluate_fvd, evaluate_parser(), argv)


def evaluate_vis_main(argv: Sequence[str] | None = None) -> None:
    """scripts/evaluate_VIS.py: print the inception score of a folder; also under torchrun."""
    _run(check_vis_flags, _evaluate_vis, evaluate_vis_parser(), argv)
