"""python scripts/make_synthetic_dataset.py --out data/CLEVRER --num-videos 100 --num-frames 128 --resolution 128

Generates videos of the embedded world in CLEVRER's folder layout, each with its ground truth; nothing is downloaded.
Running an interrupted command again continues it.
"""

import argparse
import os
import sys

from vidm.console import CommandParser, given_path, printable
from vidm.frame_size import frame_size
from vidm.world import write_dataset


def main() -> int:
    parser = CommandParser(
        description=__doc__.split("\n\n", 1)[1], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=given_path, default="data/CLEVRER", metavar="DIR", help="folder to write to")
    parser.add_argument("--num-videos", type=int, default=100, metavar="N", help="how many videos")
    parser.add_argument("--num-frames", type=int, default=128, metavar="T", help="frames per video, 25 per second")
    parser.add_argument("--resolution", type=frame_size, default=128, metavar="R", help="side in pixels, or HxW")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="random seed")
    args = parser.parse_args()
    try:
        write_dataset(**vars(args), workers=os.cpu_count() or 1)
    except (ValueError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
