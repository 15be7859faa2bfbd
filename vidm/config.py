"""Every knob once: typed frozen dataclasses, whose fields carry the flag's name and help text, and named presets.

A field without a flag is set by presets alone. A training run is described by a `Config`, which travels inside its
checkpoints; sampling has its own knobs (vidm.sample_config).

    config = Config.from_preset("tiny")
    config = config.replaced({"batch_size": 4})

Every knob of sampling once, as in vidm.config.

settings = SampleConfig(content="frames", out="results/samples", sampler="ddim", steps="50")
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from vidm.presets import PRESETS
from vidm.unet import UNetShape

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
# Settings in the files of earlier versions that are constants now.
FIXED = {"in_channels": 3, "out_channels": 6}
SAMPLING_PRECISIONS = (*PRECISIONS, "bf16-weights")


def knob(default: Any, help: str, flag: str = "", choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with what its flag needs; names of flags are separated by spaces."""
    return field(default=default, metadata={"help": help, "flags": flag.split(), "choices": choices})


def at_least(wanted: str, least: float, section: Any, names: str) -> None:
    """Raise ValueError, naming the flag, unless the named knobs of a section are finite and not below `least`."""
    for knob in fields(section):
        value = getattr(section, knob.name)
        if knob.name in names.split() and not least <= value < float("inf"):
            at_or_above = f"give {wanted} or more" if wanted.isdigit() else f"give {wanted}"
            raise ValueError(f"{knob.metadata['flags'][0]} {value}: {at_or_above}")


@dataclass(frozen=True)
class ModelConfig(UNetShape):
    """The networks: arguments of the generators, those of UNetShape included."""

    generator: str = knob(
        "motion", "what is trained: motion, or content, which draws first frames", "--generator", ("motion", "content")
    )
    image_size: int = knob(128, "side of the square frames, pixels", "--resolution")
    video_timesteps: int = knob(128, "frames per video; frames 1 to N - 1 are learned", "--num-frames")
    flow_range: str = knob(
        "unit",
        "what SPyNet sees: frames in [0, 1] as it expects, in [-1, 1] as published, or nothing (zero flow)",
        "--flow-range",
        choices=("unit", "published", "none"),
    )
    norm: str = knob(
        "posgn",
        "modulation of the group norms: the method's, or a plain embedding of step and frame index",
        "--norm",
        choices=("posgn", "timestep"),
    )
    use_encoder: bool = knob(
        True, "without the motion encoder: the first frame enters beside the noisy one", "--no-encoder"
    )


@dataclass(frozen=True)
class DiffusionConfig:
    """The process and its loss. Arguments of GaussianDiffusion."""

    schedule: str = knob("linear", "noise schedule")
    prediction: str = knob(
        "eps", "what the network predicts: the noise (published) or v, for small budgets", "--prediction", ("eps", "v")
    )
    p2_gamma: float = knob(1.0, "P2 weighting's exponent (0: none); belongs to eps", "--p2-gamma")
    p2_k: float = knob(1.0, "P2 weighting's offset")
    loss: str = knob(
        "charbonnier",
        "penalty: the paper's robust one, or the released code's squared error",
        "--loss",
        choices=("charbonnier", "mse"),
    )
    penalty_eps: float = knob(1e-8, "where the robust penalty turns from square to absolute", "--penalty-eps")


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    data: str = knob("data/CLEVRER", "folder of videos or of frame folders, at any depth", "--data")
    content_frames: str = knob(
        "first",
        "what --generator content learns: the first frame of each video, or all",
        "--content-frames",
        ("first", "all"),
    )
    layout: str = knob(
        "auto",
        "what counts as a clip: videos, frame folders, what UCF-101's official lists name, or tell from what is there",
        "--layout",
        ("auto", "videos", "frames", "ucf101"),
    )
    split: str = knob("", "part of the data: a subfolder such as train, or UCF-101's train1 .. test3", "--split")
    test_split: str = knob(
        "", "part of the data that is held out (default: some videos of --data, kept from training)", "--test-split"
    )
    held_out: int = knob(
        16, "videos held out for previews, the held-out loss and --eval-freq, at most a tenth of --data", "--held-out"
    )
    frame_stride: int = knob(1, "a window takes every K-th frame of a video", "--frame-stride")
    max_bad_fraction: float = knob(
        0.05, "more unreadable clips than this stop a run before it starts, with a list in --out", "--max-bad-fraction"
    )
    flip: bool = knob(True, "mirror half of the samples")


