"""python scripts/demo.py

First what the shipped generators of the embedded world make: held-out first frames continued, and videos from nothing.
Then the whole way once, in minutes on a CPU: make data, train a small motion generator and a smaller content
generator, do the same with them, measure distances to other held-out videos beside their yardsticks. Writes
results/demo/report.html, once after the first part and once with all. Ends with an error when the generator that it
trained is no better than the untrained one.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidm.checkpoint import checkpoint_path
from vidm.config import Config, SampleConfig
from vidm.detectors import load_detector, name_of
from vidm.generator import load_generator
from vidm.layouts import index_clips
from vidm.metrics import compute_fvd
from vidm.report import Distance, VideoRow, write_report
from vidm.runtime import exit_on_user_error
from vidm.sampling import sample_folder
from vidm.trainer import Trainer
from vidm.training_run import fit
from vidm.video_io import read_video, write_video
from vidm.world import write_dataset

RESOLUTION = 32
NUM_FRAMES = 16
NUM_TRAIN = 600
NUM_TEST = 32
CONTENT_TRAINING_STEPS = 200
# A young motion generator errs a little at every step, so few are better than many; with few steps a content generator
# draws the mean of all scenes, an empty floor.
SAMPLER = {"sampler": "ddim", "steps": "4", "content_steps": "50", "precision": "bf16"}
# Trained for longer, they take more steps; half of their card's, so that there is something to see in a minute.
WORLD = Path(__file__).parent.parent / "pretrained_models" / "world"
WORLD_SAMPLER = {"sampler": "dpm-solver++", "steps": "10", "content_steps": "20", "precision": "bf16"}
SHOWN = 8
# Sixteen frames at the world's 25 a second are over before one has looked.
FPS = 8

GIVEN = "first frame (given)"
COLUMNS = [GIVEN, "continued", "what happened", "made from nothing"]
TITLE = "VIDM: the embedded world, continued and made from nothing"


def make_data(folder: Path, num_videos: int, seed: int) -> Path:
    """Videos of the embedded world."""
    print(f"making {num_videos} videos: {folder}")
    write_dataset(folder, num_videos, num_frames=NUM_FRAMES, resolution=RESOLUTION, seed=seed, workers=2)
    return folder


def train(out: Path, **values: object) -> Path:
    """Train a generator of the demo preset; return its checkpoint. The untrained weights are kept as checkpoint 0.

    Raises KeyboardInterrupt if it was stopped, so that the demo ends with it.
    """
    config = Config.from_preset("demo").replaced(
        {"data": str(out.parent / "data" / "train"), "out": str(out), **values}
    )
    trainer = Trainer(config, torch.device("cpu"))
    trainer.save()
    fit(trainer)
    if trainer.step < config.train.total_iters:
        raise KeyboardInterrupt
    return checkpoint_path(out, trainer.step)


def sample(checkpoint: Path, out: Path, **values: Any) -> None:
    """Make videos with a motion checkpoint: of given first frames, or with a content checkpoint from nothing."""
    print(f"sampling: {out}")
    settings = SampleConfig(out=str(out), batch_size=NUM_TEST, fps=FPS, **{**SAMPLER, **values})
    sample_folder(load_generator(checkpoint, settings.content_resume or None), settings)


def repeat_first_frames(content: Path, out: Path) -> None:
    """The plainest prediction: nothing ever moves."""
    for i, path in enumerate(index_clips(content).paths):
        write_video(out / f"video_{i:05d}.mp4", np.repeat(read_video(path)[:1], NUM_FRAMES, axis=0))


def measure(reference: Path, folders: dict[str, Path]) -> dict[str, float]:
    """Distances of folders to the reference videos, by name, printed."""
    detector = load_detector("random")
    distances = {
        name: compute_fvd(reference, folder, detector, NUM_FRAMES, resolution=RESOLUTION).value
        for name, folder in folders.items()
    }
    print(f"\n{name_of(detector)}\nof {NUM_TEST} videos to {NUM_TEST} other real ones:")
    for name, value in distances.items():
        print(f"  {value:9.3f}  {name}")
    return distances


def rows_of(out: Path, made: Path, whose: str) -> list[VideoRow]:
    """What the page shows: a given frame, what was made of it, what really happened, and a video from nothing."""
    real = index_clips(out / "data" / "test").paths
    rows = []
    for i in range(SHOWN):
        name = f"video_{i:05d}.mp4"
        write_video(out / "shown" / f"{i:05d}.gif", read_video(real[i])[:1])
        write_video(out / "shown" / name, read_video(real[i]), fps=FPS)
        media = [out / "shown" / f"{i:05d}.gif", made / "continued" / name, out / "shown" / name, made / "drawn" / name]
        rows.append(VideoRow(f"{whose}: video {i}", media))
    return rows


def write_mosaic(path: Path, rows: list[VideoRow]) -> None:
    """The same videos as one gif: continued above what happened."""
    lines = [np.concatenate([read_video(row.media[column]) for row in rows], axis=2) for column in (1, 2)]
    mosaic = np.concatenate(lines, axis=1)
    write_video(path, mosaic.repeat(2, axis=1).repeat(2, axis=2), fps=FPS)


def show_shipped(out: Path, test: Path) -> list[VideoRow]:
    """Videos of the shipped generators, and a page of them alone: what there is to see before anything is trained."""
    made, motion, content = out / "shipped", WORLD / "motion.safetensors", WORLD / "content.safetensors"
    sample(motion, made / "continued", **WORLD_SAMPLER, content=str(test))
    sample(motion, made / "drawn", **WORLD_SAMPLER, content_resume=str(content), num_samples=SHOWN)
    rows = rows_of(out, made, "shipped generators")
    write_report(
        out / "report.html",
        title=TITLE,
        intro="Each row continues a first frame that the shipped generators never saw, beside what really happened; "
        "the last column has no input at all. A short training follows, and then this page is written anew.",
        columns=COLUMNS,
        rows=rows,
    )
    write_mosaic(out / "videos.gif", rows)
    return rows


def settings_of(motion_minutes: float, content_minutes: float) -> dict[str, str]:
    """How it was made, for the page."""
    config = Config.from_preset("demo")
    return {
        "shipped generators": f"{WORLD.parent.name}/{WORLD.name}; {WORLD_SAMPLER['steps']} steps of "
        f"{WORLD_SAMPLER['sampler']} a frame",
        "motion": f"{config.train.total_iters} steps of {config.train.batch_size} triplets, {motion_minutes:.1f} "
        f"minutes, {config.diffusion.prediction} prediction, {config.train.precision}",
        "content": f"{CONTENT_TRAINING_STEPS} steps of {config.train.batch_size} first frames, "
        f"{content_minutes:.1f} minutes",
        "data": f"{NUM_TRAIN} videos of the embedded world, {NUM_FRAMES} frames of {RESOLUTION} x {RESOLUTION}",
        "sampling": f"{SAMPLER['steps']} steps of {SAMPLER['sampler']} a frame, {SAMPLER['content_steps']} for a "
        "first frame from nothing, seed 0",
    }


def main(out: Path) -> int:
    started = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    data = out / "data"
    test = make_data(data / "test", NUM_TEST, seed=2)
    shipped = show_shipped(out, test)
    print(f"\n{out / 'report.html'} after {time.monotonic() - started:.0f} seconds: the shipped generators' videos\n")
    make_data(data / "train", NUM_TRAIN, seed=1)
    reference = make_data(data / "reference", NUM_TEST, seed=3)

    training_started = time.monotonic()
    motion = train(out / "motion")
    motion_minutes = (time.monotonic() - training_started) / 60
    content = train(out / "content", generator="content", total_iters=CONTENT_TRAINING_STEPS)
    content_minutes = (time.monotonic() - training_started) / 60 - motion_minutes

    made = out / "trained"
    sample(motion, made / "continued", content=str(test))
    sample(motion, made / "drawn", content_resume=str(content), num_samples=NUM_TEST)
    sample(checkpoint_path(out / "motion", 0), out / "untrained", content=str(test))
    repeat_first_frames(test, out / "still")
    distances = measure(
        reference,
        {
            "real: what happened": test,
            "continued by the shipped generator": out / "shipped" / "continued",
            "continued after a short training": made / "continued",
            "the first frame repeated": out / "still",
            "made from nothing after a short training": made / "drawn",
            "continued without training": out / "untrained",
        },
    )
    write_report(
        out / "report.html",
        title=TITLE,
        intro="Each row continues a first frame that the generators never saw, beside what really happened; the last "
        "column has no input at all. First the shipped generators, then two that were trained just now: the motion "
        f"generator for {motion_minutes:.1f} minutes on a CPU, the content generator for {content_minutes:.1f}, enough "
        "to see what is being learned.",
        columns=COLUMNS,
        rows=[*shipped, *rows_of(out, made, "short training")],
        distance_name=name_of(load_detector("random")),
        distances=[Distance(name, value, floor=name.startswith("real")) for name, value in distances.items()],
        notes=[
            f"Distances are from {NUM_TEST} videos of each kind to {NUM_TEST} other held-out real ones; lower is "
            "nearer. A video that never moves is hard to beat for a young model: it is sharp, and right wherever "
            "nothing happens."
        ],
        settings=settings_of(motion_minutes, content_minutes),
    )
    print(f"\n{out / 'report.html'} after {(time.monotonic() - started) / 60:.1f} minutes: open it in a browser")
    if distances["continued after a short training"] >= distances["continued without training"]:
        print("error: the trained generator is no nearer to real videos than the untrained one", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__.split("\n\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with exit_on_user_error():
        sys.exit(main(Path("results/demo")))
