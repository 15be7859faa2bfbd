"""The log of a training run: console lines, JSON rows in stats.jsonl, and TensorBoard events.

log = RunLog("checkpoints", total=1000, start=0)
log.row(100, loss=0.25)
log.video("preview", clip_u8, step=100)
log.close()
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vidm.files import atomic_write
from vidm.video_io import write_video


def rows_up_to(path: Path, step: int) -> str:
    """The complete lines of a file of JSON rows up to `step`; "" if there is no such file."""
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    return "".join(kept)


class RunLog:
    """A progress bar, and `stats.jsonl` and TensorBoard events in the folder `out`.

    `total` and `start` are steps; rows of an earlier run after `start`, whose steps were lost, are removed. Rows that
    cannot be written (the disk is full, for example) are dropped with a warning. Only the main process has a log.
    """

    def __init__(self, out: str | Path, total: int, start: int) -> None:
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(str(self.out), purge_step=start + 1)
        self.stats = self.out / "stats.jsonl"
        kept = rows_up_to(self.stats, start)
        with atomic_write(self.stats) as temporary:
            temporary.write_text(kept)
        self.bar = tqdm(total=total, initial=start, desc="train", unit="step", dynamic_ncols=True)

    def step(self) -> None:
        """Count one step."""
        self.bar.update()

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        self.bar.write(line)

    def warn(self, line: str) -> None:
        """Print a warning on stderr, above the progress bar."""
        self.bar.write(f"warning: {line}", file=sys.stderr)

    @contextmanager
    def _written_if_possible(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.warn(f"a log was not written to {self.out} ({error}); the run continues")

    def row(self, step: int, **values: float) -> None:
        """Write the named numbers of a step to the console, stats.jsonl and TensorBoard."""
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self.bar.set_postfix({name: f"{values[name]:.4g}" for name in ("loss", "images_per_s") if name in values})
        with self._written_if_possible():
            with self.stats.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def video(self, tag: str, frames: np.ndarray, step: int) -> Path:
        """Write frames (T, H, W, 3) uint8 as a looping out/<tag>/%08d.gif, and to TensorBoard; return the path.

        TensorBoard's add_video needs a library that no longer works, so the GIF's bytes are stored as an image.
        """
        path = self.out / tag / f"{step:08d}.gif"
        with self._written_if_possible():
            write_video(path, frames, fps=8)
            _, height, width, _ = frames.shape
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
            summary = Summary(value=[Summary.Value(tag=tag, image=image)])
            self.writer._get_file_writer().add_summary(summary, step)
        return path

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Show an image (H, W, 3) uint8 in TensorBoard."""
        with self._written_if_possible():
            self.writer.add_image(tag, image, step, dataformats="HWC")

    def settings(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the run's configuration to out/config.json."""
        (self.out / "config.json").write_text(json.dumps(sections, indent=2) + "\n")

    def close(self) -> None:
        """Finish the bar and flush the files."""
        self.bar.close()
        with self._written_if_possible():
            self.writer.close()
