"""One console line, one JSON row, TensorBoard.

log = RunLog("checkpoints", total=1000, start=0)
log.row(100, loss=0.25)
log.video("preview", clip_u8, step=100)
log.close()
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vidm.video_io import write_video


class RunLog:
    """What a training run tells: a progress bar, `stats.jsonl` and TensorBoard events in the folder `out`.

    `total` and `start` are steps. Only the main process has one.
    """

    def __init__(self, out: str | Path, total: int, start: int) -> None:
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.writer = SummaryWriter(str(self.out))
        self.stats = (self.out / "stats.jsonl").open("a")
        self.bar = tqdm(total=total, initial=start, desc="train", unit="step", dynamic_ncols=True)

    def step(self) -> None:
        """Count one step."""
        self.bar.update()

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        self.bar.write(line)

    def row(self, step: int, **values: float) -> None:
        """Record named numbers at a step, everywhere."""
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self.stats.write(json.dumps({"step": step, **values}) + "\n")
        self.stats.flush()
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def video(self, tag: str, frames: np.ndarray, step: int) -> Path:
        """Write frames (T, H, W, 3) uint8 as out/<tag>/%08d.gif, shown by TensorBoard too; return the file.

        TensorBoard's own add_video needs a library that no longer works and logs nothing without it, so the GIF's
        bytes go into an image summary.
        """
        path = self.out / tag / f"{step:08d}.gif"
        write_video(path, frames, fps=8)
        _, height, width, _ = frames.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self.writer._get_file_writer().add_summary(summary, step)
        return path

    def settings(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the run's configuration to out/config.json."""
        (self.out / "config.json").write_text(json.dumps(sections, indent=2) + "\n")

    def close(self) -> None:
        """Finish the bar and flush the files."""
        self.bar.close()
        self.stats.close()
        self.writer.close()
