"""Save, find and load checkpoints, atomically and strictly.

A checkpoint is one file with the whole state of a run: the weights, their moving average, the optimizer, the loss
scale, the step and the progress so far, the configuration, and the versions of Python and PyTorch. Random numbers
follow from seed and step, so no generator's state is stored. Tensors are named as in the published code. Every part of
the file has a checksum, which is verified on reading.

    save_checkpoint(checkpoint_path("checkpoints", 1000), checkpoint)
    checkpoint = load_checkpoint(latest_checkpoint("checkpoints"))
    model = load_model(checkpoint.config, checkpoint.ema_state_dict, "checkpoint")
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidm.config import Config
from vidm.diffusion import GaussianDiffusion, Process
from vidm.files import LARGEST, atomic_file
from vidm.model import ContentGenerator, MotionGenerator
from vidm.runtime import versions_of
from vidm.tensor_file import read_tensors

_NAME = re.compile(r"checkpoint_(\d{8})\.pt")
_LISTED = 10  # tensors that an error names
# To be raised when a saved setting changes its meaning; files without a number have format 1.
FORMAT = 2
# Parts of a checkpoint that contain tensors.
_TENSOR_PARTS = ("state_dict", "ema_state_dict", "optimizer", "scaler")
# Settings that only the motion generator has.
MOTION_ONLY = ("video_timesteps", "flow_range", "norm", "use_encoder", "use_previous")


@dataclass(frozen=True)
class Progress:
    """Counts of a run so far: samples drawn, updates of the averaged weights, steps skipped because they were not
    finite (in all, and in a row up to now), and videos that samples are drawn from."""

    samples_seen: int = 0
    ema_updates: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    num_videos: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A training run at one step; `source` names it in messages.

    Checkpoints that VIDM's training did not write have no `optimizer`, `scaler` (the loss scale of fp16), `progress` or
    `versions` (version by name).
    """

    step: int
    config: Config
    state_dict: Mapping[str, Tensor]
    ema_state_dict: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    source: str = "the checkpoint"

    def weights(self, kind: str) -> Mapping[str, Tensor]:
        """The averaged weights ("ema"), or the trained ones ("raw"). Raises ValueError if only one kind is stored."""
        if kind == "ema":
            return self.ema_state_dict
        if all(self.ema_state_dict.get(name) is tensor for name, tensor in self.state_dict.items()):
            raise ValueError(f"{self.source} has one kind of weights: leave --weights out")
        return self.state_dict


def build_model(config: Config) -> MotionGenerator | ContentGenerator:
    """The generator that a configuration describes, initialised from torch's global random generator.

    Weights are channels last, like PosGN's per-pixel scale and shift, so that nothing has to be transposed.
    """
    arguments = config.to_dict()["model"]
    kind = MotionGenerator if arguments.pop("generator") == "motion" else ContentGenerator
    for name in ("constant",) if kind is MotionGenerator else MOTION_ONLY:
        arguments.pop(name)
    model = kind(**arguments).to(memory_format=torch.channels_last)
    diffusion = config.diffusion
    model.process = Process(config.model.diffusion_timesteps, diffusion.schedule, diffusion.prediction)
    return model


def build_diffusion(config: Config, respacing: str | int = "") -> GaussianDiffusion:
    """The diffusion process that a configuration describes, with fewer steps if `respacing` is given."""
    return GaussianDiffusion(config.model.diffusion_timesteps, respacing=respacing, **config.to_dict()["diffusion"])


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """The path of the checkpoint of a step: folder/checkpoint_%08d.pt."""
    return Path(folder) / f"checkpoint_{step:08d}.pt"


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, lowest step first; an empty list if the folder does not exist."""
    folder = Path(folder)
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name)) if folder.is_dir() else []


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of the highest step in a folder, None if there are none."""
    return next(reversed(list_checkpoints(folder)), None)


def present_versions() -> dict[str, str]:
    """Versions of the software that a run's numbers depend on, by name."""
    return versions_of(("python", "torch", "cuda"), missing="none")


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically. Raises WriteError when the disk is full."""
    content = {
        "format": FORMAT,
        "iters": checkpoint.step,
        "config": checkpoint.config.to_dict(),
        "state_dict": dict(checkpoint.state_dict),
        "ema_state_dict": dict(checkpoint.ema_state_dict),
        "optimizer": dict(checkpoint.optimizer),
        "scaler": dict(checkpoint.scaler),
        "progress": asdict(checkpoint.progress) if checkpoint.progress else {},
        "versions": dict(checkpoint.versions),
    }
    with atomic_file(path) as file:
        torch.save(content, file)


def remove_unfinished(folder: str | Path) -> None:
    """Remove hidden temporary files of checkpoints, left by processes that were killed while writing."""
    for path in Path(folder).glob(".checkpoint_*.pt"):
        path.unlink(missing_ok=True)


def is_state(value: Any) -> bool:
    """Whether a value is a dictionary of tensors by name."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def _plain(value: Any, seen: set[int]) -> Any:
    """A copy of settings, of which a checkpoint contains what JSON can. Raises ValueError for tensors, for example."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if not isinstance(value, (Mapping, list, tuple)) or (value and id(value) in seen):
        raise ValueError(f"a setting is a {type(value).__name__}, or is there twice")
    seen.add(id(value))
    if isinstance(value, Mapping):
        return {_plain(name, seen): _plain(part, seen) for name, part in value.items()}
    return [_plain(part, seen) for part in value]


def step_of(content: Mapping[str, Any], path: str | Path) -> int:
    """The step in a file's content, 0 if it has none. Raises ValueError, naming the file, for anything else."""
    step = content.get("iters", 0)
    if not (type(step) is int and 0 <= step <= LARGEST):
        raise ValueError(f"{path} is damaged or was written by another version: its step is {reprlib.repr(step)}")
    return step


