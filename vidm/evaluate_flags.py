"""The flags of the evaluation commands, and the checks of their values.

options = evaluate_parser().parse_args(argv)
check_fvd_flags(options, typed_flags(evaluate_parser(), argv))
"""

import argparse
from collections.abc import Mapping

from vidm.clip_choice import NUM_FRAMES
from vidm.console import CommandParser
from vidm.detectors import PROTOCOLS, STYLEGAN_V
from vidm.files import LARGEST
from vidm.frame_size import FITS, frame_size
from vidm.images import LARGEST_SIDE
from vidm.layouts import LAYOUTS
from vidm.metrics import SPLITS

METRICS = ("fvd", "kvd", "psnr", "ssim")
# The smallest and largest values of flags, if not 1 and LARGEST. numpy takes no larger seed.
RANGES = {"seed": (0, 2**32 - 1), "workers": (1, 1024), "resolution": (1, LARGEST_SIDE)}
# Whether a generator was trained on the videos of a split of this name, unless --real says otherwise.
USE_OF_SPLIT = {"train": "train", **dict.fromkeys(("val", "valid", "validation", "test"), "held-out")}
USES = tuple(dict.fromkeys(USE_OF_SPLIT.values()))


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
    parser.add_argument(
        "-dir1", "--dir1", required=True, metavar="DIR", help="real videos: a folder, a pack or a csv list"
    )
    parser.add_argument(
        "-dir2", "--dir2", required=True, metavar="DIR", help="generated videos: a folder, a pack or a csv list"
    )
    parser.add_argument(
        "-n",
        "--nframes",
        type=int,
        metavar="N",
        help=f"frames per clip (default: what most videos of both folders have, at most {NUM_FRAMES})",
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
    parser.add_argument("--split", default="", metavar="NAME", help="split of dir1, as in training (all)")
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="layout of dir1, as in training (auto)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the choice of videos and clips (0)")
    _add_protocol_flags(parser)
    parser.add_argument("--real", choices=USES, help="record whether the generator was trained on dir1's videos")
    parser.add_argument(
        "--first-frames",
        choices=("generated", *USES),
        help="record where the first frames of dir2's videos came from (default: as sampling recorded it)",
    )
    _add_common_flags(parser)
    parser.add_argument(
        "--report", metavar="FILE", help="write a page with numbers, curves, nearest and farthest videos"
    )
    parser.add_argument("--latex", action="store_true", help="print each number as a row of a LaTeX table")
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


def check_common_flags(options: argparse.Namespace, typed: Mapping[str, str]) -> None:
    """Raise ValueError, naming the flag as it was typed, for invalid values."""
    for name, value in vars(options).items():
        flag = typed.get(name, f"--{name.replace('_', '-')}")
        if value == "" and name != "split":
            raise ValueError(f"{flag} is empty: give a path, or leave it out")
        least, most = RANGES.get(name, (1, LARGEST))
        numbers = value if isinstance(value, tuple) else (value,)
        if any(type(number) is int and not least <= number <= most for number in numbers):
            shown = "x".join(map(str, numbers))
            raise ValueError(f"{flag} {shown}: give a number from {least} to {most}")
    if options.fit and not options.resolution:
        raise ValueError("--fit has no effect without -r: frames are used as stored")


def check_fvd_flags(options: argparse.Namespace, typed: Mapping[str, str]) -> None:
    """Raise ValueError, naming the flag, for invalid values and for flags without effect."""
    check_common_flags(options, typed)
    if options.nsamples == 1 and {"fvd", "kvd"} & set(options.metrics):
        raise ValueError(f"{typed['nsamples']} 1: a distance needs 2 videos of each folder or more")
    if options.suite and (options.nframes is not None or options.frame_stride != 1):
        raise ValueError("-n and --frame-stride have no effect with --suite, which has its own")
    if options.repeats != 1 and not {"fvd", "kvd"} & set(options.metrics):
        raise ValueError("--repeats has no effect on PSNR and SSIM: add fvd or kvd to --metrics")


def check_vis_flags(options: argparse.Namespace, typed: Mapping[str, str]) -> None:
    """Raise ValueError, naming the flag, for invalid values."""
    check_common_flags(options, typed)
    if options.nsamples is not None and options.nsamples < max(options.splits, 2):
        least = max(options.splits, 2)
        raise ValueError(f"{typed['nsamples']} {options.nsamples}: --splits {options.splits} needs {least} or more")
