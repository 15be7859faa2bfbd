"""How many sampling steps per frame are enough?

    python benchmarks/bench_steps.py [--demo results/demo] [--seeds 5]

The generator that `make demo` trains continues the held-out first frames of the embedded world with several samplers
and numbers of steps, for several seeds; each frame has its own start noise. As in the demo, the distance is computed
in random features and to other held-out videos. Prints means and deviations over the seeds, and the difference between
20 steps of DPM-Solver++ and 100 ancestral steps, paired by seed. Appends a row to benchmarks/results/steps.jsonl.
"""

import argparse
import time
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from measuring import append_row

from vidm.clip_choice import ClipSelection, choose_clips
from vidm.detectors import STYLEGAN_V, features_of, load_detector
from vidm.first_frames import read_first_frame
from vidm.frechet import FeatureStats, frechet_of
from vidm.generator import Generator, load_generator
from vidm.sample_config import SampleConfig
from vidm.sampling import list_content

SETTINGS = [
    ("dpm-solver++", 4),
    ("dpm-solver++", 10),
    ("dpm-solver++", 20),
    ("ddim", 4),
    ("ddim", 20),
    ("ddpm", 100),
]


def stats_of(clips: np.ndarray) -> FeatureStats:
    stats = FeatureStats()
    stats.update(features_of(load_detector("random"), clips, STYLEGAN_V, "cpu"))
    return stats


def continued(generator: Generator, first: list[np.ndarray], sampler: str, steps: int, seed: int) -> np.ndarray:
    settings = SampleConfig(sampler=sampler, steps=str(steps), seed=seed, precision="bf16", start_noise="frame")
    return generator.animate_batch(first, range(len(first)), settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", default="results/demo", metavar="DIR", help="the output of make demo")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds per setting (5)")
    arguments = parser.parse_args()
    demo = Path(arguments.demo)
    checkpoint = max(demo.glob("motion/checkpoint_*.pt"))
    generator = load_generator(checkpoint)
    num_frames, side = generator.model.video_timesteps, generator.config.model.image_size
    first = [read_first_frame(path) for path in list_content(demo / "data" / "test")]
    reference = choose_clips(ClipSelection(demo / "data" / "reference", num_frames, resolution=side))
    real = stats_of(np.stack([reference[i][0] for i in range(len(reference))]))
    found: dict[tuple[str, int], list[float]] = {setting: [] for setting in SETTINGS}
    seconds: dict[tuple[str, int], list[float]] = {setting: [] for setting in SETTINGS}
    for seed in range(arguments.seeds):
        for setting in SETTINGS:
            began = time.perf_counter()
            clips = continued(generator, first, *setting, seed)
            seconds[setting].append(time.perf_counter() - began)
            found[setting].append(frechet_of(real, stats_of(clips)))
            print(f"seed {seed}: {setting[0]} {setting[1]}: {found[setting][-1]:.4f}", flush=True)
    print("| sampler | steps | distance | deviation | seconds |\n|---|--:|--:|--:|--:|")
    for (sampler, steps), values in found.items():
        spent = mean(seconds[sampler, steps])
        print(f"| {sampler} | {steps} | {mean(values):.3f} | {stdev(values):.3f} | {spent:.1f} |")
    gaps = [fast - slow for fast, slow in zip(found["dpm-solver++", 20], found["ddpm", 100], strict=True)]
    error = stdev(gaps) / len(gaps) ** 0.5
    print(f"DPM-Solver++ 20 minus ancestral 100, paired by seed: {mean(gaps):+.4f} +- {error:.4f} (standard error)")
    row = {
        "checkpoint": checkpoint.name,
        "num_videos": len(first),
        "distance": {f"{sampler} {steps}": values for (sampler, steps), values in found.items()},
        "seconds": {f"{sampler} {steps}": values for (sampler, steps), values in seconds.items()},
    }
    append_row("steps", row)


if __name__ == "__main__":
    main()
