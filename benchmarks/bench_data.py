"""python benchmarks/bench_data.py [--videos 2 --frames 32 --seconds 0.2 --repetitions 3]

How many training triplets a second does one data loading process make, from each way to keep videos? At 128 x 128 from
480 x 320 videos of the embedded world, all ways in one run, taking turns, with the files in the page cache, so that
nothing waits for a disk. A second is one of CPU time, that of all threads together: others may be busy on the machine.
The yardstick is the plain way: open each of three frame files, make it float, crop, resize. Prints a table and appends
a row to benchmarks/results/data.jsonl.
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
from torchvision.transforms import functional as plain
from tqdm import tqdm

from vidm.datasets import FrameTriplets, fit_square
from vidm.layouts import index_clips
from vidm.packs import write_pack
from vidm.video_io import frame_files, read_video
from vidm.world import FPS, CollisionWorld, render_clip

HEIGHT, WIDTH = 320, 480
RESOLUTION = 128
YARDSTICK = "the plain way, PNG"

Triplets = Callable[[int, int], object]  # (epoch, index of a video) -> a sample


# Sources


def write_mp4(path: Path, frames: np.ndarray, gop: int) -> None:
    """H.264 as x264 makes it by default, with a key frame every `gop` frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(gop), "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))


def write_sources(folder: Path, num_videos: int, num_frames: int) -> None:
    """The same videos as png, jpg, gop12 and gop250, and packs of them, each in a folder of its own."""
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
            pack.add_raw(path.name, fit_square(read_video(path), RESOLUTION))


# Ways to read them


def plain_triplets(folder: Path, num_frames: int) -> Triplets:
    """The yardstick: three files of a frame folder, each opened with PIL, to float, cropped, resized as float."""
    videos = [frame_files(path) for path in index_clips(folder).paths]

    def frame(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            pixels = plain.to_tensor(image.convert("RGB"))
        square = plain.center_crop(pixels, [min(pixels.shape[1:])] * 2)
        return plain.resize(square, [RESOLUTION] * 2, InterpolationMode.BICUBIC, antialias=True) * 2 - 1

    def triplet(epoch: int, index: int) -> list[torch.Tensor]:
        number = int(np.random.default_rng([epoch, index]).integers(1, num_frames))
        return [frame(videos[index][i]) for i in (0, number - 1, number)]

    return triplet


def our_triplets(folder: Path, num_frames: int) -> Triplets:
    # A window of half a video may begin anywhere in it, as --num-frames below a video's length has it.
    triplets = FrameTriplets(index_clips(folder), RESOLUTION, num_frames // 2, seed=0)
    return lambda epoch, index: triplets[epoch, index]


def ways(folder: Path, num_frames: int) -> dict[str, Triplets]:
    """Every way, by the name that the table gives it."""
    folders = {
        "PNG folders": "png",
        "JPEG folders": "jpg",
        "mp4, GOP 12": "gop12",
        "mp4, GOP 250": "gop250",
        "pack of PNG": "pack_png",
        "pack of mp4, GOP 12": "pack_gop12",
        "raw pack": "pack_raw",
    }
    ours = {way: our_triplets(folder / name, num_frames) for way, name in folders.items()}
    return {YARDSTICK: plain_triplets(folder / "png", num_frames), **ours}


# Measuring


def keys(num_videos: int) -> Iterator[tuple[int, int]]:
    return ((epoch, index) for epoch in count() for index in range(num_videos))


def rate(triplets: Triplets, num_videos: int, seconds: float) -> float:
    """Samples a second of CPU time, over as many as take `seconds` or a little more; always the same ones first."""
    started = time.process_time()
    for done, (epoch, index) in enumerate(keys(num_videos), start=1):
        triplets(epoch, index)
        elapsed = time.process_time() - started
        if elapsed >= seconds:
            return done / elapsed
    raise AssertionError("keys never end")


def measure(folder: Path, num_videos: int, num_frames: int, seconds: float, repetitions: int) -> dict[str, list[float]]:
    """Rates by way, one a repetition; a slow moment of the machine hits all ways alike, for they take turns."""
    rates: dict[str, list[float]] = {}
    for name, triplets in tqdm(list(ways(folder, num_frames).items()) * repetitions, desc="measuring"):
        triplets(0, 0)
        rates.setdefault(name, []).append(rate(triplets, num_videos, seconds))
    return rates


def table(rates: dict[str, list[float]]) -> str:
    """A line a way; the ratio is the median of the ratios within each repetition."""
    lines = [f"{'':22}{'triplets/s':>12}{'lowest':>10}{'highest':>10}{'to plain':>10}{'to PNG':>10}"]
    for name, own in rates.items():
        to_plain, to_png = (
            median(a / b for a, b in zip(own, rates[other], strict=True)) for other in (YARDSTICK, "PNG folders")
        )
        lines.append(f"{name:22}{median(own):12.1f}{min(own):10.1f}{max(own):10.1f}{to_plain:10.2f}{to_png:10.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("--videos", type=int, default=8, help="videos (8)")
    parser.add_argument("--frames", type=int, default=128, help="frames a video (128)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement (0.5)")
    parser.add_argument("--repetitions", type=int, default=15, help="measurements of each way (15)")
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
