"""python benchmarks/bench_metrics.py [--repetitions 5]

What does an evaluation cost in addition to decoding the videos and running the detector? This benchmark measures

- the time of compute_fvd for two folders of 64 videos, relative to decoding batches and running the random detector on
  them with the same number of threads; the two alternate,
- the peak memory of a process that evaluates 64 or 512 videos,
- the time of a Frechet distance for 400 features.

Prints the results and appends a row to benchmarks/results/metrics.jsonl.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from measuring import append_row

from vidm.clip_choice import ClipSelection, choose_clips
from vidm.detectors import STYLEGAN_V, features_of, load_detector
from vidm.frechet import FeatureStats, frechet_distance
from vidm.metrics import compute_fvd
from vidm.video_io import write_video

NUM_FRAMES, SIZE, BATCH = 16, 128, 16
FEW, MANY = 64, 512
MIB = 1 << 20


def write_folder(folder: Path, count: int, seed: int) -> Path:
    """Write mp4 videos of coarse squares that move sideways."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        picture = rng.integers(0, 256, (SIZE // 8, SIZE // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        write_video(folder / f"{i:04d}.mp4", np.stack([np.roll(picture, 2 * t, axis=1) for t in range(NUM_FRAMES)]))
    return folder


def seconds_of_fvd(real: Path, made: Path) -> float:
    began = time.perf_counter()
    workers = os.cpu_count() or 1
    compute_fvd(real, made, load_detector("random"), NUM_FRAMES, batch_size=BATCH, workers=workers)
    return time.perf_counter() - began


def seconds_of_baseline(real: Path, made: Path) -> float:
    """The time to decode each batch and then run the detector on it, without overlap and without storing features."""
    detector = load_detector("random")
    seconds = 0.0
    for folder in (real, made):
        clips = choose_clips(ClipSelection(folder, NUM_FRAMES))
        began = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for start in range(0, len(clips), BATCH):
                batch = np.stack([clip for clip, _ in pool.map(clips.__getitem__, range(start, start + BATCH))])
                features_of(detector, batch, STYLEGAN_V, "cpu")
        seconds += time.perf_counter() - began
    return seconds


def peak_bytes() -> int:
    """Peak resident memory of this program; getrusage would include the parent process's."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024


def peak_in_a_new_process(folder: Path) -> int:
    command = [sys.executable, __file__, "--peak-of", str(folder)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def frechet_seconds(dimensions: int) -> float:
    sides = []
    for seed in (0, 1):
        stats = FeatureStats()
        stats.update(np.random.default_rng(seed).standard_normal((2048, dimensions)))
        sides += [stats.mean(), stats.covariance()]
    began = time.perf_counter()
    frechet_distance(*sides)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="measurements of each value (5)")
    parser.add_argument("--peak-of", metavar="DIR", help="compare a folder with itself and print the peak bytes")
    arguments = parser.parse_args()
    if arguments.peak_of:
        seconds_of_fvd(Path(arguments.peak_of), Path(arguments.peak_of))
        print(peak_bytes())
        return
    with TemporaryDirectory() as temporary:
        real, made = (write_folder(Path(temporary, name), FEW, seed) for seed, name in enumerate(("real", "made")))
        many = write_folder(Path(temporary, "many"), MANY, seed=2)
        seconds_of_fvd(real, made)  # fills the cache of video lengths
        pairs = [(seconds_of_fvd(real, made), seconds_of_baseline(real, made)) for _ in range(arguments.repetitions)]
        peaks = {
            count: [peak_in_a_new_process(folder) for _ in range(arguments.repetitions)]
            for count, folder in ((FEW, real), (MANY, many))
        }
    frechet = [frechet_seconds(400) for _ in range(arguments.repetitions)]
    ratios = [fvd / baseline for fvd, baseline in pairs]
    few, many_peak = (median(values) for values in peaks.values())
    print(f"time of compute_fvd relative to decoding and detector, 2 x {FEW} videos: {median(ratios):.2f}", end=" ")
    print(f"({min(ratios):.2f} to {max(ratios):.2f}; {median(fvd for fvd, _ in pairs):.1f} s)")
    print(f"peak memory: {few / MIB:.0f} MiB at {FEW} videos, {many_peak / MIB:.0f} at {MANY}: {many_peak / few:.3f}")
    print(f"Frechet distance at d = 400: {median(frechet):.3f} s ({min(frechet):.3f} to {max(frechet):.3f})")
    row = {
        "seconds": [[round(fvd, 3), round(baseline, 3)] for fvd, baseline in pairs],
        "peak_bytes": peaks,
        "frechet_seconds": frechet,
    }
    append_row("metrics", row)


if __name__ == "__main__":
    main()