@dataclass(frozen=True)
class TrainConfig:
    """How it is trained."""

    batch_size: int = knob(256, "samples per optimizer step over all GPUs", "--batch-size -b")
    accum_steps: int = knob(1, "micro-batches a step is split into; their gradients are averaged", "--accum-steps")
    workers: int = knob(32, "data loading processes over all GPUs, at most one a core", "--workers -j")
    total_iters: int = knob(800_000, "optimizer steps in all", "--total-iters")
    lr: float = knob(2e-5, "learning rate of AdamW", "--lr")
    lr_schedule: str = knob(
        "constant",
        "learning rate over the run: constant, or a cosine down to 0",
        "--lr-schedule",
        ("constant", "cosine"),
    )
    warmup_iters: int = knob(0, "steps over which the learning rate rises to --lr", "--warmup-iters")
    weight_decay: float = knob(0.0, "weight decay of AdamW")
    clip_norm: float = knob(1.0, "gradients are scaled down to this norm")
    ema_decay: float = knob(0.999, "decay of the averaged weights one samples from", "--ema-decay")
    precision: str = knob(
        "fp32", "arithmetic of the networks; weights stay fp32, tf32 is for GPUs alone", "--precision", PRECISIONS
    )
    compile: bool = knob(False, "compile the networks: slow first steps, faster ones after", "--compile")
    checkpoint_activations: str = knob(
        "none",
        "computed again in the backward pass instead of kept: nothing, the modulated norms, all residual blocks",
        "--checkpoint-activations",
        ("none", "posgn", "full"),
    )
    seed: int = knob(0, "everything random follows from it", "--seed")
    spynet: str = knob("", "file of SPyNet weights; without one SPyNet is trained from zero flow", "--spynet")
    init: str = knob("", "start from this checkpoint's weights alone, with a fresh optimizer", "--init")
    train_flow: bool = knob(False, "go on training a given SPyNet too", "--train-flow")
    condition_noise: float = knob(
        0.0,
        "noise of a level drawn in [0, S] on the previous frame that SPyNet sees (0: none, as released)",
        "--condition-noise",
    )
    max_bad_steps: int = knob(
        10, "a step whose loss or gradient is not finite is skipped; this many in a row end the run", "--max-bad-steps"
    )
    start_seed: int = knob(0, "seed of the fixed latent that truncated sampling starts near (--psi)")
    print_freq: int = knob(100, "steps between log lines", "--print-freq -p")
    test_freq: int = knob(1000, "steps between previews and held-out losses (0: none)", "--test-freq")
    eval_freq: int = knob(
        0, "steps between distances of 16 generated frames to the held-out videos (0: none)", "--eval-freq"
    )
    save_freq: int = knob(1000, "steps between checkpoints", "--save-freq")
    keep: int = knob(3, "newest checkpoints kept (0: all)", "--keep")
    out: str = knob("checkpoints", "folder of checkpoints and logs", "--out")


