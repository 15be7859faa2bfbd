"""Precision, compilation, memory, provenance, and errors as one line for the user.

with exit_on_user_error(), explain_out_of_memory("micro-batches of 8", "give --accum-steps 4"):
    with autocast(device, "fp16"):
        losses = diffusion.training_losses(model, x_start, t)
    scaler.scale(losses["loss"].mean()).backward()
"""

import ctypes
import os
import platform
import re
import resource
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NoReturn

import torch
from torch import Tensor

from vidm import __version__
from vidm.console import console
from vidm.distributed import rank
from vidm.layers import CHANNELS_LAST_SINCE
from vidm.settings import flags_named
from vidm.tf32 import tf32_products

# The precisions that use autocast.
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
GIB = 2**30
_CPU_ALLOCATOR = "DefaultCPUAllocator"
_NO_MEMORY = (_CPU_ALLOCATOR, "MemoryError: ", "out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED")
# Parameters of glibc's mallopt, and the values that its dynamic thresholds grow to.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_GROWN_TRIM_THRESHOLD, _GROWN_MMAP_THRESHOLD, _DEFAULT_MMAP_MAX = 64 * 2**20, 32 * 2**20, 65536


def slow_group_norms(device: torch.device) -> str:
    """A line for the user if this version of PyTorch copies around group norms on the device, or nothing. Ours."""
    if device.type != "cuda" or torch.__version__ >= CHANNELS_LAST_SINCE:
        return ""
    return (
        f"PyTorch {torch.__version__} copies every feature map around a group norm on GPUs; "
        f"{CHANNELS_LAST_SINCE} or newer does not"
    )


def chosen_precision(precision: str, device: torch.device) -> str:
    """The precision, or what "auto" is on a device: bf16 on GPUs that compute in it, tf32 on others, fp32 on a CPU."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "tf32"


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """A context in which matrix products and convolutions run in `precision`, one of SAMPLING_PRECISIONS.

    Parameters, coordinates, sums of norms and the diffusion process stay float32. "bf16-weights" uses no autocast:
    parameters are then bfloat16. A GPU rounds float32 factors to TF32 in "tf32" only, although PyTorch lets
    convolutions do so by default; a backward pass needs tf32_products for the same. On the CPU, "tf32" is "fp32".
    """
    precision = chosen_precision(precision, device)
    dtype = AUTOCAST_DTYPES.get(precision)
    with tf32_products(precision == "tf32"), torch.autocast(device.type, dtype, enabled=dtype is not None):
        yield


def loss_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales losses so that fp16 gradients do not vanish; it does nothing in any other precision."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def check_bfloat16(device: torch.device, precision: str) -> None:
    """Raise ValueError for bfloat16 on a GPU that only emulates it, which is slower than float32."""
    if not precision.startswith("bf16") or device.type != "cuda" or not torch.cuda.is_available():
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"--precision {precision}: {name} only emulates bfloat16, slowly; use --precision fp16")


def use_deterministic_algorithms() -> None:
    """Let the GPU use only algorithms that give the same bits in every run; to be called before anything uses it."""
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS's are not
    if workspace not in (":4096:8", ":16:8"):
        raise ValueError(f"--deterministic: CUBLAS_WORKSPACE_CONFIG is {workspace}: unset it")
    torch.backends.cudnn.benchmark = False  # it may choose another algorithm in every run
    torch.use_deterministic_algorithms(True)


@contextmanager
def explain_no_deterministic_algorithm() -> Iterator[None]:
    """Turn the error of an operation without a deterministic algorithm into a ValueError that names it."""
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).split(", but ")[0]
        raise ValueError(f"--deterministic: {reason}; leave the flag out, or train on a CPU") from error


def check_compiler(device: torch.device) -> None:
    """Raise ValueError unless what torch.compile calls is installed: g++, or on a GPU Triton and its C compiler."""
    if device.type == "cuda" and not find_spec("triton"):
        raise ValueError("--compile on a GPU needs Triton: pip install triton, or leave --compile out")
    names = ("CC", "gcc", "clang") if device.type == "cuda" else ("CXX", "g++")
    variable, *usual = names
    commands = shlex.split(os.environ.get(variable, ""))[:1] or usual
    if not any(shutil.which(command) for command in commands):
        language = "C" if device.type == "cuda" else "C++"
        raise ValueError(
            f"--compile needs a {language} compiler, {' or '.join(usual)} or the one that {variable} names: install "
            "one, or leave --compile out"
        )


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """The total size of tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process so far: that of its tensors on a GPU, or its resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory(kept: bool = True) -> bool:
    """Let this process reuse the CPU memory that it frees; return whether the C library supports it (glibc only).

    By default glibc returns blocks of 32 MiB and more to the system at once. New ones are then zeroed page by page,
    which takes several times as long as filling them: a third of a denoising step. kept=False restores the default.
    Ours.
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    values = {
        _M_MMAP_MAX: 0 if kept else _DEFAULT_MMAP_MAX,
        _M_TRIM_THRESHOLD: -1 if kept else _GROWN_TRIM_THRESHOLD,
        _M_MMAP_THRESHOLD: _GROWN_MMAP_THRESHOLD,
    }
    return all(libc.mallopt(parameter, value) for parameter, value in values.items())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation, on a GPU or the CPU. TorchScript and libraries of CUDA only say so.

    From a data loading process, a MemoryError arrives as a RuntimeError with its traceback as text.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _NO_MEMORY)


@contextmanager
def explain_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Turn a failed allocation, on a GPU or the CPU, into a ValueError that says what does not fit, and the advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        on_cpu = isinstance(error, MemoryError) or _CPU_ALLOCATOR in str(error)
        raise ValueError(f"out of memory{' on the CPU' * on_cpu}: {what} do not fit; {advice}") from error


def more_micro_batches(samples: int, accum_steps: int) -> int | None:
    """The next larger number of micro-batches that divides a process's samples; None if there is none."""
    return next((n for n in range(accum_steps + 1, samples + 1) if samples % n == 0), None)


