"""Checkpoints of every format: VIDM's own .pt, the authors' .pth.tar, and .safetensors, also by name from a hub.

    checkpoint = load_any("pretrained_models/checkpoint_accum_clevrer_robust_400000.pth.tar", video_timesteps=128)
    save_safetensors("world.safetensors", checkpoint)

The authors' files contain {"iters", "state_dict", "ema_state_dict", "optimizer"} and no configuration; names of
tensors have the prefix `module.`, and some files include cached coordinates. A .safetensors file contains only averaged
weights; a .json file of the same name has the step and the configuration.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from vidm.checkpoint import FORMAT, Checkpoint, checkpoint_from, is_state, step_of
from vidm.config import Config
from vidm.distributed import print0
from vidm.files import atomic_write, read_json, regular_file
from vidm.frame_size import plain_size, size_text
from vidm.hub import downloaded, files_of, is_hub_name
from vidm.resume import newest_undamaged
from vidm.tensor_file import read_tensors, wrong_download

PREFIX = "module."
# <block>.emb_layers.coords (B, H, W, 2) and <block>.emb_layers.new_coords (1000, V, 1, 1, 2).
CACHED = (".emb_layers.coords", ".emb_layers.new_coords")
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Tensors that only the content generator has.
TIMESTEP_EMBEDDING, CONSTANT = "dt_embed.0.weight", "input.input"
# The authors' networks: the defaults, except that SPyNet sees frames in [-1, 1].
PUBLISHED = Config().replaced({"flow_range": "published"})


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def _cached_video_timesteps(state: Mapping[str, Tensor]) -> int | None:
    """The number of video timesteps that cached coordinates were computed for, None without cached coordinates."""
    shapes = {tensor.shape for name, tensor in state.items() if name.endswith(CACHED[1])}
    lengths = {shape[1] for shape in shapes if len(shape) == 5}
    return lengths.pop() if len(lengths) == 1 else None


def _published_content(state: Mapping[str, Tensor], path: Path, config: Config) -> Config:
    """The configuration of the authors' content generator, which its tensors tell from the motion generator."""
    constant = state.get(CONSTANT)
    size = config.model.image_size if constant is None else plain_size(tuple(constant.shape[-2:]))
    print0(f"{path}: a published checkpoint without configuration, read as a content generator of {size_text(size)}")
    return config.replaced({"generator": "content", "image_size": size, "constant": constant is not None})


def _published_motion(state: Mapping[str, Tensor], path: Path, config: Config, video_timesteps: int | None) -> Config:
    """The configuration of the authors' motion generator, with its number of video timesteps."""
    cached = _cached_video_timesteps(state)
    if cached is None and video_timesteps is None:
        raise ValueError(
            f"{path} does not say for how many video timesteps it was trained: give --video-timesteps N "
            "(128 in the authors' training script); another number changes the coordinates of the frames"
        )
    if cached is not None and video_timesteps not in (None, cached):
        raise ValueError(f"{path} was trained with {cached} video timesteps, not {video_timesteps}")
    length = cached or video_timesteps
    origin = "from its cached coordinates" if cached else "as given"
    print0(
        f"{path}: a published checkpoint without configuration, read as a motion generator of "
        f"{size_text(config.model.image_size)} with flow_range {config.model.flow_range}; "
        f"{length} video timesteps ({origin})"
    )
    return config.replaced({"video_timesteps": length})


def _from_published(content: Mapping, path: Path, config: Config, video_timesteps: int | None) -> Checkpoint:
    """A checkpoint from the authors' format; `config` describes what its tensors do not tell."""
    state, averaged = (_without_prefix(content[name]) for name in ("state_dict", "ema_state_dict"))
    if TIMESTEP_EMBEDDING in state:
        if video_timesteps is not None:
            raise ValueError(
                f"--video-timesteps has no effect: {path} is a content generator, which draws single frames"
            )
        config = _published_content(state, path, config)
    else:
        config = _published_motion({**state, **averaged}, path, config, video_timesteps)
    plain, ema = ({k: v for k, v in s.items() if not k.endswith(CACHED)} for s in (state, averaged))
    return Checkpoint(step_of(content, path), config, plain, ema, {}, source=str(path))


