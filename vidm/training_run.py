"""The run around a trainer's steps: logs, previews, checkpoints, and how it ends.

    fit(Trainer(config, device))

A run ends with its last step; at SIGTERM or SIGINT, when the present step is done; or after too many steps in a row
that were not finite. It is saved each time.
"""

import time
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from vidm.checkpoint import remove_unfinished
from vidm.distributed import any_process, gather_rows, is_main, print0, world_size
from vidm.model import MotionGenerator
from vidm.runlog import RunLog
from vidm.runtime import GIB, num_bytes, peak_bytes
from vidm.stop_signals import StopSignals
from vidm.trainer import Batch, Trainer, learns_flow
from vidm.validation import HeldOut, film_strip

_NAMED_VIDEOS = 4


def describe(trainer: Trainer) -> None:
    """Say what is about to happen, once."""
    config, train, data = trainer.config, trainer.config.train, trainer.data
    size, learned = config.model.image_size, len(data.index.paths)
    stride = f", every {config.data.frame_stride} frames" if data.moves and config.data.frame_stride > 1 else ""
    held_out = set(data.held_out.paths) - set(data.index.paths)
    print0(f"{config.data.data}: {data.index.found}")
    print0(
        f"a {config.model.generator} generator: {learned} videos{stride}, frames of {size}x{size}; "
        f"held out: {len(held_out) or 'none'}"
    )
    if data.index.skipped:
        print0(data.index.skipped_message())
    if trainer.resumed and trainer.resumed.num_videos != learned:
        print0(f"the checkpoint knew {trainer.resumed.num_videos} videos: samples come in another order from here on")
    millions = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    print0(
        f"{millions:.1f} M parameters on {trainer.device}; a step is {world_size()} x {train.accum_steps} x "
        f"{trainer.micro_batch} samples (processes x micro-batches x samples)"
    )
    if data.moves and learns_flow(config) and not train.train_flow:
        print0("no SPyNet weights given (--spynet): flow starts at zero and is learned with the rest")
    if trainer.step and not trainer.optimizer.state:
        print0("no optimizer's state to go on from: its moments start at zero")


def dry_run(trainer: Trainer) -> None:
    """Take one step and tell what a run takes; nothing is written."""
    describe(trainer)
    for name, part in trainer.model.named_children():
        print0(f"  {name}: {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M parameters")
    losses = trainer.train_step(trainer.batches())
    parameters = list(trainer.model.parameters())
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    held = {
        "weights": num_bytes(parameters),
        "gradients": num_bytes(p for p in parameters if p.requires_grad),
        "optimizer": num_bytes(moments),
        "averaged weights": num_bytes(trainer.ema.state_dict().values()),
    }
    print0("memory: " + ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in held.items()))
    kind = "GPU memory" if trainer.device.type == "cuda" else "resident memory, Python and libraries with it"
    peak = peak_bytes(trainer.device) / GIB
    print0(f"peak of a step with micro-batches of {trainer.micro_batch}: {peak:.2f} GiB of {kind}")
    print0(f"loss {losses['loss'].mean().item():.4g}" if losses else "the loss or its gradient is not finite")


def fit(trainer: Trainer) -> None:
    """Train to the last step, or until asked to stop, with logs, previews and checkpoints on the way.

    Raises ValueError when memory runs out, with what to lower, and after `max_bad_steps` steps in a row that were not
    finite; OSError when the last checkpoint cannot be written.
    """
    train = trainer.config.train
    describe(trainer)
    if trainer.step >= train.total_iters:
        print0(f"nothing left to do: step {trainer.step} of {train.total_iters}")
        return
    print0(f"steps {trainer.step} to {train.total_iters}; checkpoints and logs go to {train.out}")
    batches = trainer.batches()
    # Whatever is wrong with the data shows before anything is written.
    batches = chain([next(batches)], batches)
    log = RunLog(train.out, train.total_iters, trainer.step) if is_main() else None
    try:
        if log:
            remove_unfinished(train.out)
            log.settings(trainer.config.to_dict())
        with StopSignals() as stop:
            _Run(trainer, log, stop).steps(batches)
    finally:
        if log:
            log.close()


