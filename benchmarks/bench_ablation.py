"""What does each strategy of the method contribute on the embedded world?

    python benchmarks/bench_ablation.py [--only NAME ...] [--i3d FILE] [--table]

Each row of the table is one source of videos: real videos, the repeated first frame, the shipped generator with
several sampling settings, and generators that are trained for the same short time with one setting changed. The first
frames of 64 held-out videos are continued and compared with 256 other videos; rows with several seeds repeat this, and
their training, with other seeds and other first frames, which are the same for all rows. For the mean and best of
eight, eight other first frames are continued eight times each. The shipped generators and their baselines are measured
at 64 x 64, the short trainings at 32 x 32.

Rows are appended to benchmarks/results/ablation.jsonl, and --table prints the newest row of each name. Existing rows
are computed again only if the shipped weights have changed or their lines were deleted. Interrupted trainings resume.
The training data must exist; docs/results/README.md has the commands that create it. Short trainings are compiled,
which needs a C++ compiler.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from ablation_table import newest_rows, table
from measuring import SAMPLING_DEVICE, append_row, check_inputs
from tqdm import tqdm

from vidm.checkpoint import checkpoint_path
from vidm.detectors import load_detector
from vidm.files import sha256_of
from vidm.frame_metrics import compute_frame_metrics
from vidm.generator import load_generator
from vidm.layouts import index_clips
from vidm.metrics import compute_fvd
from vidm.runtime import exit_on_user_error, keep_freed_memory
from vidm.sample_config import SampleConfig
from vidm.sampling import sample_folder
from vidm.video_io import read_video
from vidm.world import repeat_first_frames, write_dataset
from vidm.world_metrics import WorldScores, displacement_distance, world_of, world_scores

ROOT = Path(__file__).parent.parent
OUT = ROOT / "results" / "ablation"
WORLD, CONTENT = (ROOT / "pretrained_models" / "world" / f"{name}.safetensors" for name in ("motion", "content"))
PACK, SPYNET = ROOT / "packs" / "world", ROOT / "checkpoints" / "world-flow" / "spynet.pt"
# Videos by resolution: of the short trainings and of the shipped generators.
SHORT_RESOLUTION, RESOLUTION = 32, 64
DATA = {SHORT_RESOLUTION: ROOT / "data" / "world", RESOLUTION: ROOT / "data" / "world64"}
NUM_FRAMES = 16
NUM_VIDEOS, NUM_REFERENCE = 64, 256
NUM_BEST, BEST_OF = 8, 8
# Seeds of the worlds. Seed 1 is used for the training videos, 4 and 5 for the flow.
REFERENCE_SEED, TEST_SEED, BEST_SEED = 3, 10, 20
SHORT_STEPS = 1500
HEADLINE_SEEDS = STRATEGY_SEEDS = 3
WITHOUT_NETWORK = ("real", "still")
STANDARD: dict[str, Any] = {"sampler": "dpm-solver++", "steps": "20", "precision": "bf16", "condition_noise": 0.0}
# The shipped generator is sampled with the noise of its training, the default; the short trainings were sampled before.
NOISE = {"condition_noise": 0.1}


@dataclass(frozen=True)
class Row:
    """One source of videos.

    training: the flags of a short training; with None, the shipped generator is sampled. best: also measure the best of
    eight. drawn: the shipped content generator samples the first frames, so there is no ground truth."""

    training: tuple[str, ...] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1
    best: bool = False
    drawn: bool = False

    @property
    def resolution(self) -> int:
        return RESOLUTION if self.training is None else SHORT_RESOLUTION


ROWS = {
    "real": Row(seeds=HEADLINE_SEEDS),
    "still": Row(seeds=HEADLINE_SEEDS, best=True),
    "world": Row(sampling=NOISE, seeds=HEADLINE_SEEDS, best=True),
    "world, 4 steps": Row(sampling={**NOISE, "steps": "4"}, seeds=HEADLINE_SEEDS),
    "noise per frame": Row(sampling={**NOISE, "start_noise": "frame"}, seeds=HEADLINE_SEEDS),
    "drawn": Row(sampling={**NOISE, "content_steps": "50"}, drawn=True),
    "no condition noise, 4 steps": Row(sampling={"steps": "4"}),
    "psi 0, 4 steps": Row(sampling={**NOISE, "psi": 0.0, "steps": "4"}),
    "noise per frame, 8 steps": Row(sampling={**NOISE, "start_noise": "frame", "steps": "8"}),
    "DPM-Solver++, 8 steps": Row(sampling={**NOISE, "steps": "8"}),
    "DDIM, 4 steps": Row(sampling={**NOISE, "sampler": "ddim", "steps": "4"}),
    "control": Row((), seeds=STRATEGY_SEEDS),
    "no flow": Row(("--flow-range", "none"), seeds=STRATEGY_SEEDS),
    "timestep norm": Row(("--norm", "timestep"), seeds=STRATEGY_SEEDS),
    "no encoder": Row(("--no-encoder",), seeds=STRATEGY_SEEDS),
    "previous frame": Row(("--previous-frame",), seeds=STRATEGY_SEEDS),
    "noise prediction with P2": Row(("--prediction", "eps"), seeds=STRATEGY_SEEDS),
    "robust loss, 1e-8": Row(("--loss", "charbonnier", "--penalty-eps", "1e-8"), seeds=STRATEGY_SEEDS),
    "robust loss, 1e-3": Row(("--loss", "charbonnier", "--penalty-eps", "1e-3"), seeds=STRATEGY_SEEDS),
}


def make_data(name: str, num_videos: int, seed: int, resolution: int, num_frames: int = NUM_FRAMES) -> Path:
    """The folder `name` of videos of the embedded world, which are written if necessary."""
    folder = DATA[resolution] / name
    write_dataset(folder, num_videos, num_frames, resolution, seed, progress=False)
    return folder


@cache
def reference_at(resolution: int) -> tuple[Path, np.ndarray]:
    """The folder of the reference videos, and the displacements per frame of their solids."""
    folder = make_data("reference", NUM_REFERENCE, REFERENCE_SEED, resolution)
    return folder, scores_of(folder, folder).displacements


def folder_of(name: str) -> Path:
    return OUT / name.lower().replace(",", "").replace("+", "p").replace(" ", "-")


def train(name: str, flags: Sequence[str], seed: int) -> Path:
    """The checkpoint of a row's short training, which is run or resumed if necessary."""
    out = folder_of(name) / f"training_{seed}"
    last = checkpoint_path(out, SHORT_STEPS)
    if not last.exists():
        script = [sys.executable, str(ROOT / "diffusion_ddp_accum_constant_cu.py"), "--preset", "world"]
        flow = [] if "--flow-range" in flags else ["--spynet", str(SPYNET)]
        where = ["--data", str(PACK), "--out", str(out), "--seed", str(seed), "--resume", "auto"]
        how_long = ["--total-iters", str(SHORT_STEPS), "--save-freq", "500", "--keep", "1", "--compile"]
        # The committed rows are older than the offset noise of the preset.
        if subprocess.run([*script, *where, *flow, *how_long, "--offset-noise", "0", *flags]).returncode:
            raise ValueError(f"the training of the row {name!r} failed; its output is above")
    return last


