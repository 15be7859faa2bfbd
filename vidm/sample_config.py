"""The settings of sampling: how videos are made from a checkpoint.

settings = SampleConfig(content="frames", out="results/samples", sampler="ddim", steps="50")
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vidm.config import AUTO_PRECISION, LARGEST_SEED, LAYOUTS, PRECISIONS, Config
from vidm.console import did_you_mean
from vidm.samplers import SAMPLERS
from vidm.schedules import space_timesteps, step_counts
from vidm.settings import arguments_named, check_values, setting

SAMPLING_PRECISIONS = (*PRECISIONS, "bf16-weights")
# The file suffix of a video by format; "frames" is a folder of images.
SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "frames": "", "npy": ".npy"}
# What sample_folder reads and writes: videos in memory have none of these settings.
OF_FILES = "content layout split content_resume out num_samples batch_size fps format grid report".split()


@dataclass(frozen=True)
class SampleConfig:
    """How videos are sampled from a checkpoint. Raises ValueError, naming the setting, for invalid ones."""

    content: str = setting("", "first frames: an image, a video, a folder of them, a pack or a csv list", "--content")
    layout: str = setting("auto", "layout of --content, as in training", "--layout", LAYOUTS)
    split: str = setting("", "part of --content whose first frames to use, as in training (default: all)", "--split")
    content_resume: str = setting("", "content generator's checkpoint, for generated first frames", "--content-resume")
    out: str = setting("results/samples", "folder of videos; finished ones with the same settings are kept", "--out")
    num_samples: int | None = setting(
        None,
        "number of videos (default: one per first frame; 16 if they are generated)",
        "--num-samples -ns",
        least=1,
        most=10**6,
    )
    num_frames: int | None = setting(None, "frames per video (default: as trained)", "--num-frames", least=1)
    batch_size: int = setting(16, "videos per batch of a process", "--batch-size -b", least=1, most=10**6)
    sampler: str = setting("dpm-solver++", "sampler", "--sampler", tuple(SAMPLERS))
    steps: str = setting("20", "denoising steps per frame: N, ddimN, or a,b,c per section of the schedule", "--steps")
    content_steps: str = setting("", "denoising steps of a generated first frame (default: --steps)", "--content-steps")
    eta: float = setting(0.0, "noise of ddim, from 0 (none) to 1 (as much as ddpm)", "--eta", least=0, most=1)
    precision: str = setting("auto", AUTO_PRECISION, "--precision", SAMPLING_PRECISIONS)
    compile: bool = setting(False, "compile the networks for GPUs, which takes minutes", "--compile")
    fps: float = setting(25.0, "frame rate of the written files", "--fps", least=0.1, most=1000)
    psi: float = setting(1.0, "truncation, from 1 (none) to 0 (one constant start)", "--psi", least=0, most=1)
    class_name: str = setting(
        "",
        "class of the videos (default: that of the first frame, by its folder or csv list; all in turn if generated)",
        "--class",
    )
    guidance: float = setting(
        1.0, "classifier-free guidance: strength of the class, 1 for none", "--guidance", least=0, most=100
    )
    start_noise: str = setting(
        "video", "draw the noise that denoising starts from per video or per frame", "--start-noise", ("frame", "video")
    )
    anchor_every: int = setting(
        0, "condition on the last frame as first frame every K frames, for longer videos", "--anchor-every", least=0
    )
    condition_noise: float | None = setting(
        None,
        "level of noise on the previous frame that SPyNet sees (default: the largest one of the training)",
        "--condition-noise",
        least=0,
    )
    format: str = setting("mp4", "file format of the videos", "--format", tuple(SUFFIXES))
    grid: str = setting("", "RxC: also write the first R x C videos as one, OUT_grid.mp4", "--grid")
    report: bool = setting(False, "also write OUT/report.html: videos side by side, distances, drift", "--report")
    seed: int = setting(0, "seed; with the same seed, video i is always the same", "--seed", least=0, most=LARGEST_SEED)

    @classmethod
    def in_memory(cls, values: Mapping[str, Any]) -> "SampleConfig":
        """The settings, with these values, of videos that are not written.

        Raises TypeError for an unknown name, with the most similar one, and for a setting of files.
        """
        names = [each.name for each in fields(cls) if each.name not in OF_FILES]
        for name in values:
            if name in OF_FILES:
                raise TypeError(f"{name} is a setting of sample_folder and has no effect on a video in memory")
            if name not in names:
                raise TypeError(f"there is no setting {name} of sampling{did_you_mean(name, names)}")
        return cls(**values)

    def __post_init__(self) -> None:
        with arguments_named(SampleConfig):
            self._check()

    def _check(self) -> None:
        for name in ("steps", "content_steps"):  # numbers are accepted from Python
            object.__setattr__(self, name, str(getattr(self, name)))
        check_values(self)
        if not self.out or not self.steps:
            raise ValueError("--out and --steps must not be empty")
        for flag, steps in (("--steps", self.steps), ("--content-steps", self.content_steps)):
            if steps:
                step_counts(steps, flag)
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"--eta {self.eta}: only --sampler ddim uses it, and the sampler is {self.sampler}")
        self.grid_shape()

    def check_for(self, motion: Config, content: Config | None = None) -> None:
        """Raise ValueError, naming the flag, for settings that do not fit generators of these configurations."""
        trained = motion.model.video_timesteps
        if self.anchor_every >= trained:
            raise ValueError(
                f"--anchor-every {self.anchor_every}: the model was trained on {trained} frames, give 1 to "
                f"{trained - 1}"
            )
        if (self.num_frames or 1) > trained and not self.anchor_every:
            raise ValueError(
                f"--num-frames {self.num_frames}: the model was trained on {trained} frames, give at most that many or "
                "add --anchor-every K"
            )
        space_timesteps(motion.model.diffusion_timesteps, self.steps, "--steps")
        if content:
            space_timesteps(content.model.diffusion_timesteps, self.content_steps or self.steps, "--content-steps")

    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid; (0, 0) for none. Raises ValueError for text that is not of the form RxC."""
        found = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", self.grid or "1x1")
        if not found:
            raise ValueError(f"--grid {self.grid}: give rows and columns as 4x8")
        return (int(found[1]), int(found[2])) if self.grid else (0, 0)