def _from_format_1(config: Config) -> Config:
    """Settings of format 1, in which `train_flow` was only the flag: without given weights SPyNet was trained, too."""
    train = config.train
    return config.replaced({"train_flow": train.train_flow or not (train.spynet or train.init)})


def checkpoint_from(content: Mapping[str, Any], path: str | Path) -> Checkpoint:
    """A checkpoint from a file's content. Raises ValueError, naming the file, if it is not a VIDM checkpoint."""
    missing = {"iters", "config", "state_dict", "ema_state_dict", "optimizer"} - content.keys()
    if missing:
        raise ValueError(f"{path} is not a VIDM checkpoint: it lacks {', '.join(sorted(missing))}")
    states = content["state_dict"], content["ema_state_dict"]
    if not (all(is_state(s) for s in states) and all(isinstance(content.get(n, {}), Mapping) for n in _TENSOR_PARTS)):
        raise ValueError(f"{path} is not a VIDM checkpoint: its weights are not named tensors")
    try:
        settings = _plain({name: part for name, part in content.items() if name not in _TENSOR_PARTS}, set())
        versions = settings.get("versions", {})
        if not isinstance(versions, dict):
            raise ValueError("its versions are no dictionary")
        if settings.get("format", 1) not in range(1, FORMAT + 1):
            raise ValueError(f"its format is {reprlib.repr(settings['format'])}, and this version knows up to {FORMAT}")
        config = Config.from_dict(settings["config"])
        if settings.get("format", 1) == 1:
            config = _from_format_1(config)
        progress = Progress(**settings["progress"]) if settings.get("progress") else None
        if progress and not all(type(count) is int and 0 <= count <= LARGEST for count in asdict(progress).values()):
            raise ValueError(f"its progress is not in whole numbers up to {LARGEST}")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or was written by another version: {error}") from error
    if config.model.generator == "content" and any(name.startswith("unet.") for name in states[0]):
        raise ValueError(
            f"{path} has the content generator of an earlier version, a network without constant input and timestep "
            "embedding: train it again"
        )
    step, optimizer, scaler = step_of(content, path), content["optimizer"], content.get("scaler", {})
    return Checkpoint(step, config, *states, optimizer, scaler, progress, versions, source=str(path))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint written by save_checkpoint.

    Raises FileNotFoundError for a missing file and ValueError, naming it, for a damaged file or one of another kind.
    """
    return checkpoint_from(read_tensors(path), path)


def check_generator(checkpoint: Checkpoint, wanted: str) -> None:
    """Raise ValueError, naming the file, unless a checkpoint is of the `wanted` generator: "motion" or "content"."""
    found = checkpoint.config.model.generator
    if found != wanted:
        flag = "--content-resume" if found == "content" else "--resume"
        raise ValueError(
            f"{checkpoint.source} is a {found} generator, and a {wanted} generator is needed here: give it to sampling "
            f"with {flag}, to training with --generator {found}"
        )


def check_weights(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise ValueError unless `state` has the names and shapes of `own`, and floats where `own` has them.

    The message names `source`, the number of tensors that are missing, unexpected or different, and the first ten of
    them.
    """
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is unexpected" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    wrong += [
        f"{name} is {state[name].dtype}, not {tensor.dtype}"
        for name, tensor in own.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    if wrong:
        more = f"; and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise ValueError(
            f"{source} does not fit this network in {len(wrong)} tensors: {'; '.join(wrong[:_LISTED])}{more}"
        )


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy weights into a module, strictly; raises ValueError as check_weights does."""
    check_weights(module.state_dict(), state, source)
    module.load_state_dict(state)


def load_model(config: Config, state: Mapping[str, Tensor], source: str | Path) -> MotionGenerator | ContentGenerator:
    """The generator that a configuration describes, with the given weights.

    Names and shapes are compared before the network takes memory. Raises ValueError as check_weights does, and for a
    configuration that describes no network.
    """
    with torch.device("meta"):
        check_weights(build_model(config).state_dict(), state, source)
    model = build_model(config)
    model.load_state_dict(state)
    return model


def load_spynet(module: nn.Module, path: str | Path) -> None:
    """Load a file of SPyNet weights: a state dict, bare or under "state_dict", with or without mean and std.

    Raises FileNotFoundError or ValueError, naming the file.
    """
    content = read_tensors(path)
    if "ema_state_dict" in content:
        raise ValueError(f"{path} is the checkpoint of a generator, not a file of SPyNet weights: see --init")
    state = content.get("state_dict", content)
    if not is_state(state):
        raise ValueError(f"{path} does not contain weights of SPyNet")
    buffers = dict(module.named_buffers())
    load_weights(module, {**buffers, **state}, path)