def sample(checkpoint: Path, out: Path, num_samples: int, content: Path | None, **values: Any) -> None:
    """Continue the first frames of the videos in `content` or, with None, frames sampled by the content generator."""
    first = {"content": str(content)} if content else {"content_resume": str(CONTENT)}
    settings = SampleConfig(
        out=str(out), num_samples=num_samples, batch_size=NUM_VIDEOS, **{**STANDARD, **first, **values}
    )
    sample_folder(load_generator(checkpoint, settings.content_resume or None), settings)


def videos_in(folder: Path) -> np.ndarray:
    """All videos of a folder in order, uint8 (N, T, H, W, 3)."""
    return np.stack([read_video(path) for path in index_clips(folder).paths])


def scores_of(videos: Path, content: Path) -> WorldScores:
    """The scores of videos that continue the first frames of `content`, whose worlds are the ground truth."""
    worlds = [world_of(path) for path in index_clips(content).paths]
    clips = videos_in(videos)
    return world_scores([clips[i :: len(worlds)] for i in range(len(worlds))], worlds)


def distances(videos: Path, resolution: int, i3d: str = "") -> dict[str, Any]:
    """Distances to other real videos in random features and, if an I3D file is given, the FVD.

    Those of 64 x 64 are also measured at 32 x 32, for the comparison with short trainings and earlier generators."""
    measured = partial(compute_fvd, reference_at(resolution)[0], videos)
    result = measured(load_detector("random"), NUM_FRAMES, resolution=resolution, kernel=True)
    found = {"distance": result.value, "kernel": result.kernel, "detector": result.name}
    if resolution == RESOLUTION:
        smaller = measured(load_detector("random"), NUM_FRAMES, resolution=SHORT_RESOLUTION, kernel=True)
        found |= {"distance_at_32": smaller.value, "kernel_at_32": smaller.kernel}
    if i3d:
        found["fvd"] = measured(load_detector(i3d), NUM_FRAMES, resolution=resolution).value
    return found


