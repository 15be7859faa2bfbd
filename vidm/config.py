"""The settings of training: typed frozen dataclasses, whose fields carry flag, help text and valid values.

A `Config` describes a training run and is saved in its checkpoints. A field without a flag is set by presets, --config
and --set only.

    config = Config.from_preset("tiny").replaced({"batch_size": 4})
"""

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from typing import Any

from vidm.console import did_you_mean, short
from vidm.diffusion import LOSSES, PREDICTIONS
from vidm.frame_size import FITS, frame_size, plain_size, sides_of, size_text
from vidm.model import FLOW_RANGES
from vidm.presets import PRESETS
from vidm.schedules import SCHEDULES
from vidm.settings import arguments_named, check_type, check_values, setting
from vidm.unet import NORMS, UNetShape

LAYOUTS = ("auto", "videos", "frames", "both", "ucf101", "csv")
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
AUTO_PRECISION = "precision of the networks; auto: bf16 on GPUs that compute in it, tf32 on older ones, fp32 on a CPU"
# Settings in files of earlier versions that are now constants.
FIXED = {"in_channels": 3, "out_channels": 6}
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class ModelConfig(UNetShape):
    """The networks: arguments of the generators, those of UNetShape included."""

    generator: str = setting(
        "motion", "network to train: motion, or content for first frames", "--generator", ("motion", "content")
    )
    image_size: int | tuple[int, int] = setting(
        128,
        "size of the frames: 64 for squares, 48x64 for height x width",
        "--resolution",
        least=1,
        most=8192,
        parse=frame_size,
    )
    video_timesteps: int = setting(
        128, "frames per video, including the given first one", "--num-frames", least=2, most=10**6
    )
    flow_range: str = setting(
        "unit", "range of SPyNet's input: unit is [0, 1], published [-1, 1], none no flow", "--flow-range", FLOW_RANGES
    )
    norm: str = setting(
        "posgn", "group norms: posgn, the method's, or timestep, which embeds step and frame", "--norm", tuple(NORMS)
    )
    use_encoder: bool = setting(
        True, "use no motion encoder; concatenate the first frame to the noisy one instead", "--no-encoder"
    )
    use_previous: bool = setting(
        False, "concatenate the previous frame to the noisy one, a baseline for the flow", "--previous-frame"
    )
    constant: bool = setting(True, "no constant input, the content generator's baseline", "--no-constant")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "image_size", plain_size(self.image_size))


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process and its loss. Arguments of GaussianDiffusion."""

    schedule: str = setting("linear", "noise schedule", "--schedule", tuple(SCHEDULES))
    prediction: str = setting(
        "eps", "output of the network: eps, the published one, or v, for short training", "--prediction", PREDICTIONS
    )
    p2_gamma: float = setting(1.0, "exponent of the P2 weighting of eps (0: no weighting)", "--p2-gamma", least=0)
    p2_k: float = setting(1.0, "offset of the P2 weighting", least=0)
    loss: str = setting(
        "charbonnier", "penalty: charbonnier (robust), or mse, the squared error of the authors' code", "--loss", LOSSES
    )
    penalty_eps: float = setting(
        1e-8, "error below which the robust penalty is quadratic instead of linear", "--penalty-eps", above=0
    )


@dataclass(frozen=True)
class DataConfig:
    """The training data."""

    data: str = setting(
        "data/CLEVRER", "folder of videos or of frame folders, at any depth, a pack or a csv list", "--data"
    )
    content_frames: str = setting(
        "first", "frames of a video that --generator content learns", "--content-frames", ("first", "all")
    )
    layout: str = setting(
        "auto",
        "layout of the folder; auto detects it, except for csv: a list, clips.csv in it",
        "--layout",
        LAYOUTS,
    )
    split: str = setting(
        "",
        "part of the data: a subfolder such as train, UCF-101's train1 .. test3, or a split in a csv list",
        "--split",
    )
    test_split: str = setting("", "part of the data to hold out (default: some videos of --data)", "--test-split")
    held_out: int = setting(
        16, "videos held out for previews, losses and --eval-freq, at most a tenth of --data", "--held-out", least=0
    )
    frame_stride: int = setting(1, "take every K-th frame of a video", "--frame-stride", least=1)
    max_bad_fraction: float = setting(
        0.05, "largest fraction of unreadable clips to train with", "--max-bad-fraction", least=0, most=1
    )
    flip: bool = setting(True, "mirror half of the samples")
    fit: str = setting(
        "crop", "frames of another shape: cropped to their centre, or padded with black bars", "--fit", FITS
    )
    classes: bool = setting(
        False,
        "condition on the class of a video: the folder that contains it, or the column class of a csv list",
        "--classes",
    )


@dataclass(frozen=True)
class TrainConfig:
    """The optimization, its logs and its checkpoints."""

    batch_size: int = setting(256, "samples per optimizer step over all GPUs", "--batch-size -b", least=1, most=10**6)
    accum_steps: int = setting(1, "micro-batches per step, whose gradients are averaged", "--accum-steps", least=1)
    workers: int = setting(32, "data loading processes over all GPUs, at most one per core", "--workers -j", least=0)
    total_iters: int = setting(800_000, "last optimizer step", "--total-iters", least=1)
    lr: float = setting(2e-5, "learning rate of AdamW", "--lr", above=0)
    lr_schedule: str = setting(
        "constant", "learning rate: constant, or decreasing to 0 by a cosine", "--lr-schedule", ("constant", "cosine")
    )
    warmup_iters: int = setting(0, "steps over which the learning rate rises to --lr", "--warmup-iters", least=0)
    weight_decay: float = setting(0.0, "weight decay of AdamW", "--weight-decay", least=0)
    clip_norm: float = setting(1.0, "largest norm of the gradient; larger ones are scaled down", above=0)
    ema_decay: float = setting(
        0.999, "decay of the averaged weights, which are used for sampling", "--ema-decay", least=0, most=1 - 1e-9
    )
    precision: str = setting("auto", AUTO_PRECISION + "; weights stay fp32", "--precision", PRECISIONS)
    compile: bool = setting(False, "compile the networks: the first steps are slow, later ones faster", "--compile")
    deterministic: bool = setting(False, "on GPUs, equal bits in every run; SPyNet must be frozen", "--deterministic")
    checkpoint_activations: str = setting(
        "none", "activations to recompute in the backward pass", "--checkpoint-activations", ("none", "posgn", "full")
    )
    seed: int = setting(0, "seed of all random numbers", "--seed", least=0, most=LARGEST_SEED)
    spynet: str = setting("", "file of SPyNet weights (default: SPyNet is trained, from zero flow)", "--spynet")
    init: str = setting("", "start from the weights of this checkpoint, with a new optimizer", "--init")
    # In a checkpoint, this says whether SPyNet is trained, as vidm.resume.trains_flow decided when the run began.
    train_flow: bool = setting(
        False, "train SPyNet even if its weights are given or it was frozen in the checkpoint", "--train-flow"
    )
    condition_noise: float = setting(
        0.0, "largest level of noise on the previous frame that SPyNet sees", "--condition-noise", least=0
    )
    offset_noise: float = setting(
        0.0, "standard deviation of a shift of each whole channel of the noise", "--offset-noise", least=0
    )
    class_dropout: float = setting(
        0.1, "share of samples without their class, for --guidance in sampling", "--class-dropout", least=0, most=1
    )
    max_bad_steps: int = setting(
        10, "end a run after so many steps in a row whose loss or gradient is not finite", "--max-bad-steps", least=1
    )
    start_seed: int = setting(0, "seed of the constant latent of truncation (--psi)", least=0, most=LARGEST_SEED)
    print_freq: int = setting(
        100, "steps between log lines, whose losses are means over them", "--print-freq -p", least=1
    )
    test_freq: int = setting(1000, "steps between previews and held-out losses (0: none)", "--test-freq", least=0)
    eval_freq: int = setting(0, "steps between distances to held-out videos (0: none)", "--eval-freq", least=0)
    save_freq: int = setting(1000, "steps between checkpoints", "--save-freq", least=1)
    keep: int = setting(3, "newest checkpoints to keep (0: all)", "--keep", least=0)
    out: str = setting("checkpoints", "folder of checkpoints and logs", "--out")


@dataclass(frozen=True)
class Config:
    """All settings of a training run; they are saved in its checkpoints."""

    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @staticmethod
    def from_preset(name: str) -> "Config":
        """The configuration of a preset. Raises ValueError for an unknown one."""
        if name not in PRESETS:
            raise ValueError(f"preset {short(name)!r}: choose from {', '.join(PRESETS)}")
        return Config().replaced(PRESETS[name])

    @staticmethod
    def from_dict(sections: Mapping[str, Mapping[str, Any]]) -> "Config":
        """The inverse of to_dict, also after JSON. Raises ValueError for an unknown name, a wrong type or value."""
        config = Config().replaced(Config.values_from(sections))
        for section in config.sections():
            check_values(section)
        return config

    @staticmethod
    def values_from(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The settings in a dictionary of sections, perhaps not all, by name. Raises ValueError for a wrong type."""
        if not isinstance(sections, Mapping) or not all(isinstance(part, Mapping) for part in sections.values()):
            raise ValueError("the settings are not a dictionary of sections")
        values = {name: value for section in sections.values() for name, value in section.items()}
        for name, value in FIXED.items():
            if values.pop(name, value) != value:
                raise ValueError(f"setting {name} is not {value}, which every network has")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        for each in (f for section in Config().sections() for f in fields(section)):
            check_type(each, values.get(each.name, each.default))
        return values

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dictionaries: section -> name -> value."""
        return asdict(self)

    def replaced(self, values: Mapping[str, Any]) -> "Config":
        """A copy with the given values by name, whichever section they are in. Raises ValueError for unknown names."""
        for name in values:
            setting_of(name)
        parts: dict[str, Any] = {}
        for part, section in zip(fields(self), self.sections(), strict=True):
            own = {f.name: values[f.name] for f in fields(section) if f.name in values}
            parts[part.name] = replace(section, **own)
        return Config(**parts)

    def sections(self) -> tuple[Any, ...]:
        """The four parts, in order: model, diffusion, data, train."""
        return self.model, self.diffusion, self.data, self.train

    def check(self, num_processes: int = 1) -> None:
        """Raise ValueError, naming the setting, for invalid settings of a training run."""
        with arguments_named(*self.sections()):
            self._check(num_processes)

    def _check(self, num_processes: int) -> None:
        for section in self.sections():
            check_values(section)
        train = self.train
        for flag, path in (("--out", train.out), ("--data", self.data.data)):
            if not path:
                raise ValueError(f"{flag} is empty: give a folder")
        size = self.model.image_size
        try:
            self.model.check_sides(*sides_of(size))
        except ValueError as error:
            shown = size if isinstance(size, int) else size_text(size)
            raise ValueError(f"--resolution {shown}: {error}") from error
        if self.data.test_split and not self.data.held_out:
            raise ValueError("--held-out 0: --test-split needs 1 or more")
        if train.eval_freq and self.model.generator == "content":
            raise ValueError("--eval-freq measures videos: it needs --generator motion")
        if train.batch_size % (num_processes * train.accum_steps):
            raise ValueError(
                f"--batch-size {train.batch_size} does not divide into {num_processes} processes x "
                f"{train.accum_steps} micro-batches (--accum-steps)"
            )


# The settings of training by name.
SETTINGS = {each.name: each for section in Config().sections() for each in fields(section)}
# The name of the setting that a flag gives.
_BY_FLAG = {flag: name for name, each in SETTINGS.items() for flag in each.metadata.get("flags", ())}
# Flags that are no settings, since they choose where settings come from.
_ONLY_FLAGS = ("--preset", "--config", "--resume")


def setting_of(name: str) -> Field[Any]:
    """A setting of training. Raises ValueError for an unknown name, with the one of that flag or the most similar."""
    if name in SETTINGS:
        return SETTINGS[name]
    flag = f"--{short(name).lstrip('-').replace('_', '-')}"
    if flag in _ONLY_FLAGS:
        hint = f"; give it as a flag, {flag}"
    else:
        hint = f"; did you mean {_BY_FLAG[flag]}?" if flag in _BY_FLAG else did_you_mean(short(name), SETTINGS)
    raise ValueError(f"there is no setting {short(name)}{hint}")
