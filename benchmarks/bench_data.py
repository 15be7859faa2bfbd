"""python benchmarks/bench_data.py [--videos 2 --frames 32 --seconds 0.2 --repetitions 3]

How many training triplets per second does one data loader process read from each storage format? The triplets have
128 x 128 pixels and come from 480 x 320 videos of the embedded world. The formats alternate within one run. All files
are in the page cache, so disk speed is not measured. Seconds are CPU time of all threads, because the machine may be
busy. The baseline opens three frame files, converts them to float, and crops and resizes them with torchvision
(`pip install 'vidm[benchmark]'`). Prints a table and appends a row to benchmarks/results/data.jsonl.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median

import av
import numpy as np
import PIL
import torch
from measuring import append_row
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as baseline
from tqdm import tqdm

from vidm.datasets import FrameTriplets, fit_frames
from vidm.layouts import index_clips
from vidm.packs import write_pack
from vidm.video_io import frame_files, read_video
from vidm.world import FPS, CollisionWorld, render_clip

HEIGHT, WIDTH = 320, 480
RESOLUTION = 128
BASELINE = "the plain way, PNG"  # the name in the recorded rows

Triplets = Callable[[int, int], object]  # (epoch, index of a video) -> a sample


# Sources


def write_mp4(path: Path, frames: np.ndarray, gop: int) -> None:
    """Write H.264 video with x264's default settings and a keyframe every `gop` frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(gop), "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))


def write_sources(folder: Path, num_videos: int, num_frames: int) -> None:
    """Write the same videos as png, jpg, gop12 and gop250, and as packs, each format in its own folder."""
    for name in ("png", "jpg", "gop12", "gop250"):
        (folder / name).mkdir()
    for number in tqdm(range(num_videos), desc="making videos"):
        frames = render_clip(CollisionWorld(0, number, num_frames), (HEIGHT, WIDTH))
        for gop in (12, 250):
            write_mp4(folder / f"gop{gop}" / f"{number}.mp4", frames, gop)
        for suffix in ("png", "jpg"):
            (folder / suffix / str(number)).mkdir()
            for index, frame in enumerate(frames):
                Image.fromarray(frame).save(folder / suffix / str(number) / f"{index:05d}.{suffix}", quality=90)
    for name in ("png", "gop12"):
        with write_pack(folder / f"pack_{name}") as pack:
            for path in index_clips(folder / name).paths:
                pack.add_encoded(path.name, path)
    with write_pack(folder / "pack_raw") as pack:
        for path in index_clips(folder / "png").paths:
            pack.add_raw(path.name, fit_frames(read_video(path), RESOLUTION))


# Formats


def baseline_triplets(folder: Path, num_frames: int) -> Triplets:
    """The baseline opens three files of a frame folder with PIL, converts them to float, and crops and resizes them."""
    videos = [frame_files(path) for path in index_clips(folder).paths]

    def frame(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            pixels = baseline.to_tensor(image.convert("RGB"))
        square = baseline.center_crop(pixels, [min(pixels.shape[1:])] * 2)
        return baseline.resize(square, [RESOLUTION] * 2, InterpolationMode.BICUBIC, antialias=True) * 2 - 1

    def triplet(epoch: int, index: int) -> list[torch.Tensor]:
        number = int(np.random.default_rng([epoch, index]).integers(1, num_frames))
        return [frame(videos[index][i]) for i in (0, number - 1, number)]

    return triplet


def package_triplets(folder: Path, num_frames: int) -> Triplets:
    # Clips of half a video can start at many frames, as in training with --num-frames below the length of a video.
    triplets = FrameTriplets(index_clips(folder), RESOLUTION, num_frames // 2, seed=0)
    return lambda epoch, index: triplets[epoch, index]


def formats(folder: Path, num_frames: int) -> dict[str, Triplets]:
    """The readers of all formats, by name in the table."""
    folders = {
        "PNG folders": "png",
        "JPEG folders": "jpg",
        "mp4, GOP 12": "gop12",
        "mp4, GOP 250": "gop250",
        "pack of PNG": "pack_png",
        "pack of mp4, GOP 12": "pack_gop12",
        "raw pack": "pack_raw",
    }
    package = {label: package_triplets(folder / name, num_frames) for label, name in folders.items()}
    return {BASELINE: baseline_triplets(folder / "png", num_frames), **package}


# Measuring


def keys(num_videos: int) -> Iterator[tuple[int, int]]:
    return ((epoch, index) for epoch in count() for index in range(num_videos))


def rate(triplets: Triplets, num_videos: int, seconds: float) -> float:
    """Samples per second of CPU time, measured for `seconds`; each call reads samples in the same order."""
    started = time.process_time()
    for done, (epoch, index) in enumerate(keys(num_videos), start=1):
        triplets(epoch, index)
        elapsed = time.process_time() - started
        if elapsed >= seconds:
            return done / elapsed
    raise AssertionError("keys are infinite")


def measure(folder: Path, num_videos: int, num_frames: int, seconds: float, repetitions: int) -> dict[str, list[float]]:
    """Rates by format, one per repetition. Formats alternate, so that a slow phase of the machine affects all."""
    rates: dict[str, list[float]] = {}
    for name, triplets in tqdm(list(formats(folder, num_frames).items()) * repetitions, desc="measuring"):
        triplets(0, 0)
        rates.setdefault(name, []).append(rate(triplets, num_videos, seconds))
    return rates


def table(rates: dict[str, list[float]]) -> str:
    """A table with one line per format. Ratios are medians over the ratios within each repetition."""
    lines = [f"{'':22}{'triplets/s':>12}{'lowest':>10}{'highest':>10}{'/ baseline':>12}{'/ PNG':>10}"]
    for name, own in rates.items():
        to_baseline, to_png = (
            median(a / b for a, b in zip(own, rates[other], strict=True)) for other in (BASELINE, "PNG folders")
        )
        lines.append(f"{name:22}{median(own):12.1f}{min(own):10.1f}{max(own):10.1f}{to_baseline:12.2f}{to_png:10.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("--videos", type=int, default=8, help="number of videos (8)")
    parser.add_argument("--frames", type=int, default=128, help="frames per video (128)")
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU time of one measurement (0.5)")
    parser.add_argument("--repetitions", type=int, default=15, help="measurements per format (15)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vidm-bench-") as folder:
        write_sources(Path(folder), options.videos, options.frames)
        rates = measure(Path(folder), options.videos, options.frames, options.seconds, options.repetitions)
    print(table(rates))
    readers = {module.__name__: module.__version__ for module in (np, PIL, av)}
    measured = {name: [round(value, 2) for value in own] for name, own in rates.items()}
    append_row("data", {"readers": readers, **vars(options), "triplets_per_second": measured})


if __name__ == "__main__":
    main()
