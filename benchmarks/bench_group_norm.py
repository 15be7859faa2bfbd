"""python benchmarks/bench_group_norm.py [--repetitions 15]

How much faster is the group norm of vidm/layers.py than torch's kernels for channels-last tensors on a CPU?
Measures one norm with its gradients on feature maps of the presets `world` and `paper128`, and a whole training step of
`world` and of `paper128` at 64 x 64, with each of the two norms. Times are CPU time of this process, because other
processes would disturb the wall time of such short calls. Prints a table and appends a row to
benchmarks/results/group_norm.jsonl.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from measuring import append_row, frames_like, positive, training_step
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vidm import layers
from vidm.checkpoint import build_model
from vidm.config import Config
from vidm.ema import EMA
from vidm.layers import group_norm
from vidm.runtime import keep_freed_memory

MAPS = [(16, 32, 32, 32), (16, 96, 32, 32), (16, 64, 16, 16), (16, 96, 8, 8), (2, 128, 64, 64), (2, 512, 8, 8)]
STEPS = {"world": (32, 16), "paper128": (64, 2)}


def torch_group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.group_norm(x, num_groups, weight, bias, eps).type(x.dtype)


def norm_with_gradients(norm: Callable[..., Tensor], leaves: list[Tensor], gradient: Tensor) -> None:
    norm(leaves[0], 32, leaves[1], leaves[2], 1e-5).backward(gradient)


def step_with(norm: Callable[..., Tensor], step: Callable[[], None]) -> None:
    layers.group_norm = norm
    step()


def norm_of_map(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[..., None]:
    """A call that computes one norm of a feature map and its gradients with a given implementation."""
    x, gradient = (torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    leaves = [leaf.requires_grad_() for leaf in (x, torch.ones(shape[1]), torch.zeros(shape[1]))]
    return partial(norm_with_gradients, leaves=leaves, gradient=gradient)


def step_of_preset(preset: str) -> Callable[..., None]:
    """A call that runs a training step in bf16 with a given implementation of the norm."""
    size, batch_size = STEPS[preset]
    model = build_model(Config.from_preset(preset))
    ema, optimizer = EMA(model, 0.999), torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    frames = frames_like(batch_size, size)
    return partial(
        step_with, step=partial(training_step, model, optimizer, lambda: ema.update(model), frames, precision="bf16")
    )


def measure(work: Callable[..., None], repetitions: int) -> dict[str, list[float]]:
    """CPU seconds by repetition with torch's and with the package's norm, which alternate."""
    found: dict[str, list[float]] = {"torch": [], "package": []}
    for _ in tqdm(range(repetitions + 1), leave=False):  # the first one is a warm-up
        for side, norm in (("torch", torch_group_norm), ("package", group_norm)):
            began = time.process_time()
            work(norm)
            found[side].append(time.process_time() - began)
    return {side: seconds[1:] for side, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=positive, default=15, metavar="N", help="measurements of each norm (15)")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    work = {
        f"{' x '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}": norm_of_map(shape, dtype)
        for shape in MAPS
        for dtype in (torch.float32, torch.bfloat16)
    }
    work |= {f"training step, {preset}": step_of_preset(preset) for preset in STEPS}
    print("| | torch, ms | package, ms | times faster |\n|---|--:|--:|--:|")
    rows: dict[str, Any] = {}
    for name, one in work.items():
        rows[name] = found = measure(one, arguments.repetitions)
        slow, fast = (1e3 * median(found[side]) for side in ("torch", "package"))
        print(f"| {name} | {slow:.2f} | {fast:.2f} | {slow / fast:.2f} |", flush=True)
    append_row("group_norm", {"seconds": rows})


if __name__ == "__main__":
    main()
