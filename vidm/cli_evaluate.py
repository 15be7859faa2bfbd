"""Evaluation: flags in, one call out.

python evaluate_FVD.py --dir1 real --dir2 generated --nframes 16
"""

import argparse
import os
from collections.abc import Sequence

from vidm.detectors import I3D_PATH, load_detector
from vidm.distributed import pick_device
from vidm.errors import errors_for_people
from vidm.metrics import MAX_SAMPLES, compute_fvd


def evaluate_parser() -> argparse.ArgumentParser:
    """All flags of evaluate_FVD.py."""
    parser = argparse.ArgumentParser(
        description="Frechet video distance between the first frames of the videos (or frame folders) of two folders."
    )
    parser.add_argument("-dir1", "--dir1", required=True, metavar="DIR", help="one folder, usually of real videos")
    parser.add_argument("-dir2", "--dir2", required=True, metavar="DIR", help="the other, usually of generated ones")
    parser.add_argument("-b", "--batch", type=int, default=32, metavar="N", help="videos at a time (32)")
    parser.add_argument("-r", "--resolution", type=int, default=256, metavar="R", help="square side, pixels (256)")
    parser.add_argument("-n", "--nframes", type=int, default=128, metavar="N", help="frames per video (128)")
    parser.add_argument(
        "-ns", "--nsamples", type=int, metavar="N", help=f"videos of each folder (default: all, at most {MAX_SAMPLES})"
    )
    parser.add_argument(
        "-i3d",
        "--i3d",
        metavar="FILE",
        help=f"TorchScript I3D, or random (default: {I3D_PATH} if it is there, else random)",
    )
    return parser


def evaluate_fvd_main(argv: Sequence[str] | None = None) -> None:
    """evaluate_FVD.py: print the distance between two folders, and what it is a distance of."""
    options = evaluate_parser().parse_args(argv)
    with errors_for_people():
        result = compute_fvd(
            options.dir1,
            options.dir2,
            load_detector(options.i3d, pick_device()),
            num_frames=options.nframes,
            num_samples=options.nsamples,
            resolution=options.resolution,
            batch_size=options.batch,
            workers=os.cpu_count() or 1,
            progress=True,
        )
        ours, theirs = result.num_samples
        print(f"{result.value:.4f}  {result.name}")
        print(
            f"{ours} against {theirs} videos, their first {result.num_frames} frames at "
            f"{result.resolution}x{result.resolution}, {result.feature_dim} features, {len(result.skipped)} skipped"
        )
