"""The log of a training run: console lines, JSON rows in stats.jsonl, charts of them, and TensorBoard events.

log = RunLog("checkpoints", total=1000, start=0)
log.row(100, loss=0.25)
log.video("preview", clip_u8, step=100)
log.close()
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from vidm.curves import write_curves
from vidm.files import LARGEST, append, atomic_write, read_json, regular_file
from vidm.video_io import write_video

LONGEST_ROW = 1 << 20  # bytes
# The weight of the newest steps in the time that is left.
SMOOTHING = 0.3
SCRIPT = "diffusion_ddp_accum_constant_cu.py"


def _is_row(line: bytes, step: int) -> bool:
    """Whether a line is the complete JSON row of a step up to `step`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and type(row.get("step")) is int and row["step"] <= step


def rows_up_to(path: Path, step: int) -> Iterator[bytes]:
    """Yield the complete lines of a file of JSON rows up to `step`; none if there is no such file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        while line := file.readline(LONGEST_ROW):
            if _is_row(line, step):
                yield line.strip() + b"\n"


def _changes(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings that differ from those in a run's config.json: "lr 0.1 -> 0.2", ...; none without such a file."""
    now = {name: value for section in json.loads(json.dumps(sections)).values() for name, value in section.items()}
    try:
        before = {name: value for section in read_json(path).values() for name, value in section.items()}
    except (OSError, ValueError, AttributeError):
        return []
    return [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]


def _comments_in(path: Path) -> list[str]:
    lines = path.read_text("utf-8", "surrogateescape").splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.startswith("#")]


def _record(event: Event) -> bytes:
    """An event as a record of TensorBoard's file format."""
    buffer = BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def _image_value(tag: str, encoded: bytes, height: int, width: int) -> Summary.Value:
    return Summary.Value(
        tag=tag, image=Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    )


class RunLog:
    """A progress bar (on a terminal only), and `stats.jsonl`, `curves.html` and TensorBoard events in the folder `out`.

    `total` and `start` are steps; rows of an earlier run after `start`, whose steps were lost, are removed, and
    TensorBoard does not show them. What cannot be written (the disk is full, for example) is dropped with a warning.
    Only the main process has a log.
    """

    def __init__(self, out: str | Path, total: int, start: int) -> None:
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.bar = tqdm(total=total, initial=start, desc="train", unit="step", dynamic_ncols=True, disable=None)
        self._total, self._start = total, start
        self._step_s = 0.0  # seconds of a step, smoothed; 0 before the first ones
        self.stats = self.out / "stats.jsonl"
        self.events = self.out / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        with self._written_if_possible():
            with atomic_write(self.stats) as temporary, temporary.open("wb") as file:
                file.writelines(rows_up_to(self.stats, start))
            # TensorBoard's writer works in a thread, which prints a traceback and leaves half a record on a full disk.
            begin = Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START))
            append(self.events, _record(Event(wall_time=time.time(), file_version="brain.Event:2")) + _record(begin))

    def step(self) -> None:
        """Count one step."""
        self.bar.update()

    def pace(self, seconds: float, steps: int) -> None:
        """Take note of how long the last steps took, for the time that is left."""
        recent = seconds / steps
        self._step_s = (1 - SMOOTHING) * self._step_s + SMOOTHING * recent if self._step_s else recent

    def skip_time(self) -> None:
        """Do not count the time since the last step as training, for the time that is left."""
        self.bar.unpause()

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        self.bar.write(line)
        sys.stdout.flush()

    def warn(self, line: str) -> None:
        """Print a warning on stderr, above the progress bar."""
        self.bar.write(f"warning: {line}", file=sys.stderr)

    @contextmanager
    def _written_if_possible(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.warn(f"{error}; the run continues")

    def _show(self, step: int, values: list[Summary.Value]) -> None:
        """Write values of a step to TensorBoard's file."""
        append(self.events, _record(Event(wall_time=time.time(), step=step, summary=Summary(value=values))))

    def row(self, step: int, **values: float) -> None:
        """Write the named numbers of a step to the console, stats.jsonl and TensorBoard."""
        left = ""
        if self.bar.disable and self._step_s and step < self._total:
            left = f"; {timedelta(seconds=round((self._total - step) * self._step_s))} left"
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()) + left)
        self.bar.set_postfix({name: f"{values[name]:.4g}" for name in ("loss", "images_per_s") if name in values})
        with self._written_if_possible():
            append(self.stats, (json.dumps({"step": step, **values}) + "\n").encode())
            self._show(step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def video(self, tag: str, frames: np.ndarray, step: int) -> Path:
        """Write frames (T, H, W, 3) uint8 as a looping out/<tag>/%08d.gif, and to TensorBoard; return the path.

        TensorBoard's add_video needs a library that no longer works, so the GIF's bytes are stored as an image.
        """
        path = self.out / tag / f"{step:08d}.gif"
        with self._written_if_possible():
            write_video(path, frames, fps=8)
            self._show(step, [_image_value(tag, regular_file(path).read_bytes(), *frames.shape[1:3])])
        return path

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Show an image (H, W, 3) uint8 in TensorBoard."""
        png = BytesIO()
        Image.fromarray(image).save(png, "png")
        with self._written_if_possible():
            self._show(step, [_image_value(tag, png.getvalue(), *image.shape[:2])])

    def curves(self) -> None:
        """Write charts of the numbers so far to out/curves.html."""
        with self._written_if_possible():
            write_curves(self.out / "curves.html", str(self.out), rows_up_to(self.stats, LARGEST))

    def settings(self, sections: Mapping[str, Mapping[str, Any]], num_processes: int = 1) -> None:
        """Write the run's configuration to out/config.json, and a command that repeats the run to out/command.txt.

        Of a run that was resumed with other settings, the command has the last ones from the start: comments above it
        name the changes.
        """
        config, command_file = self.out / "config.json", self.out / "command.txt"
        program = "python" if num_processes == 1 else f"torchrun --nproc-per-node {num_processes}"
        with self._written_if_possible():
            comments = _comments_in(command_file) if self._start else []
            if self._start and (changes := _changes(config, sections)):
                comments.append(f"# resumed after step {self._start} with {', '.join(changes)}\n")
            with atomic_write(config) as temporary:
                temporary.write_text(json.dumps(sections, indent=2) + "\n")
            with atomic_write(command_file) as temporary:
                command = f"{program} {SCRIPT} --config {quote(str(config))} --out NEW_FOLDER\n"
                temporary.write_text("".join([*comments, command]), "utf-8", "surrogateescape")

    def close(self) -> None:
        """Finish the bar."""
        self.bar.close()