def _settings_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _load_safetensors(path: Path) -> Checkpoint:
    settings = _settings_path(path)
    for file in (path, settings):
        if not file.exists():
            raise FileNotFoundError(f"no such file: {file}; .safetensors weights need a .json file with their settings")
    described = read_json(settings)
    if wrong := wrong_download(regular_file(path)):
        raise ValueError(f"{path} {wrong}")
    try:
        with regular_file(path).open("rb") as source:  # the library opens no path that is not UTF-8
            stored = load_file(f"/dev/fd/{source.fileno()}")
    except Exception as error:  # the library raises errors of many types, some of many lines
        raise ValueError(f"{path} is truncated or damaged: {str(error).strip().splitlines()[0]}") from error
    if others := {tensor.dtype for tensor in stored.values()} - set(WEIGHT_DTYPES):
        raise ValueError(f"{path} has weights of the type {others.pop()}: they are floats of 16 bits or more")
    weights = {name: tensor.float() for name, tensor in stored.items()}
    if not isinstance(described, dict):
        raise ValueError(f"{settings} does not describe a checkpoint")
    weights_and_settings = {**described, "state_dict": weights, "ema_state_dict": weights, "optimizer": {}}
    return checkpoint_from(weights_and_settings, path)


def load_any(
    path: str | Path, video_timesteps: int | None = None, config: Config = PUBLISHED, generator: str = "motion"
) -> Checkpoint:
    """Load a checkpoint of any format, or the newest undamaged one of a run's folder, without running code from it.

    `config` describes files that have no configuration; such a file of a motion generator needs `video_timesteps`, too,
    unless it has cached coordinates. hf:owner/name[@revision] is the `generator`, "motion" or "content", of a
    repository on the Hugging Face Hub, and a folder with the same files is read like it. Only VIDM's own checkpoints
    have an optimizer. Raises FileNotFoundError or ValueError, naming the file.
    """
    path = downloaded(str(path), generator) if is_hub_name(path) else Path(path)
    if path.is_dir() and (weights := path / files_of(generator)[1]).exists():
        path = weights
    if path.is_dir():
        found = newest_undamaged(path)
        if not found:
            raise ValueError(f"{path} is a folder without an undamaged checkpoint: give a file or the folder of a run")
        checkpoint = found
    elif path.suffix == ".safetensors":
        checkpoint = _load_safetensors(path)
    else:
        content = read_tensors(path)
        if "ema_state_dict" not in content and is_state(content.get("state_dict")):
            print0(f"{path} has no averaged weights: the plain weights are used instead")
            content["ema_state_dict"] = content["state_dict"]
        if "config" not in content and all(is_state(content.get(k)) for k in ("state_dict", "ema_state_dict")):
            return _from_published(content, path, config, video_timesteps)
        checkpoint = checkpoint_from(content, path)
    trained = checkpoint.config.model.video_timesteps
    if video_timesteps not in (None, trained):
        raise ValueError(f"{checkpoint.source} was trained with {trained} video timesteps, not {video_timesteps}")
    return checkpoint


def save_safetensors(path: str | Path, checkpoint: Checkpoint, half: bool = False) -> None:
    """Write a checkpoint's averaged weights as .safetensors, and its step and configuration as .json.

    With `half`, weights are stored as float16, which halves the file; reading converts them back to float32. Of
    absolute paths in the configuration only the last part is written: released files do not describe a machine.
    """
    path, config = Path(path), checkpoint.config
    train = config.train
    paths = {"data": config.data.data, "out": train.out, "spynet": train.spynet, "init": train.init}
    absolute = {name: Path(given) for name, given in paths.items() if Path(given).is_absolute()}
    config = config.replaced({name: given.name for name, given in absolute.items()})
    dtype = torch.float16 if half else torch.float32
    # Channels-last weights are dense but not contiguous; the format requires contiguous ones.
    weights = {
        name: tensor.to(dtype).contiguous(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.ema_state_dict.items()
    }
    with atomic_write(_settings_path(path)) as temporary:
        described = {"format": FORMAT, "iters": checkpoint.step, "config": config.to_dict()}
        temporary.write_text(json.dumps(described, indent=2) + "\n")
    # The library's own writer makes files that only their owner can read.
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(weights))