class _Run:
    """The loop, and what it does every so many steps."""

    def __init__(self, trainer: Trainer, log: RunLog | None, stop: StopSignals) -> None:
        self.trainer, self.log, self.stop = trainer, log, stop
        data, seed = trainer.data, trainer.config.train.seed
        samples = data.samples(data.held_out, seed, flip=False)
        self.held_out = HeldOut(trainer.config, data.held_out, samples, trainer.device)
        self.window: list[dict[str, Tensor]] = []
        self.window_steps, self.window_began = 0, time.perf_counter()

    def steps(self, batches: Iterator[Batch]) -> None:
        """Step until the end."""
        trainer, train = self.trainer, self.trainer.config.train
        while trainer.step < train.total_iters:
            losses = trainer.train_step(batches)
            self.window_steps += 1
            if losses:
                self.window.append(losses)
            elif trainer.progress.bad_in_a_row:
                self._tell_bad_step()
            if self.log:
                self.log.step()
            (stopped,) = any_process([bool(self.stop.received)], trainer.device)
            given_up = trainer.progress.bad_in_a_row >= train.max_bad_steps
            last = trainer.step == train.total_iters or stopped or given_up
            if trainer.step % train.print_freq == 0 or last:
                self._log_window()
            if trainer.step % train.save_freq == 0 or last:
                self._save(last)
            if given_up:
                raise ValueError(self._bad_steps_message())
            if stopped:
                print0(f"stopped after step {trainer.step}, which is saved: --resume auto goes on")
                return
            self._look()

    def _log_window(self) -> None:
        """Means over the steps, micro-batches and processes since the last line."""
        trainer = self.trainer
        seconds = time.perf_counter() - self.window_began
        values: dict[str, float] = {}
        if self.window:
            rows = {name: torch.cat([row[name] for row in self.window]) for name in self.window[0]}
            values = {name: gather_rows(row).mean().item() for name, row in rows.items()}
        if self.log:
            (group,) = trainer.optimizer.param_groups
            speed = self.window_steps * trainer.config.train.batch_size / seconds
            values |= {"lr": group["lr"], "images_per_s": speed}
            if trainer.scaler.is_enabled():
                values["loss_scale"] = trainer.scaler.get_scale()
            if trainer.progress.bad_steps:
                values["bad_steps"] = trainer.progress.bad_steps
            self.log.row(trainer.step, **values)
        self._begin_window()

    def _begin_window(self) -> None:
        self.window.clear()
        self.window_steps, self.window_began = 0, time.perf_counter()

    def _save(self, last: bool) -> None:
        """Save; a full disk is told and, where more steps follow, survived."""
        try:
            self.trainer.save()
        except OSError as error:
            if last:
                raise
            assert self.log, "only the main process saves"
            self.log.warn(f"the checkpoint of step {self.trainer.step} was not written ({error}); the run goes on")

    def _look(self) -> None:
        """Judge the averaged weights on what is held out, where the step says so."""
        trainer, train = self.trainer, self.trainer.config.train
        if train.test_freq and trainer.step % train.test_freq == 0 and self.log:
            self._with_averaged_weights(self._preview)
        if train.eval_freq and trainer.step % train.eval_freq == 0:
            self._with_averaged_weights(self._distance)

    def _with_averaged_weights(self, act: Callable[[], None]) -> None:
        with self.trainer.ema.swapped_into(self.trainer.model):
            act()
        self._begin_window()

    def _preview(self) -> None:
        assert self.log
        step, model = self.trainer.step, self.trainer.model
        self.log.row(step, **self.held_out.loss(model, self.trainer.micro_batch))
        frames = self.held_out.video(model)
        self.log.video("preview", frames, step)
        self.log.image("samples", film_strip(frames), step)

    def _distance(self) -> None:
        assert isinstance(self.trainer.model, MotionGenerator)
        distance = self.held_out.distance(self.trainer.model)
        if self.log:
            self.log.row(self.trainer.step, distance=distance)

    def _videos(self) -> str:
        paths = self.trainer.data.videos_of_step(self.trainer.step - 1)
        more = f" and {len(paths) - _NAMED_VIDEOS} more" if len(paths) > _NAMED_VIDEOS else ""
        return ", ".join(map(str, paths[:_NAMED_VIDEOS])) + more

    def _tell_bad_step(self) -> None:
        if not self.log:
            return
        row, total = self.trainer.progress.bad_in_a_row, self.trainer.progress.bad_steps
        self.log.warn(
            f"step {self.trainer.step} skipped, its loss or gradient is not finite ({row} in a row, {total} in all); "
            f"its videos: {self._videos()}"
        )

    def _bad_steps_message(self) -> str:
        return (
            f"{self.trainer.progress.bad_in_a_row} steps in a row were not finite (--max-bad-steps), the last, step "
            f"{self.trainer.step}, with the videos {self._videos()}: lower --lr, or go on from an earlier checkpoint"
        )