def _version_of(name: str) -> str:
    if name == "python":
        return platform.python_version()
    if name == "torch":
        return str(torch.__version__)  # with the build's suffix (+cpu, +cu126), which the package's metadata may lack
    if name == "cuda":
        return torch.version.cuda or ""
    if name == "cudnn":
        return str(torch.backends.cudnn.version() or "")
    if name == "vidm":
        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def versions_of(names: Iterable[str], missing: str = "") -> dict[str, str]:
    """The versions of installed packages, "python", and torch's "cuda" and "cudnn", by name.

    A name without a version gets the text `missing`, or is left out if that is empty.
    """
    return {name: found for name in names if (found := _version_of(name) or missing)}


def provenance(names: Iterable[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Date, versions and device of a computation: {"date", "versions": versions_of(names), "device"}."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions_of(names, missing="not installed"),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
    }


def _exit(line: str, code: int) -> NoReturn:
    where = f"[process {rank()}] " if rank() else ""
    print(f"{where}{line}", file=sys.stderr, flush=True)
    sys.exit(code)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn an error that the user can fix into one line and exit code 2, and Ctrl-C into one line and exit code 130."""
    with console(), flags_named():
        try:
            yield
        except BrokenPipeError:  # the reader of a pipe has seen enough, as `| head` has
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where the interpreter flushes the rest to
            sys.exit(1)
        except (ValueError, OSError) as error:
            message = str(error).strip()
            if isinstance(error, OSError) and error.filename and message.startswith("[Errno"):
                message = f"{error.filename}: {error.strerror}"
            # An error of a data loading process contains its whole traceback, whose last line is the message.
            if "Traceback (most recent call last):\n" in message:
                message = re.sub(r"^(\w+\.)+\w*Error: ", "", message.split("\n")[-1])
            _exit("error: " + (message or type(error).__name__), 2)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[-1].rpartition("Error: ")[2]
            _exit(f"error: out of memory ({reason or 'MemoryError'}): use smaller settings, or less of them at once", 2)
        except KeyboardInterrupt:
            _exit("interrupted", 130)
