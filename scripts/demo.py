"""python scripts/demo.py

Runs all of VIDM on a CPU in a few minutes and writes results/demo/report.html.

First, the shipped generators of the embedded world continue held-out first frames and generate videos from scratch, and
the script writes a page with these videos. Then it makes training data, trains a small motion generator and a smaller
content generator for a few minutes, samples from them, measures the distances to real videos, and writes the page again
with both parts. It exits with code 1 if the trained generator is not closer to real videos than the untrained one.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from vidm.interrupts import one_line_on_interrupt

if __name__ == "__main__":
    one_line_on_interrupt()  # before imports that take seconds

import numpy as np
import torch

from vidm.checkpoint import checkpoint_path
from vidm.config import Config
from vidm.console import CommandParser
from vidm.detectors import load_detector, name_of
from vidm.evaluation import circumstances
from vidm.generator import load_generator
from vidm.layouts import index_clips
from vidm.metrics import FVDResult, compute_fvd
from vidm.report import Distance, Report, VideoRow, write_report
from vidm.result_tables import mark_of
from vidm.runtime import exit_on_user_error
from vidm.sample_config import SampleConfig
from vidm.sampling import sample_folder
from vidm.trainer import Trainer
from vidm.training_run import fit
from vidm.video_io import read_video, write_video
from vidm.world import repeat_first_frames, write_dataset

# Of the shipped generators, and of the short training.
SHIPPED_RESOLUTION, RESOLUTION = 64, 32
NUM_FRAMES = 16
NUM_TRAIN = 600
NUM_TEST = 32
CONTENT_TRAINING_STEPS = 200
# After a few minutes of training, a motion generator makes a small error at every step, so few steps give better videos
# than many. With few steps, a content generator outputs the mean of all scenes, which is an empty floor.
SAMPLER = {"sampler": "ddim", "steps": "4", "content_steps": "50", "precision": "bf16"}
WORLD = Path(__file__).parent.parent / "pretrained_models" / "world"
# With 8 steps, the shipped generators are nearly as good as with the 20 of their model card.
WORLD_SAMPLER = {"sampler": "dpm-solver++", "steps": "8", "content_steps": "20", "precision": "bf16"}
SHOWN = 8
# At the 25 frames per second of the world, a video of 16 frames is too short to follow.
FPS = 8

GROUND_TRUTH = "ground truth"
COLUMNS = ["first frame (given)", "continued", GROUND_TRUTH, "generated from scratch"]
TITLE = "VIDM on the embedded world"


def make_data(folder: Path, num_videos: int, seed: int, resolution: int = RESOLUTION) -> Path:
    print(f"making {num_videos} videos: {folder}")
    write_dataset(folder, num_videos, num_frames=NUM_FRAMES, resolution=resolution, seed=seed, workers=2)
    return folder


def train(out: Path, **values: object) -> Path:
    """Train a generator with the demo preset and return its checkpoint. Checkpoint 0 contains the untrained weights.

    Raises KeyboardInterrupt if the training was stopped, so that the demo stops too."""
    config = Config.from_preset("demo").replaced(
        {"data": str(out.parent / "data" / "train"), "out": str(out), **values}
    )
    trainer = Trainer(config, torch.device("cpu"))
    trainer.save()
    fit(trainer)
    if trainer.step < config.train.total_iters:
        raise KeyboardInterrupt
    return checkpoint_path(out, trainer.step)


def sample(motion: Path, out: Path, **values: Any) -> None:
    """Write videos: continue the first frames of `content`, or generate from scratch with `content_resume`."""
    print(f"sampling: {out}")
    settings = SampleConfig(out=str(out), batch_size=NUM_TEST, fps=FPS, **{**SAMPLER, **values})
    sample_folder(load_generator(motion, settings.content_resume or None, device="cpu"), settings)


def measure(reference: Path, folders: dict[str, Path]) -> dict[str, FVDResult]:
    """Compute and print the distance of each folder to the reference videos, by name."""
    detector = load_detector("random")
    results = {
        name: compute_fvd(reference, folder, detector, NUM_FRAMES, resolution=RESOLUTION)
        for name, folder in folders.items()
    }
    print()
    print(name_of(detector))
    print(f"of {NUM_TEST} videos to {NUM_TEST} other real ones; each by itself {mark_of(results[GROUND_TRUTH])}:")
    for name, result in results.items():
        print(f"  {result.value:9.3f}  {name}")
    return results


def rows_of(test: Path, samples: Path, generators: str) -> list[VideoRow]:
    """Rows of the page, each with a first frame, its continuation, the real video, and a video from scratch."""
    real, shown = index_clips(test).paths, samples / "shown"
    rows = []
    for i in range(SHOWN):
        name = f"video_{i:05d}.mp4"
        first, truth = shown / f"{i:05d}.gif", shown / name
        write_video(first, read_video(real[i])[:1])
        write_video(truth, read_video(real[i]), fps=FPS)
        media = [first, samples / "continued" / name, truth, samples / "from_scratch" / name]
        rows.append(VideoRow(f"{generators}: video {i}", media))
    return rows


def write_mosaic(path: Path, rows: list[VideoRow]) -> None:
    """Write the continued videos above the real ones as one GIF."""
    lines = [np.concatenate([read_video(row.media[column]) for row in rows], axis=2) for column in (1, 2)]
    mosaic = np.concatenate(lines, axis=1)
    write_video(path, mosaic.repeat(2, axis=1).repeat(2, axis=2), fps=FPS)


def show_shipped(out: Path) -> list[VideoRow]:
    """Sample from the shipped generators, write a first page with their videos, and return its rows."""
    samples, motion, content = out / "shipped", WORLD / "motion.safetensors", WORLD / "content.safetensors"
    test = make_data(out / "data" / "shown", SHOWN, seed=2, resolution=SHIPPED_RESOLUTION)
    sample(motion, samples / "continued", **WORLD_SAMPLER, content=str(test))
    sample(motion, samples / "from_scratch", **WORLD_SAMPLER, content_resume=str(content), num_samples=SHOWN)
    rows = rows_of(test, samples, "shipped generators")
    report = Report(
        title=TITLE,
        intro="Each row shows a first frame that was not used in training, its continuation and the real "
        "video. The last column is generated from scratch, without any input. A short training is running now; this "
        "page is updated when it ends.",
        columns=COLUMNS,
        rows=rows,
    )
    write_report(out / "report.html", report)
    write_mosaic(out / "videos.gif", rows)
    return rows


def settings_of(motion_minutes: float, content_minutes: float) -> dict[str, str]:
    """The settings of training and sampling, for the page."""
    config = Config.from_preset("demo")
    train = config.train
    return {
        "shipped generators": f"{WORLD.parent.name}/{WORLD.name}, {WORLD_SAMPLER['steps']} steps of "
        f"{WORLD_SAMPLER['sampler']} per frame, frames of {SHIPPED_RESOLUTION} x {SHIPPED_RESOLUTION}",
        "short training, motion": f"{train.total_iters} steps of {train.batch_size} triplets in {motion_minutes:.1f} "
        f"minutes, {config.diffusion.prediction} prediction, {train.precision}",
        "short training, content": f"{CONTENT_TRAINING_STEPS} steps of {train.batch_size} first frames in "
        f"{content_minutes:.1f} minutes",
        "data": f"{NUM_TRAIN} videos of the embedded world, {NUM_FRAMES} frames of {RESOLUTION} x {RESOLUTION}",
        "sampling after the short training": f"{SAMPLER['steps']} steps of {SAMPLER['sampler']} per frame, "
        f"{SAMPLER['content_steps']} for a first frame from scratch, seed 0",
        **{name: value for name, value in circumstances("cpu").items() if name in ("date", "command")},
    }


def main(out: Path) -> int:
    started = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    data, page = out / "data", out / "report.html"
    shipped = show_shipped(out)
    print()
    print(f"wrote videos of the shipped generators to {page} after {time.monotonic() - started:.0f} seconds\n")
    make_data(data / "train", NUM_TRAIN, seed=1)
    test = make_data(data / "test", NUM_TEST, seed=2)
    reference = make_data(data / "reference", NUM_TEST, seed=3)

    training_started = time.monotonic()
    motion = train(out / "motion")
    motion_minutes = (time.monotonic() - training_started) / 60
    content = train(out / "content", generator="content", total_iters=CONTENT_TRAINING_STEPS)
    content_minutes = (time.monotonic() - training_started) / 60 - motion_minutes

    samples = out / "trained"
    sample(motion, samples / "continued", content=str(test))
    sample(motion, samples / "from_scratch", content_resume=str(content), num_samples=NUM_TEST)
    sample(checkpoint_path(out / "motion", 0), out / "untrained", content=str(test))
    repeat_first_frames(test, out / "still")
    results = measure(
        reference,
        {
            GROUND_TRUTH: test,
            "continued after a short training": samples / "continued",
            "the repeated first frame": out / "still",
            "generated from scratch after a short training": samples / "from_scratch",
            "continued without training": out / "untrained",
        },
    )
    report = Report(
        title=TITLE,
        intro="Each row shows a first frame that was not used in training, its continuation and the real video. The "
        "last column is generated from scratch, without any input. The first rows are from the shipped generators. "
        f"The others are from a short training on a CPU: {motion_minutes:.1f} minutes for the motion generator and "
        f"{content_minutes:.1f} for the content generator, enough to see the effect of training.",
        columns=COLUMNS,
        rows=[*shipped, *rows_of(test, samples, "short training")],
        distance_name=name_of(load_detector("random")),
        distances=[
            Distance(name, result.value, floor=name == GROUND_TRUTH, note=mark_of(result))
            for name, result in results.items()
        ],
        notes=[
            f"Each distance compares {NUM_TEST} videos with {NUM_TEST} other held-out real videos. So few only show "
            "large differences between the rows. After a short training, the repeated first frame is hard to beat, "
            "since it is sharp and correct wherever nothing moves. The shipped generators are measured in docs/results."
        ],
        settings=settings_of(motion_minutes, content_minutes),
    )
    write_report(page, report)
    print()
    print(f"wrote {page} after {(time.monotonic() - started) / 60:.1f} minutes; open it in a browser")
    if results["continued after a short training"].value >= results["continued without training"].value:
        print("error: the trained generator is not closer to real videos than the untrained one", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    CommandParser(
        description=__doc__.split("\n\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with exit_on_user_error():
        sys.exit(main(Path("results/demo")))
