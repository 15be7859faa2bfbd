"""python scripts/demo.py

The whole way once, in minutes on a CPU: make data, train a small motion generator, continue held-out first frames,
measure the distance to other held-out videos beside its yardsticks, write results/demo/report.html. Ends with an error
when the trained generator is no better than the untrained one.
"""

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

from vidm.checkpoint import checkpoint_path
from vidm.config import Config, SampleConfig
from vidm.detectors import load_detector
from vidm.layouts import index_clips
from vidm.metrics import compute_fvd
from vidm.report import Distance, VideoRow, write_report
from vidm.sampling import load_generator, sample_folder
from vidm.synthetic import write_dataset
from vidm.trainer import Trainer
from vidm.video_io import read_video, write_video

RESOLUTION = 32
NUM_FRAMES = 16
NUM_TRAIN = 1000
NUM_TEST = 32
SAMPLER = {"sampler": "ddim", "steps": "10", "precision": "bf16"}
SHOWN = 8
# Sixteen frames at the world's 25 a second are over before one has looked.
FPS = 8


def make_data(out: Path) -> None:
    """Videos to learn from, held-out ones to continue, and others of their kind to measure against."""
    parts = {"train": (NUM_TRAIN, 1), "test": (NUM_TEST, 2), "reference": (NUM_TEST, 3)}
    for name, (num_videos, seed) in parts.items():
        print(f"making {num_videos} videos: {out / name}")
        write_dataset(out / name, num_videos, num_frames=NUM_FRAMES, resolution=RESOLUTION, seed=seed, workers=2)


def repeat_first_frames(content: Path, out: Path) -> None:
    """The plainest prediction: nothing ever moves."""
    for i, path in enumerate(index_clips(content).paths):
        write_video(out / f"video_{i:05d}.mp4", np.repeat(read_video(path)[:1], NUM_FRAMES, axis=0))


def train(config: Config) -> Trainer:
    """Train; the untrained weights are kept as checkpoint 0."""
    trainer = Trainer(config, torch.device("cpu"))
    trainer.save()
    trainer.fit()
    return trainer


def sample(checkpoint: Path, content: Path, out: Path) -> None:
    """Continue the first frames of the held-out videos."""
    print(f"sampling {NUM_TEST} videos: {out}")
    settings = SampleConfig(content=str(content), out=str(out), batch_size=NUM_TEST, fps=FPS, **SAMPLER)
    sample_folder(load_generator(checkpoint), settings)


def measure(out: Path, folders: dict[str, Path]) -> dict[str, float]:
    """Distances of folders to the reference videos, by name, printed."""
    detector = load_detector("random")
    reference = out / "data" / "reference"
    distances = {
        name: compute_fvd(reference, folder, detector, NUM_FRAMES, resolution=RESOLUTION).value
        for name, folder in folders.items()
    }
    print(f"\n{detector.name}\nof {NUM_TEST} videos to {NUM_TEST} other real ones:")
    for name, value in distances.items():
        print(f"  {value:9.3f}  {name}")
    return distances


def columns_of(out: Path) -> tuple[list[str], list[VideoRow]]:
    """What the page shows: the given frame, what was made of it, and what really happened."""
    real = index_clips(out / "data" / "test").paths
    rows = []
    for i in range(SHOWN):
        first = out / "first" / f"{i:05d}.gif"
        what_happened = out / "real" / f"video_{i:05d}.mp4"
        write_video(first, read_video(real[i])[:1])
        write_video(what_happened, read_video(real[i]), fps=FPS)
        rows.append(VideoRow(f"video {i}", [first, out / "generated" / what_happened.name, what_happened]))
    return ["first frame (given)", "generated", "real"], rows


def write_mosaic(path: Path, rows: list[VideoRow]) -> None:
    """The same videos as one gif: generated above real."""
    lines = [np.concatenate([read_video(row.media[column]) for row in rows], axis=2) for column in (1, 2)]
    mosaic = np.concatenate(lines, axis=1)
    write_video(path, mosaic.repeat(2, axis=1).repeat(2, axis=2), fps=FPS)


def main(out: Path) -> int:
    started = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    data = out / "data"
    make_data(data)
    values = {"data": str(data / "train"), "out": str(out / "checkpoints"), "keep": 0}
    config = Config.from_preset("demo").replaced(values)
    training_started = time.monotonic()
    steps = train(config).step
    minutes = (time.monotonic() - training_started) / 60
    sample(checkpoint_path(out / "checkpoints", steps), data / "test", out / "generated")
    sample(checkpoint_path(out / "checkpoints", 0), data / "test", out / "untrained")
    repeat_first_frames(data / "test", out / "still")
    distances = measure(
        out,
        {
            "real, the same first frames": data / "test",
            "generated": out / "generated",
            "the first frame repeated": out / "still",
            "generated without training": out / "untrained",
        },
    )
    columns, rows = columns_of(out)
    write_mosaic(out / "videos.gif", rows)
    train_settings = config.train
    write_report(
        out / "report.html",
        title="VIDM: a small motion generator after a short training",
        intro="Each video continues a first frame that the model never saw. "
        f"It was trained for {minutes:.1f} minutes on a CPU: enough to see what is being learned, "
        "far from what the method can do.",
        columns=columns,
        rows=rows,
        distance_name=load_detector("random").name,
        distances=[Distance(name, value, floor=name.startswith("real")) for name, value in distances.items()],
        notes=[
            "Distances are between the features of so many held-out real videos and as many of each kind; lower is "
            "nearer. A video that never moves is hard to beat for a young model, since it is sharp and right in every "
            "pixel where nothing happens."
        ],
        settings={
            "training": f"{steps} steps of {train_settings.batch_size} triplets, {minutes:.1f} minutes, "
            f"{config.diffusion.prediction} prediction, {train_settings.precision}",
            "data": f"{NUM_TRAIN} videos of the embedded world, {NUM_FRAMES} frames of {RESOLUTION} x {RESOLUTION}",
            "sampling": f"{SAMPLER['steps']} steps of {SAMPLER['sampler']} a frame, seed 0",
            "measured on": f"{NUM_TEST} videos each",
        },
    )
    print(f"\n{out / 'report.html'} after {(time.monotonic() - started) / 60:.1f} minutes: open it in a browser")
    if distances["generated"] >= distances["generated without training"]:
        print("error: the trained generator is no nearer to real videos than the untrained one", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path("results/demo")))
