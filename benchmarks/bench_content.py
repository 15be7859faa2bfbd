"""Does the constant input, the sampling space truncation, help the content generator on the embedded world?

    python benchmarks/bench_content.py [--table]

Trains the preset `world-content` for 3,000 steps with and without the constant, two seeds each, and generates 512 first
frames with each of the four generators. The distances compare them with the first frames of 1,024 real videos, in the
features of the random network for clips that repeat one frame. The row `real` compares 512 other real first frames.

Rows are appended to benchmarks/results/content.jsonl, and --table prints them. Existing rows are not computed again;
to compute one again, delete its line. Interrupted trainings resume. The training data packs/world and a motion
generator must exist: docs/results/README.md has the commands.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from ablation_table import newest_rows, table
from measuring import CPU, append_row, check_inputs
from tqdm import tqdm

from vidm.checkpoint import checkpoint_path
from vidm.detectors import STYLEGAN_V, features_of, load_detector
from vidm.frechet import FeatureStats, frechet_of, kernel_distance
from vidm.generator import load_generator
from vidm.layouts import index_clips
from vidm.runtime import exit_on_user_error, keep_freed_memory
from vidm.sample_config import SampleConfig
from vidm.video_io import read_frames
from vidm.world import write_dataset

ROOT = Path(__file__).parent.parent
DATA, OUT, PACK = ROOT / "data" / "world", ROOT / "checkpoints", ROOT / "packs" / "world"
# Content generators are loaded together with a motion generator of the same size, which has no effect on first frames.
MOTION = OUT / "world-longer" / "half.safetensors"
PRESET, STEPS = "world-content", 3000
RESOLUTION, NUM_REFERENCE, NUM_GENERATED = 32, 1024, 512
# Seeds of worlds that no other part of the results uses.
REFERENCE_SEED, REAL_SEED = 6, 7
SEEDS = (0, 1)
ROWS = {"constant": (), "no constant": ("--no-constant",)}
# The name and seed of every row of the table.
RUNS = [("real", 0), *((name, seed) for name in ROWS for seed in SEEDS)]


def real_first_frames(name: str, num_videos: int, seed: int) -> np.ndarray:
    """First frames of new videos of the embedded world, uint8 (N, R, R, 3)."""
    write_dataset(DATA / name, num_videos, 2, RESOLUTION, seed, progress=False)
    return np.concatenate([read_frames(path, [0]) for path in index_clips(DATA / name).paths])


def train(name: str, seed: int) -> Path:
    """The last checkpoint of a row's training, which is run or resumed if necessary."""
    out = OUT / f"{PRESET}-{name.replace(' ', '-')}-{seed}"
    last = checkpoint_path(out, STEPS)
    if not last.exists():
        script = [sys.executable, str(ROOT / "diffusion_ddp_accum_constant_cu.py"), "--preset", PRESET, *ROWS[name]]
        where = ["--data", str(PACK), "--out", str(out), "--seed", str(seed), "--resume", "auto"]
        where += ["--total-iters", str(STEPS)]
        if subprocess.run([*script, *where]).returncode:
            raise ValueError(f"the training of the row {name!r} failed; its output is above")
    return last


def generated_first_frames(checkpoint: Path, seed: int) -> np.ndarray:
    """First frames of a content checkpoint's averaged weights, uint8 (N, R, R, 3)."""
    generator, settings = load_generator(MOTION, checkpoint, device=CPU), SampleConfig(seed=seed)
    batches = tqdm(range(0, NUM_GENERATED, 64), desc=checkpoint.parent.name, leave=False)
    return np.concatenate([generator.draw_first_frames(range(i, i + 64), settings) for i in batches])


def distances(frames: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The Frechet and the kernel distance of frames (N, R, R, 3) to reference frames (M, R, R, 3)."""
    detector = load_detector("random", CPU)
    sides = [
        torch.cat([features_of(detector, np.stack([f, f], axis=1), STYLEGAN_V, CPU) for f in np.array_split(side, 16)])
        for side in (reference, frames)
    ]
    stats = [FeatureStats(), FeatureStats()]
    for one, features in zip(stats, sides, strict=True):
        one.update(features)
    return {"distance": frechet_of(stats[0], stats[1]), "kernel": kernel_distance(sides[0], sides[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the existing rows and exit")
    options = parser.parse_args()
    with exit_on_user_error():
        keep_freed_memory()
        known = {(row["row"], row["seed"]) for row in newest_rows("content")}
        missing = [] if options.table else [run for run in RUNS if run not in known]
        if missing:
            check_inputs((PACK, MOTION))
        reference = real_first_frames("first-reference", NUM_REFERENCE, REFERENCE_SEED) if missing else np.empty(0)
        for name, seed in missing:
            if name == "real":
                frames, training = real_first_frames("first-real", NUM_GENERATED, REAL_SEED), None
            else:
                frames, training = generated_first_frames(train(name, seed), seed), [*ROWS[name]]
            append_row("content", {"row": name, "seed": seed, "training": training, **distances(frames, reference)})
        print(table(newest_rows("content")))


if __name__ == "__main__":
    main()
