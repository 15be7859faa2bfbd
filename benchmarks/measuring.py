"""Functions that the benchmarks share: alternating timings, the machine's peak rate, and result rows.

    found = alternating_seconds({"reference": slow, "package": fast}, repetitions=10)
    append_row("sampling", {"row": "step", "seconds": found})

A row records the commit, the machine and the versions of libraries.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from reference import ReferenceMotionGenerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vidm.checkpoint import build_model
from vidm.config import Config
from vidm.diffusion import GaussianDiffusion, Process
from vidm.frame_size import FrameSize, sides_of
from vidm.model import MotionGenerator
from vidm.runtime import autocast, provenance
from vidm.tf32 import tf32_products

HERE = Path(__file__).parent
CPU = torch.device("cpu")
# That of generators, which use a GPU if there is one.
SAMPLING_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return number


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def append_row(name: str, row: Mapping[str, Any], device: torch.device = CPU) -> None:
    """Append a row to results/NAME.jsonl, with the date, commit, machine and library versions."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    libraries = ["python", "torch", *(["cuda", "cudnn"] if device.type == "cuda" else [])]
    environment = {
        **provenance(libraries, device),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "threads": torch.get_num_threads(),
    }
    (HERE / "results").mkdir(exist_ok=True)
    with (HERE / "results" / f"{name}.jsonl").open("a") as results:
        results.write(json.dumps({**environment, **row}) + "\n")


def check_inputs(paths: Iterable[Path]) -> None:
    """Raise ValueError with the first of these paths of the repository that does not exist."""
    for path in paths:
        if not path.exists():
            where = path.relative_to(HERE.parent)
            raise ValueError(f"{where} is missing; docs/results/README.md has the command that creates it")


def seconds_of(function: Callable[[], Any], device: torch.device = CPU) -> float:
    """Wall-clock seconds of one call, including all GPU work that it starts."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def alternating_seconds(
    sides: Mapping[str, Callable[[], Any]],
    repetitions: int,
    device: torch.device = CPU,
    before: Callable[[str], Any] = lambda side: None,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """The seconds of each side by repetition; sides alternate, so that a slow phase of the machine affects all of them.

    `before(side)` is called before each measurement, followed by a call that is not measured if `warm_up` is set."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for side in tqdm([*sides] * repetitions, desc="measuring", leave=False):
        before(side)
        if warm_up:
            sides[side]()
        found[side].append(seconds_of(sides[side], device))
    return found


def ratio(found: Mapping[str, list[float]], slow: str, fast: str) -> tuple[float, float, float]:
    """The speed-up of `fast` over `slow`: the median, lowest and highest ratio over the repetitions."""
    ratios = [a / b for a, b in zip(found[slow], found[fast], strict=True)]
    return median(ratios), min(ratios), max(ratios)


def flops_of(function: Callable[[], Any]) -> int:
    """The floating-point operations of the convolutions and matrix products in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def ceiling(dtype: torch.dtype, device: torch.device = CPU, repetitions: int = 10) -> dict[str, float]:
    """The highest measured FLOP/s of a large matrix product and of 3x3 convolutions at several sizes."""
    best = {}
    with torch.no_grad():
        side = 8192 if device.type == "cuda" else 4096
        square = torch.randn(side, side, dtype=dtype, device=device)
        best["matmul"] = 2 * side**3 / _fastest(lambda: square @ square, repetitions, device)
        rates = []
        for channels, size in ((128, 128), (256, 64), (512, 32)):
            x = torch.randn(4, channels, size, size, dtype=dtype, device=device)
            weight = torch.randn(channels, channels, 3, 3, dtype=dtype, device=device)
            x, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (x, weight))
            seconds = _fastest(partial(F.conv2d, x, weight, padding=1), repetitions, device)
            rates.append(18 * channels**2 * x[:, 0].numel() / seconds)
        best["convolution"] = max(rates)
    return best


def _fastest(function: Callable[[], Any], repetitions: int, device: torch.device) -> float:
    function()
    return min(seconds_of(function, device) for _ in range(repetitions))


def filled_pair(
    device: torch.device = CPU, preset: str = "paper128"
) -> tuple[MotionGenerator, ReferenceMotionGenerator]:
    """A preset's generator and its reference, with the tests' deterministic weights (new networks output zeros)."""
    sys.path.append(str(HERE.parent / "tests"))
    from golden import fill_by_rule

    ours = build_model(Config.from_preset(preset))
    assert isinstance(ours, MotionGenerator)
    fill_by_rule(ours)
    reference = ReferenceMotionGenerator(ours.shape)
    reference.load_state_dict(ours.state_dict())
    return ours.to(device), reference.to(device)


def frames_like(batch_size: int, size: FrameSize, device: torch.device = CPU) -> list[Tensor]:
    """Random noisy, previous and first frames, (B, 3, H, W) each."""
    shape = (3, batch_size, 3, *sides_of(size))
    x_t, previous, first = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return [x_t.to(device), previous.clamp(-1, 1).to(device), first.clamp(-1, 1).to(device)]


@cache
def _process(trained: Process, respacing: str | int) -> GaussianDiffusion:
    return GaussianDiffusion(**trained._asdict(), respacing=respacing)


def process_for(model: Any, respacing: str | int = "") -> GaussianDiffusion:
    """The process that a network was built for; the published one for a network that does not say so."""
    return _process(getattr(model, "process", None) or GaussianDiffusion().process, respacing)


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    update_average: Callable[[], Any],
    frames: list[Tensor],
    precision: str = "fp32",
) -> None:
    """One training step: loss, gradient, clipping, optimizer and averaged weights."""
    x_start, previous, first = frames
    t = torch.full((len(x_start),), 500, device=x_start.device)
    condition = {"first": first, "previous": previous, "frame_index": torch.full_like(t, 5)}
    # In training, t and frame_index differ between samples, so they are not passed as constant_index here.
    with tf32_products(precision == "tf32"):
        with autocast(x_start.device, precision):
            losses = process_for(model).training_losses(model, x_start, t, torch.randn_like(x_start), condition)
        losses["loss"].mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    update_average()
