"""How fast is the paper-size motion generator on a CUDA GPU, what fits, and does the package keep its promises there?

    python benchmarks/run_gpu.py [--only GROUP ...] [--seconds 520]

Runs these groups of rows, the most important first, each in its own process with a time limit, in under nine minutes:

    tests         the tests that need a GPU
    parity        GPU against CPU in fp32: one denoising step, and a video of 3 frames
    step          a denoising step at several batch sizes and precisions: seconds, kernels, memory
    waits         how often two training steps wait for the GPU, and in which lines
    compiled      a denoising step of one video, compiled, and with CUDA graphs; begins no row after 240 s
    train         a training step: seconds, kernels, memory, and the share of the time in which the GPU is idle
    group_norm    the group norm of vidm/layers.py against torch's in float32, with gradients
    bits          two runs, and one that was stopped and resumed: in how many tensors do their checkpoints differ?
    memory        the largest micro-batch for each --checkpoint-activations
    video         videos of 16 frames with the default settings
    processes     one process per GPU, at least two: a training step, one that raises an error, one that is killed
    reference     benchmarks/reference.py beside the package, in tf32: at least what PyTorch's default gives it

Rows are appended to benchmarks/results/gpu.jsonl as they come. A row that fails contains its error, a group that takes
too long is stopped. `--device cpu --preset tiny --size 16` runs everything on a CPU, to test this script.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measuring import append_row, filled_pair, frames_like, positive, process_for, seconds_of, training_step
from reference import update_average
from torch.autograd import DeviceType
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from vidm.checkpoint import build_model, checkpoint_path, load_checkpoint
from vidm.config import Config
from vidm.distributed import gather_rows, is_main, rank, world_size
from vidm.ema import EMA
from vidm.generator import Generator
from vidm.launch import launch
from vidm.layers import constant_index, group_norm
from vidm.presets import PRESETS
from vidm.rollout import animate, video_noise
from vidm.rounded_weights import with_autocast_weights, with_bf16_weights
from vidm.runtime import autocast, chosen_precision, exit_on_user_error, num_bytes
from vidm.sample_config import SampleConfig
from vidm.samplers import sample_dpm_solver
from vidm.trainer import Trainer
from vidm.unet import set_activation_checkpointing
from vidm.world import write_dataset

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PRECISIONS = ("fp32", "tf32", "bf16", "bf16-weights")
LARGEST_DIFFERENCE = 1e-4
COMPILE_UNTIL_S = 240
NUM_FRAMES = 16


@dataclass(frozen=True)
class Run:
    """What the rows share; `began` is the start of the whole run, by time.time()."""

    device: torch.device
    preset: str
    size: int
    batches: list[int]
    samples: list[int]
    repetitions: int
    results: str
    began: float
    flags: list[str]

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def slower(self) -> int:
        """A factor of time limits, which are for a GPU."""
        return 1 if self.on_gpu else 10

    def row(self, group: str, measure: Callable[[], dict[str, Any]], **what: Any) -> None:
        """Append one row, and print it: what was measured, and the values or the error."""
        began = time.perf_counter()
        try:
            found = measure()
        except (RuntimeError, ValueError, OSError, subprocess.TimeoutExpired) as error:
            found = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}
        what = {"group": group, "preset": self.preset, "size": self.size, **what}
        append_row(self.results, {**what, **found, "took": round(time.perf_counter() - began, 1)}, self.device)
        print(" | ".join(f"{name} {_short(value)}" for name, value in {**what, **found}.items()), flush=True)

    @cached_property
    def model(self) -> Any:
        """The motion generator on the device, with deterministic weights; new networks output zeros."""
        return filled_pair(self.device, self.preset)[0].requires_grad_(False)

    def frames(self, batch: int) -> list[torch.Tensor]:
        return frames_like(batch, self.size, self.device)

    def trainer(self, folder: str, samples: int, **values: Any) -> Trainer:
        """A trainer of the preset on twelve short videos, which are rendered into the folder."""
        data = Path(folder, "data")
        if not data.exists():
            write_dataset(data, num_videos=12, num_frames=NUM_FRAMES, resolution=32, seed=0, progress=False)
        size = {"image_size": self.size, "video_timesteps": NUM_FRAMES, "batch_size": samples, "workers": 0}
        paths = {"data": str(data), "out": str(Path(folder, "run"))}
        return Trainer(Config.from_preset(self.preset).replaced({**size, **paths, **values}), self.device)

    def cost(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Seconds by repetition, additional memory at the peak, kernels, and the share of time without any."""
        call()
        call()
        seconds = [seconds_of(call, self.device) for _ in range(self.repetitions)]
        kernels, busy = self.profiled(call)
        found: dict[str, Any] = {"seconds": seconds, "kernels": kernels, "idle": max(1 - busy / median(seconds), 0.0)}
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            call()
            found["peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
            found["additional_bytes"] = found["peak_bytes"] - before
        return found

    def profiled(self, call: Callable[[], Any]) -> tuple[int, float]:
        """The kernels that a call starts (operators on a CPU), and the seconds in which at least one runs."""
        activity, kind = (
            (ProfilerActivity.CUDA, DeviceType.CUDA) if self.on_gpu else (ProfilerActivity.CPU, DeviceType.CPU)
        )
        with profile(activities=[activity]) as found:
            seconds_of(call, self.device)
        events = [e for e in found.events() or [] if e.device_type == kind and not e.name.startswith(("Mem", "Prof"))]
        busy = end = 0.0
        for event in sorted(events, key=lambda e: e.time_range.start):
            busy += max(event.time_range.end - max(event.time_range.start, end), 0)
            end = max(end, event.time_range.end)
        return len(events), busy / 1e6


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], float):
        value = median(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def denoising_step(model: Any, frames: list[torch.Tensor], precision: str, **given: torch.Tensor) -> torch.Tensor:
    x_t, previous, first = frames
    with torch.no_grad(), autocast(x_t.device, precision):
        condition = {"frame_index": constant_index(5, x_t), "previous": previous, "first": first}
        return model(x_t, constant_index(500, x_t), **condition, **given).float()


def network_of(model: Any, precision: str) -> Any:
    """The network that sampling uses in a precision."""
    if precision == "bf16":
        return with_autocast_weights(model, torch.bfloat16)
    return with_bf16_weights(model) if precision == "bf16-weights" else model


# Groups, in the order in which they run


def tests(run: Run) -> None:
    def pytest() -> dict[str, Any]:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--ignore=tests/test_benchmarks.py"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return {"exit_code": done.returncode, "summary": done.stdout.strip().splitlines()[-1]}

    run.row("tests", pytest)


def parity(run: Run) -> None:
    on_cpu = deepcopy(run.model).to(CPU)
    few = process_for(run.model, 5)

    def step(model: Any, device: torch.device) -> torch.Tensor:
        return denoising_step(model, frames_like(1, run.size, device), "fp32").cpu()

    def video(model: Any, device: torch.device) -> torch.Tensor:
        first, noise = frames_like(1, run.size, device)[2], video_noise(0, range(1), device)
        with autocast(device, "fp32"):
            return animate(model, partial(sample_dpm_solver, few), first, 3, noise).cpu()

    def compared(call: Callable[..., torch.Tensor]) -> dict[str, Any]:
        difference = (call(run.model, run.device) - call(on_cpu, CPU)).abs().max().item()
        return {"max_difference": difference, "within": difference <= LARGEST_DIFFERENCE}

    run.row("parity", partial(compared, step), what="step")
    run.row("parity", partial(compared, video), what="video of 3 frames")


def step(run: Run) -> None:
    networks = {precision: network_of(run.model, precision) for precision in PRECISIONS}

    def measure(frames: list[torch.Tensor], precision: str) -> dict[str, Any]:
        flow = run.model.flow(frames[2], frames[1])
        exact = denoising_step(run.model, frames, "fp32", flow=flow)
        call = partial(denoising_step, networks[precision], frames, precision, flow=flow)
        return {"relative_l2": ((call() - exact).norm() / exact.norm()).item(), **run.cost(call)}

    for batch in run.batches:
        for precision in PRECISIONS:
            run.row("step", partial(measure, run.frames(batch), precision), batch=batch, precision=precision)


def waits(run: Run) -> None:
    def measure(trainer: Trainer, batches: Iterator[Any]) -> dict[str, Any]:
        if run.on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train_step(batches)
        if run.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        lines = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
        return {"waits": sum(lines.values()), "lines": dict(lines)}

    with TemporaryDirectory() as folder:
        trainer = run.trainer(folder, run.samples[0])
        batches = trainer.batches()
        trainer.train_step(batches)
        for number in (2, 3):
            run.row("waits", partial(measure, trainer, batches), step=number)


def compiled(run: Run) -> None:
    network, frames = network_of(run.model, "bf16-weights"), run.frames(1)
    flow = run.model.flow(frames[2], frames[1])

    def measure(mode: str) -> dict[str, Any]:
        if time.time() - run.began > COMPILE_UNTIL_S:
            raise ValueError(f"skipped: it would begin after {COMPILE_UNTIL_S} s")
        options: dict[str, Any] = {"mode": mode} if run.on_gpu else {"backend": "aot_eager"}
        faster = torch.compile(network, dynamic=False, **options)
        call = partial(denoising_step, faster, frames, "bf16-weights", flow=flow)
        return {"compile_seconds": seconds_of(call, run.device), **run.cost(call)}

    for mode in ("default", "reduce-overhead"):  # the latter uses CUDA graphs
        run.row("compiled", partial(measure, mode), batch=1, precision="bf16-weights", mode=mode)


def train(run: Run) -> None:
    def measure(samples: int, precision: str) -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            trainer = run.trainer(folder, samples, precision=precision)
            batch = next(trainer.batches())
            return run.cost(lambda: trainer.train_step(repeat(batch)))

    for samples in run.samples:
        for precision in ("bf16", "tf32"):
            run.row("train", partial(measure, samples, precision), samples=samples, precision=precision)


def group_norms(run: Run) -> None:
    def in_float32(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        return F.group_norm(x.float(), *arguments).type(x.dtype)

    def measure(norm: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> dict[str, Any]:
        x, gradient = torch.randn(2, *shape, device=run.device, dtype=torch.bfloat16)
        x, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
        weight, bias = torch.randn(2, shape[1], device=run.device).unbind()
        leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]

        def call() -> None:
            with autocast(run.device, "bf16"):
                y = norm(leaves[0], 32, leaves[1], leaves[2], 1e-5)
            y.backward(gradient)

        return {**run.cost(call), "read_and_written_once_bytes": 5 * num_bytes([gradient])}

    for channels, side in ((128, run.size), (256, run.size // 4), (512, run.size // 16)):
        for name, norm in (("float32", in_float32), ("package", group_norm)):
            shape = (run.samples[0], channels, side, side)
            run.row("group_norm", partial(measure, norm, shape), shape=shape, norm=name)


def train_command(run: Run, folder: str, out: str, steps: int, *flags: str) -> list[str]:
    paths = f"--data {folder}/data --out {folder}/{out}"
    common = f"--preset tiny --precision fp32 {paths} --total-iters {steps} --workers 0 --test-freq 0"
    return [sys.executable, str(ROOT / "diffusion_ddp_accum_constant_cu.py"), *common.split(), *flags]


def bits(run: Run) -> None:
    """The runs are those of the preset tiny at 32 x 32, by the command that users call."""
    environment = os.environ if run.on_gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

    def finished(*commands: list[str]) -> None:
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment}
        for process in [subprocess.Popen(command, **pipes) for command in commands]:  # type: ignore[call-overload]
            _, errors = process.communicate()
            if process.returncode:
                raise ValueError(errors.strip().splitlines()[-1])

    def differing(folder: str, out: str) -> int:
        one, other = (load_checkpoint(checkpoint_path(Path(folder, each), 6)).state_dict for each in ("one", out))
        return sum(not torch.equal(tensor, other[name]) for name, tensor in one.items())

    def measure(*flags: str) -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            write_dataset(f"{folder}/data", num_videos=12, num_frames=NUM_FRAMES, resolution=32, progress=False)
            command = partial(train_command, run, folder)
            finished(command("one", 6, *flags), command("again", 6, *flags), command("stopped", 3, *flags))
            finished(command("stopped", 6, "--resume", "auto", *flags))
            return {"again": differing(folder, "again"), "resumed": differing(folder, "stopped")}

    for flags in ("", "--flow-range none", "--flow-range none --deterministic"):
        run.row("bits", partial(measure, *flags.split()), flags=flags)


def memory(run: Run) -> None:
    model = build_model(Config.from_preset(run.preset)).to(run.device)
    optimizer, ema = torch.optim.AdamW(model.parameters(), fused=True), EMA(model, 0.999)

    def step_bytes(samples: int, precision: str) -> int:
        """The most that a step has allocated; on a CPU, what it keeps for the backward pass."""
        step = partial(training_step, model, optimizer, lambda: ema.update(model), run.frames(samples), precision)
        if run.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(run.device)
            step()
            return torch.cuda.max_memory_allocated(run.device)
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += num_bytes([tensor])
            return tensor

        with saved_tensors_hooks(count, lambda tensor: tensor):
            step()
        return kept

    def measure(mode: str, precision: str) -> dict[str, Any]:
        set_activation_checkpointing(model, mode)
        step_bytes(2, precision)  # allocates the optimizer's moments
        two, four = step_bytes(2, precision), step_bytes(4, precision)
        per_sample = (four - two) / 2
        total = torch.cuda.mem_get_info(run.device)[1] if run.on_gpu else 3 * four
        samples = int((total - two) / per_sample) + 2
        while samples > 4:
            try:
                return {"samples": samples, "bytes": step_bytes(samples, precision), "bytes_per_sample": per_sample}
            except torch.OutOfMemoryError:
                samples = int(0.97 * samples)
        return {"samples": samples, "bytes_per_sample": per_sample}

    for precision in ("bf16", "tf32"):
        for mode in ("none", "posgn", "full"):
            run.row("memory", partial(measure, mode, precision), checkpoint_activations=mode, precision=precision)


def video(run: Run) -> None:
    config = Config.from_preset(run.preset).replaced({"image_size": run.size})
    generator = Generator(run.model, config, run.device, Path("none"))
    settings = SampleConfig(num_frames=NUM_FRAMES)

    def measure(batch: int) -> dict[str, Any]:
        frames = np.random.default_rng(0).integers(0, 256, (batch, run.size, run.size, 3), dtype=np.uint8)
        call = partial(generator.animate_batch, list(frames), range(batch), settings)
        call()
        seconds = seconds_of(call, run.device)
        return {"seconds": [seconds], "frames_per_s": batch * NUM_FRAMES / seconds}

    for batch in run.batches[:3]:
        precision = generator.precision(settings)
        run.row("video", partial(measure, batch), batch=batch, precision=precision, steps=settings.steps)


def processes(run: Run) -> None:
    """With GPUs, the processes are those of --multiprocessing-distributed, on a CPU torchrun's."""
    if run.on_gpu and torch.cuda.device_count() < 2:
        return print("processes: skipped, this machine has one GPU")
    start = [] if run.on_gpu else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def measure(worker: str) -> dict[str, Any]:
        command = [sys.executable, *start, __file__, *run.flags, "--began", str(run.began), "--worker", worker]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * run.slower)
        lines = [line for line in done.stderr.splitlines() if "error: " in line]
        return {"exit_code": done.returncode, "seconds_to_end": time.perf_counter() - began, "errors": lines[:3]}

    for worker in WORKERS:
        run.row("processes", partial(measure, worker), worker=worker)


def work_together(device: torch.device, run: Run) -> None:
    """A training step in every process; the row is the main one's."""
    with TemporaryDirectory() as folder:
        trainer = run.trainer(folder, run.samples[0] * world_size())
        batch = next(trainer.batches())
        found = run.cost(lambda: trainer.train_step(repeat(batch)))
    if is_main():
        what = {"worker": "step", "samples": run.samples[0], "processes": world_size()}
        run.row("processes", lambda: found, **what)


def _fail(device: torch.device, how: Callable[[], None]) -> None:
    """Exchange flags until process 1 fails, while the others have begun to sum gradients with it."""
    with exit_on_user_error():
        for number in range(20):
            if rank() != 1 and number == 5 and device.type == "cuda":
                torch.distributed.all_reduce(torch.ones(1, device=device), async_op=True)
            gather_rows(torch.ones(1, device=device))
            if rank() == 1 and number == 5:
                how()


def _raise() -> None:
    raise ValueError("a process fails on purpose")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_in_one(device: torch.device, run: Run) -> None:
    _fail(device, _raise)


def kill_one(device: torch.device, run: Run) -> None:
    _fail(device, _die)


WORKERS = {"step": work_together, "raises": raise_in_one, "killed": kill_one}


def reference(run: Run) -> None:
    ours, published = filled_pair(run.device, run.preset)
    auto = chosen_precision("auto", run.device)
    frames = run.frames(run.samples[0])
    network = network_of(ours, auto)
    flow = ours.flow(frames[2], frames[1]).detach()
    calls: dict[str, Callable[[], Any]] = {"reference": partial(denoising_step, published, frames, "tf32")}
    calls["package"] = partial(denoising_step, network, frames, auto, flow=flow)
    for side, call in calls.items():
        run.row("reference", partial(run.cost, call), task="step", side=side, batch=len(flow))
    shadow = {name: tensor.clone() for name, tensor in published.state_dict().items()}
    ema = EMA(ours, 0.999)
    plain = torch.optim.AdamW(published.parameters(), lr=1e-6, weight_decay=0.0, foreach=False, fused=False)
    fused = torch.optim.AdamW(ours.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    average = partial(update_average, shadow, published, 0.999)
    calls = {"reference": partial(training_step, published, plain, average, frames, "tf32")}
    calls["package"] = partial(training_step, ours, fused, lambda: ema.update(ours), frames, auto)
    for side, call in calls.items():
        run.row("reference", partial(run.cost, call), task="training step", side=side, samples=len(flow))


# Each group with the seconds after which it is stopped.
GROUPS: dict[str, tuple[Callable[[Run], None], int]] = {
    "tests": (tests, 100),
    "parity": (parity, 50),
    "step": (step, 80),
    "waits": (waits, 40),
    "compiled": (compiled, 150),
    "train": (train, 60),
    "group_norm": (group_norms, 30),
    "bits": (bits, 90),
    "memory": (memory, 70),
    "video": (video, 50),
    "processes": (processes, 120),
    "reference": (reference, 60),
}


def run_group(run: Run, name: str, limit: float) -> None:
    """Run a group in its own process and stop it, and what it started, after `limit` seconds."""
    command = [sys.executable, __file__, *run.flags, "--began", str(run.began), "--group", name]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(limit)
        problem = f"the group ended with exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        problem = f"the group was stopped after {limit:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if problem:
        append_row(run.results, {"group": name, "error": problem}, run.device)
        print(f"{name}: {problem}", flush=True)


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP", help="groups to run")
    flags.add_argument("--seconds", type=float, default=520, help="the whole run ends after this time (520)")
    flags.add_argument("--repetitions", type=positive, default=10, metavar="N", help="measurements of a row (10)")
    flags.add_argument("--size", type=positive, default=128, metavar="R", help="pixels per side (128)")
    flags.add_argument(
        "--batches", type=positive, nargs="+", default=[1, 8, 16, 64], metavar="N", help="batches of a denoising step"
    )
    flags.add_argument(
        "--samples", type=positive, nargs="+", default=[6, 12], metavar="N", help="samples of a training step"
    )
    flags.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cuda (default), or cpu for a test")
    flags.add_argument("--preset", choices=PRESETS, default="paper128", help="preset of the network (paper128)")
    flags.add_argument("--results", default="gpu", metavar="NAME", help="append rows to results/NAME.jsonl (gpu)")
    for internal, kind in (("--began", float), ("--group", str), ("--worker", str)):
        flags.add_argument(internal, type=kind, help=argparse.SUPPRESS)
    return flags


def main() -> None:
    flags = parser()
    arguments = flags.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        flags.error("no CUDA GPU found; --device cpu tests the script without one")
    with torch.device("meta"):
        multiple = build_model(Config.from_preset(arguments.preset)).shape.side_multiple
    if arguments.size % multiple:
        flags.error(f"--size {arguments.size}: {arguments.preset} needs a multiple of {multiple}")
    own, began = sys.argv[1:], arguments.began or time.time()
    if arguments.began:
        own = own[: own.index("--began")]
    names = ("preset", "size", "batches", "samples", "repetitions", "results")
    shared = {name: getattr(arguments, name) for name in names}
    run = Run(torch.device(arguments.device), **shared, began=began, flags=own)
    if arguments.worker:
        launch(WORKERS[arguments.worker], (run,), multiprocessing=run.on_gpu)
    elif arguments.group:
        GROUPS[arguments.group][0](run)
    else:
        print(f"{torch.cuda.get_device_name() if run.on_gpu else 'cpu'}; seconds are medians, memory is in bytes")
        for name in arguments.only:
            left = began + arguments.seconds - time.time()
            if left > 0:
                run_group(run, name, min(GROUPS[name][1] * run.slower, left))
            else:
                print(f"{name}: skipped, {arguments.seconds:.0f} s are over (--seconds)")


if __name__ == "__main__":
    main()
