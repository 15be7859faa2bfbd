"""How large are the networks of the presets, and how many samples fit on a GPU? Prints the table of docs/training.md.

    python benchmarks/preset_table.py [--gpu-gb 24]

Nothing is measured and no GPU is needed. Weights, gradients, AdamW's moments and averaged weights take 20 bytes a
parameter. What a sample needs is counted by count_gpu.py; of the published network in fp32 that is 1.54 GiB, and
bench_memory.py measured 1.55 at the peak of a step. 2 GiB of the GPU are reserved. Takes minutes. The table is for the
page; no row is added to benchmarks/results/.
"""

import argparse

import torch
from count_gpu import GB, training_step
from measuring import positive

from vidm.checkpoint import build_model
from vidm.config import Config
from vidm.frame_size import size_text
from vidm.presets import DESCRIPTIONS, PRESETS
from vidm.runtime import GIB

# Weights, gradients, two moments and averages, 4 bytes each.
BYTES_PER_PARAMETER = 20
RESERVED = 2 * GIB


def parameters_of(config: Config) -> int:
    """The number of parameters, without building the network."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config).parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-gb", type=positive, default=24, metavar="N", help="memory of the GPU in GB (24)")
    arguments = parser.parse_args()
    print(f"| preset | frames | parameters | fixed, GiB | a sample, GiB | samples on {arguments.gpu_gb} GB | for |")
    print("|---|---|--:|--:|--:|--:|---|")
    for name in PRESETS:
        config = Config.from_preset(name)
        number, size = parameters_of(config), size_text(config.model.image_size)
        frames = f"{config.model.video_timesteps} of " * (config.model.generator == "motion") + size.replace("x", " x ")
        fixed = number * BYTES_PER_PARAMETER
        kept = [training_step(config, precision, 2, "none")[1] / 2 for precision in ("fp32", "bf16")]
        fitting = [int((arguments.gpu_gb * GB - RESERVED - fixed) / each) for each in kept]
        sizes = f"{fixed / GIB:.2f} | {kept[0] / GIB:.2f}, {kept[1] / GIB:.2f} | {fitting[0]}, {fitting[1]}"
        print(f"| `{name}` | {frames} | {number / 1e6:.1f} M | {sizes} | {DESCRIPTIONS[name]} |", flush=True)


if __name__ == "__main__":
    main()