@dataclass(frozen=True)
class Config:
    """Everything a training run is; the part of a checkpoint that is not tensors."""

    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @staticmethod
    def from_preset(name: str) -> "Config":
        """The configuration that a preset names."""
        return Config().replaced(PRESETS[name])

    @staticmethod
    def from_dict(sections: Mapping[str, Mapping[str, Any]]) -> "Config":
        """The inverse of to_dict, after JSON too. Raises ValueError for a knob not known, or of another type."""
        if not isinstance(sections, Mapping) or not all(isinstance(part, Mapping) for part in sections.values()):
            raise ValueError("its settings are not sections of named values")
        values = {name: value for section in sections.values() for name, value in section.items()}
        for name, value in FIXED.items():
            if values.pop(name, value) != value:
                raise ValueError(f"setting {name} is not {value}, which every network has")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        for knob in (f for section in Config().sections() for f in fields(section)):
            value = values.get(knob.name, knob.default)
            if not isinstance(value, (type(knob.default), int) if knob.type is float else type(knob.default)):
                raise ValueError(f"setting {knob.name} is {value!r}, not of type {type(knob.default).__name__}")
            if isinstance(value, tuple) and not all(isinstance(number, int) for number in value):
                raise ValueError(f"setting {knob.name} is {value!r}, not whole numbers")
        return Config().replaced(values)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dictionaries: section -> name -> value."""
        return asdict(self)

    def replaced(self, values: Mapping[str, Any]) -> "Config":
        """A copy in which knobs take the given values. Raises ValueError for a name that no section has."""
        unknown = set(values) - {f.name for section in self.sections() for f in fields(section)}
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
        parts: dict[str, Any] = {}
        for part, section in zip(fields(self), self.sections(), strict=True):
            own = {f.name: values[f.name] for f in fields(section) if f.name in values}
            parts[part.name] = replace(section, **own)
        return Config(**parts)

    def sections(self) -> tuple[Any, ...]:
        """The four parts, in order: model, diffusion, data, train."""
        return self.model, self.diffusion, self.data, self.train

    def check(self, num_processes: int = 1) -> None:
        """Raise ValueError, naming the flag, for values that no run can have."""
        train = self.train
        at_least("1", 1, train, "batch_size accum_steps total_iters print_freq save_freq max_bad_steps")
        at_least("0", 0, train, "workers test_freq eval_freq keep seed warmup_iters condition_noise")
        at_least("0", 0, self.data, "held_out")
        at_least("1", 1, self.model, "image_size")
        at_least("0", 0, self.diffusion, "p2_gamma")
        for section, name in ((train, "lr"), (self.diffusion, "penalty_eps")):
            at_least("a number above 0", 1e-30, section, name)
        if train.precision not in PRECISIONS:
            raise ValueError(
                f"--precision {train.precision}: training has {', '.join(PRECISIONS)}; the rest is --test's"
            )
        if self.model.video_timesteps < 2:
            raise ValueError(f"--num-frames {self.model.video_timesteps}: a video to learn from has 2 or more")
        if self.data.test_split and not self.data.held_out:
            raise ValueError("--held-out 0: --test-split needs 1 or more")
        if train.eval_freq and self.model.generator == "content":
            raise ValueError("--eval-freq measures videos: it needs --generator motion")
        if self.data.frame_stride < 1:
            raise ValueError(f"--frame-stride {self.data.frame_stride}: give 1 or more")
        if not 0 <= self.data.max_bad_fraction <= 1:
            raise ValueError(f"--max-bad-fraction {self.data.max_bad_fraction}: give a number from 0 to 1")
        if train.batch_size % (num_processes * train.accum_steps):
            raise ValueError(
                f"--batch-size {train.batch_size} does not divide into {num_processes} processes x "
                f"{train.accum_steps} micro-batches (--accum-steps)"
            )


def knobs(section: Any) -> Iterator[Field[Any]]:
    """The fields of a configuration dataclass that have a flag."""
    return (f for f in fields(section) if f.metadata.get("flags"))


# What a video's name ends in; frames are images in a folder.
SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "frames": "", "npy": ".npy"}


@dataclass(frozen=True)
class SampleConfig:
    """How videos are sampled from a checkpoint (--test)."""

    content: str = knob("", "first frames: an image, a video, or a folder of them", "--content")
    content_resume: str = knob("", "checkpoint of a content generator that draws the first frames", "--content-resume")
    out: str = knob("results/samples", "folder of videos; finished ones of the same settings are kept", "--out")
    num_samples: int | None = knob(
        None,
        "how many videos (default: one per first frame; drawn ones: 16); first frames are used again if they are fewer",
        "--num-samples -ns",
    )
    num_frames: int | None = knob(
        None, "frames per video, the given one included (default: as trained)", "--num-frames"
    )
    batch_size: int = knob(16, "videos that a process makes side by side", "--batch-size -b")
    sampler: str = knob("dpm-solver++", "reverse chain", "--sampler", ("ddpm", "ddim", "dpm-solver++"))
    steps: str = knob("20", "steps per frame: N, ddimN, or a,b,c per section of the schedule", "--steps")
    content_steps: str = knob("", "steps of a drawn first frame (default: as --steps)", "--content-steps")
    eta: float = knob(0.0, "noise of ddim: 0 none, 1 that of ddpm", "--eta")
    precision: str = knob(
        "fp32",
        "arithmetic of the networks; bf16-weights: rounds the weights, too",
        "--precision",
        SAMPLING_PRECISIONS,
    )
    compile: bool = knob(False, "compile the networks, which takes minutes: for GPUs", "--compile")
    fps: float = knob(25.0, "frame rate of the written files", "--fps")
    psi: float = knob(1.0, "sampling space: 1 all of it, 0 one constant start, in between truncated", "--psi")
    start_noise: str = knob(
        "video",
        "what a frame's chain starts from is drawn once per video, or anew per frame, which lets the hue flicker",
        "--start-noise",
        ("frame", "video"),
    )
    anchor_every: int = knob(
        0, "every K frames the last one takes the first one's place, for any length (0: never)", "--anchor-every"
    )
    condition_noise: float = knob(
        0.0, "noise of this level on the previous frame that SPyNet sees, for a model trained so", "--condition-noise"
    )
    format: str = knob("mp4", "what videos are written as", "--format", ("mp4", "gif", "frames", "npy"))
    grid: str = knob("", "RxC: the first R x C videos also as one, OUT_grid.mp4", "--grid")
    report: bool = knob(False, "also write OUT/report.html: videos side by side, distances, drift", "--report")
    seed: int = knob(0, "video i of a seed is always the same", "--seed")

    def check(self) -> None:
        """Raise ValueError, naming the flag, for values that no sampling can have."""
        at_least("1", 1, self, "batch_size num_frames" if self.num_frames is not None else "batch_size")
        at_least("0", 0, self, "seed anchor_every condition_noise")
        if self.num_samples is not None:
            at_least("1", 1, self, "num_samples")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"--eta {self.eta}: give a number from 0 to 1")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"--eta {self.eta}: it is ddim's, and the sampler is {self.sampler}")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"--fps {self.fps}: give a number above 0, at most 1000")
        if self.start_noise not in ("frame", "video"):
            raise ValueError(f"start_noise {self.start_noise!r} is unknown: choose frame or video")
        if self.format not in SUFFIXES:
            raise ValueError(f"format {self.format!r} is unknown: choose from {', '.join(SUFFIXES)}")
        self.grid_shape()

    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the mosaic; (0, 0) for none. Raises ValueError for what is no RxC."""
        found = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", self.grid or "1x1")
        if not found:
            raise ValueError(f"--grid {self.grid}: give rows and columns as 4x8")
        return (int(found[1]), int(found[2])) if self.grid else (0, 0)