def ground_truth_scores(videos: Path, content: Path, real_displacements: np.ndarray) -> dict[str, Any]:
    """Scores against the ground truth, with PSNR and SSIM by frame unless the videos are the ground truth."""
    scores = scores_of(videos, content)
    found: dict[str, Any] = {
        "still_there": scores.still_there,
        "colour_kept": scores.colour_kept,
        "shape_kept": scores.shape_kept,
        "shape_overlap": scores.shape_overlap,
        "num_solids": scores.num_solids,
        "centroid_error": scores.centroid_error.tolist(),
        "displacement": displacement_distance(scores.displacements, real_displacements),
        "mean_displacement": float(scores.displacements.mean()),
    }
    if videos != content:
        frames = compute_frame_metrics(content, videos, NUM_FRAMES)
        found |= {"psnr_by_frame": frames.psnr_by_frame, "ssim_by_frame": frames.ssim_by_frame}
    return found


def settings_of(name: str) -> dict[str, Any]:
    """The settings that a row records."""
    row = ROWS[name]
    training = None if row.training is None else list(row.training)
    return {"resolution": row.resolution, "training": training, "sampling": dict(row.sampling)}


def is_current(name: str, seed: int, i3d: str) -> bool:
    """Whether a committed row has the same settings and weights, and an FVD if one is requested."""
    row, settings = ROWS[name], settings_of(name)
    found = [row for row in newest_rows() if (row["row"], row["seed"]) == (name, seed)]
    older = {"resolution": SHORT_RESOLUTION}  # rows from before there were two
    if not found or {key: (older | found[0])[key] for key in settings} != settings or (i3d and "fvd" not in found[0]):
        return False
    if row.drawn and found[0].get("content_weights") != sha256_of([CONTENT]):
        return False
    return name in WITHOUT_NETWORK or row.training is not None or found[0]["weights"] == sha256_of([WORLD])


def add_row(name: str, seed: int, i3d: str) -> None:
    """Generate a row's videos for one seed, measure them, and append the row."""
    row, checkpoint = ROWS[name], None
    if name not in WITHOUT_NETWORK:
        checkpoint = WORLD if row.training is None else train(name, row.training, seed)
    weights = sha256_of([checkpoint]) if checkpoint else ""
    content = make_data(f"test-{seed}", NUM_VIDEOS, TEST_SEED + seed, row.resolution)
    folder = folder_of(name) / (weights[:12] or str(row.resolution))
    videos = content if name == "real" else folder / f"seed_{seed}"
    if checkpoint:
        sample(checkpoint, videos, NUM_VIDEOS, None if row.drawn else content, seed=seed, **row.sampling)
    elif name == "still":
        repeat_first_frames(content, videos)
    found = distances(videos, row.resolution, i3d)
    if row.drawn:
        found["content_weights"] = sha256_of([CONTENT])
    else:
        found |= ground_truth_scores(videos, content, reference_at(row.resolution)[1])
    if row.best and seed == 0:
        best, out = make_data("best", NUM_BEST, BEST_SEED, row.resolution), folder / "best_0"
        if checkpoint:
            sample(checkpoint, out, NUM_BEST * BEST_OF, best, seed=0, **row.sampling)
        else:
            repeat_first_frames(best, out)
        scores = scores_of(out, best)
        found["best_of_8_error"] = scores.centroid_error.tolist()
        found["one_of_8_error"] = scores.mean_centroid_error.tolist()
    row_of = {"row": name, "seed": seed, "weights": weights, **settings_of(name), **found}
    append_row("ablation", row_of, SAMPLING_DEVICE)
    tqdm.write(f"{name}, seed {seed}: distance {found['distance']:.3f}, kernel {found['kernel']:.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="NAME", help=f"rows to add: {shlex.join(ROWS)}")
    parser.add_argument(
        "--i3d", default="", metavar="FILE", help="an I3D detector, for an additional column with the FVD"
    )
    parser.add_argument("--table", action="store_true", help="print the table of the existing rows and exit")
    options = parser.parse_args()
    if options.table:
        print(table(newest_rows()))
        return
    with exit_on_user_error():
        if options.i3d == "random":
            raise ValueError("--i3d random: give the file of an I3D; distances in random features are in every row")
        if options.i3d:
            load_detector(options.i3d)  # raises for a file that cannot be used, before the long work
        keep_freed_memory()
        runs = [(name, seed) for name in options.only or ROWS for seed in range(ROWS[name].seeds)]
        missing = [run for run in runs if not is_current(*run, options.i3d)]
        if any(ROWS[name].training is not None for name, _ in missing):
            check_inputs((PACK, SPYNET))
        for name, seed in missing:
            add_row(name, seed, options.i3d)
        print(f"appended {len(missing)} rows to benchmarks/results/ablation.jsonl")


if __name__ == "__main__":
    main()
