"""How many kernels, bytes and waits for the GPU does the package need, and how much memory does a backward pass keep?

    python benchmarks/count_gpu.py [--preset paper128] [--batch-size 8]

Nothing is measured and no GPU is needed: the networks run on the fake device of tests/fake_cuda.py, which has shapes
and no values. Counts are of eager PyTorch operators, each about one kernel, and of the bytes of their inputs and
outputs. A denoising step is the network's part, the flow given; a training step is its forward and backward pass.
"Kept" are the bytes that the backward pass needs per sample, without the weights. Prints tables and appends a row to
benchmarks/results/count_gpu.jsonl.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import append_row, positive, process_for
from torch import Tensor

from vidm.checkpoint import build_model
from vidm.config import Config
from vidm.frame_size import sides_of
from vidm.layers import constant_index
from vidm.presets import PRESETS
from vidm.rounded_weights import with_bf16_weights
from vidm.runtime import GIB, autocast
from vidm.unet import set_activation_checkpointing

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from fake_cuda import CUDA, FakeCuda, fake_cuda

GB = 1e9


def frames(config: Config, batch_size: int) -> list[Tensor]:
    sides = sides_of(config.model.image_size)
    return [torch.zeros(batch_size, 3, *sides, device=CUDA) for _ in range(3)]


def denoising_step(config: Config, precision: str, batch_size: int) -> FakeCuda:
    """Count the network's part of a step of sampling, in which the flow is given."""
    with fake_cuda() as gpu, torch.no_grad():
        model: Any = build_model(config).to(CUDA).eval().requires_grad_(False)
        network = with_bf16_weights(model) if precision == "bf16-weights" else model
        x_t, previous, first = frames(config, batch_size)
        t, frame_index = constant_index(500, x_t), constant_index(5, x_t)
        flow = model.flow(first, previous)
        gpu.clear()
        with autocast(CUDA, precision):
            network(x_t, t, frame_index, previous, first, flow=flow)
        return gpu


def training_step(config: Config, precision: str, batch_size: int, checkpointing: str) -> tuple[FakeCuda, int]:
    """Count the forward and backward pass of a training step, and the bytes kept between them."""
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with fake_cuda() as gpu:
        model = build_model(config).to(CUDA)
        set_activation_checkpointing(model, checkpointing)
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        x_start, previous, first = frames(config, batch_size)
        t = torch.zeros(batch_size, dtype=torch.int64, device=CUDA)
        is_motion = config.model.generator == "motion"
        condition = {"first": first, "previous": previous, "frame_index": t} if is_motion else {}
        process = process_for(model)
        process.q_sample(x_start, t, x_start)  # copies the process's tables to the device
        gpu.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(CUDA, precision):
            losses = process.training_losses(model, x_start, t, torch.zeros_like(x_start), condition)
        kept = sum(size for storage, size in held.items() if storage not in own)
        losses["loss"].mean().backward()
        return gpu, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="paper128", help="preset of the network (paper128)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="samples of a larger batch (8)")
    arguments = parser.parse_args()
    config, batch_size = Config.from_preset(arguments.preset), arguments.batch_size
    row: dict[str, Any] = {"preset": arguments.preset}
    print("| denoising step | kernels | GB | waits |\n|---|--:|--:|--:|")
    for precision in ("fp32", "bf16", "bf16-weights"):
        for size in (1, batch_size):
            gpu = denoising_step(config, precision, size)
            name = f"{precision}, batch {size}"
            row[name] = counts = {"kernels": gpu.kernels.total(), "bytes": gpu.bytes, "waits": gpu.waits.total()}
            print(f"| {name} | {counts['kernels']} | {gpu.bytes / GB:.2f} | {counts['waits']} |", flush=True)
    print("\n| training step | kernels | GB | kept, GiB a sample | waits |\n|---|--:|--:|--:|--:|")
    for precision in ("fp32", "bf16"):
        for checkpointing in ("none", "posgn", "full"):
            gpu, kept = training_step(config, precision, batch_size, checkpointing)
            name = f"{precision}, checkpointing {checkpointing}, batch {batch_size}"
            row[name] = counts = {"kernels": gpu.kernels.total(), "bytes": gpu.bytes, "waits": gpu.waits.total()}
            counts["kept_bytes"] = kept
            cells = f"{counts['kernels']} | {gpu.bytes / GB:.1f} | {kept / GIB / batch_size:.2f} | {counts['waits']}"
            print(f"| {name} | {cells} |", flush=True)
    append_row("count_gpu", row)


if __name__ == "__main__":
    main()
