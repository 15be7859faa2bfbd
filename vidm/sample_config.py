"""Every knob of sampling once, as in vidm.config.

settings = SampleConfig(content="frames", out="results/samples", sampler="ddim", steps="50")
"""

import re
from dataclasses import dataclass

from vidm.config import SAMPLING_PRECISIONS, at_least, knob

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
