"""The training loop: logs, previews, checkpoints, and how a run ends.

    fit(Trainer(config, device))

A run ends after its last step; after the current step on SIGTERM or SIGINT; after too many consecutive steps whose loss
or gradient was not finite; or if data loading processes die repeatedly. It saves a checkpoint in each case.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from torch import Tensor

from vidm.checkpoint import remove_unfinished
from vidm.config import Config
from vidm.distributed import gather_rows, is_main, on_main, print0, world_size
from vidm.files import locked
from vidm.frame_size import size_text
from vidm.loading import Batch, LoadingError
from vidm.model import MotionGenerator
from vidm.runlog import RunLog
from vidm.runtime import GIB, num_bytes, peak_bytes
from vidm.settings import arguments_named
from vidm.stop_signals import StopSignals
from vidm.trainer import Trainer
from vidm.validation import Validator, film_strip

_NAMED_VIDEOS = 4


def describe(trainer: Trainer) -> None:
    """Print the network, the data and the starting point of a run."""
    config, train, data = trainer.config, trainer.config.train, trainer.data
    size, num_videos = config.model.image_size, len(data.index.paths)
    stride = f", frame stride {config.data.frame_stride}" if data.is_motion and config.data.frame_stride > 1 else ""
    bars = " with black bars where they have another shape (--fit pad)" if config.data.fit == "pad" else ""
    held_out = set(data.held_out.paths) - set(data.index.paths)
    print0(f"{config.data.data}: {data.index.found}")
    print0(
        f"a {config.model.generator} generator: {num_videos} videos{stride}, frames of {size_text(size)}{bars}; "
        f"held out: {len(held_out) or 'none'}"
    )
    if data.index.skipped:
        print0(*data.index.skipped_message().splitlines())
    if trainer.resumed and trainer.resumed.num_videos != num_videos:
        print0(f"the checkpoint was trained on {trainer.resumed.num_videos} videos: the order of samples changes now")
    millions = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    print0(
        f"{millions:.1f} M parameters on {trainer.device} in {train.precision}; a step is {world_size()} x "
        f"{train.accum_steps} x {trainer.micro_batch} samples (processes x micro-batches x samples)"
    )
    if data.is_motion and config.model.flow_range != "none":
        start = "" if trainer.begins_from or train.spynet else ", starting from zero flow (no --spynet given)"
        print0(f"SPyNet is {'trained' if train.train_flow else 'frozen'}{start}")
    if train.eval_freq:
        print0(
            f"--eval-freq: the distance is that of {len(data.held_out.paths)} held-out videos, not the one of "
            "evaluate_FVD.py; it compares steps of this run"
        )
    if trainer.begins_from and trainer.step and not trainer.optimizer.state:
        print0("the checkpoint has no optimizer state: the moments start at zero")


def _is_finished(trainer: Trainer) -> bool:
    last = trainer.config.train.total_iters
    if trainer.step >= last:
        print0(f"nothing left to do: the run is at step {trainer.step}, and --total-iters is {last}")
    return trainer.step >= last


@arguments_named(*Config().sections())
def dry_run(trainer: Trainer) -> None:
    """Take one step and print the memory it needs; nothing is written."""
    describe(trainer)
    if _is_finished(trainer):
        return
    for name, part in trainer.model.named_children():
        print0(f"  {name}: {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M parameters")
    losses = trainer.train_step(trainer.batches())
    parameters = list(trainer.model.parameters())
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    sizes = {
        "weights": num_bytes(parameters),
        "gradients": num_bytes(p for p in parameters if p.requires_grad),
        "optimizer": num_bytes(moments),
        "averaged weights": num_bytes(trainer.ema.state_dict().values()),
    }
    print0("memory: " + ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in sizes.items()))
    kind = "GPU memory" if trainer.device.type == "cuda" else "resident memory, including Python and libraries"
    peak = peak_bytes(trainer.device) / GIB
    print0(f"peak of a step with micro-batches of {trainer.micro_batch}: {peak:.2f} GiB of {kind}")
    print0(f"loss {losses['loss'].mean().item():.4g}" if losses else "the loss or its gradient is not finite")


@arguments_named(*Config().sections())
def fit(trainer: Trainer) -> None:
    """Train to the last step, or until asked to stop, with logs, previews and checkpoints.

    Raises ValueError when memory runs out, naming settings to change, after `max_bad_steps` consecutive steps that were
    not finite, and if another run uses the same folder; OSError when the last checkpoint cannot be written.
    """
    train = trainer.config.train
    describe(trainer)
    if _is_finished(trainer):
        return
    batches = trainer.batches()
    # The first batch is read before anything is written, so that data errors and Ctrl-C leave no files behind.
    batches = chain([next(batches)], batches)
    with ExitStack() as open_until_the_end:
        on_main(lambda: open_until_the_end.enter_context(locked(train.out)))
        log = RunLog(train.out, train.total_iters, trainer.step) if is_main() else None
        if log:
            open_until_the_end.callback(log.close)
            remove_unfinished(train.out)
            log.settings(trainer.config.to_dict(), world_size())
            log.say(
                f"steps {trainer.step} to {train.total_iters}; checkpoints and logs go to {train.out}; to repeat this "
                f"run, see {train.out}/command.txt"
            )
        with StopSignals() as stop, ThreadPoolExecutor(1) as thread:
            run = _Run(trainer, log, stop, thread)
            try:
                run.steps(batches)
            finally:
                run.finish_saving()


class _Run:
    """The loop over steps, with logs, checkpoints and validation. `log` is None except in the main process.

    Checkpoints are written by `thread`, one at a time. On a GPU, training goes on meanwhile, since they are copies.
    """

    def __init__(self, trainer: Trainer, log: RunLog | None, stop: StopSignals, thread: ThreadPoolExecutor) -> None:
        self.trainer, self.log, self.stop, self.thread = trainer, log, stop, thread
        self.saving: Future[None] | None = None
        self.saves_in_background = trainer.device.type == "cuda"
        data, seed = trainer.data, trainer.config.train.seed
        samples = data.samples(data.held_out, seed, flip=False)
        self.validator = Validator(trainer.config, data.held_out, samples, trainer.device)
        self.window: list[dict[str, Tensor]] = []
        self.window_steps, self.window_began = 0, time.perf_counter()

    def steps(self, batches: Iterator[Batch]) -> None:
        """Take steps until the run ends."""
        trainer, train = self.trainer, self.trainer.config.train
        while trainer.step < train.total_iters:
            try:
                losses = trainer.train_step(batches, lambda: bool(self.stop.received))
            except LoadingError:
                self._save(last=True)
                raise
            self.window_steps += 1
            if losses:
                self.window.append(losses)
            elif trainer.progress.bad_in_a_row:
                self._warn_of_bad_step()
            if self.log:
                self.log.step()
            given_up = trainer.progress.bad_in_a_row >= train.max_bad_steps
            last = trainer.step == train.total_iters or trainer.stopping or given_up
            if trainer.step % train.print_freq == 0 or last:
                self._log_window()
            if trainer.step % train.save_freq == 0 or last:
                self._save(last)
            if given_up:
                raise ValueError(self._bad_steps_message())
            if trainer.stopping:
                print0(f"stopped and saved after step {trainer.step}: repeat the command with --resume auto")
                return
            self._validate()

    def _log_window(self) -> None:
        """Log the means over steps, micro-batches and processes since the last line."""
        trainer = self.trainer
        seconds = time.perf_counter() - self.window_began
        values: dict[str, float] = {}
        if self.window:
            rows = {name: torch.cat([row[name] for row in self.window]) for name in self.window[0]}
            values = {name: gather_rows(row).mean().item() for name, row in rows.items()}
        if self.log:
            self.log.pace(seconds, self.window_steps)
            (group,) = trainer.optimizer.param_groups
            speed = self.window_steps * trainer.config.train.batch_size / seconds
            values |= {"lr": group["lr"], "images_per_s": speed}
            if trainer.scaler.is_enabled():
                values["loss_scale"] = trainer.scaler.get_scale()
            if trainer.progress.bad_steps:
                values["bad_steps"] = trainer.progress.bad_steps
            self.log.row(trainer.step, **values)
        self.window.clear()
        self.window_steps, self.window_began = 0, time.perf_counter()

    @contextmanager
    def _besides_training(self) -> Iterator[None]:
        """The time of what happens here is not counted: speed and time left are those of the training."""
        began = time.perf_counter()
        yield
        if self.log:
            self.log.curves()
            self.log.skip_time()
        self.window_began += time.perf_counter() - began

    def _save(self, last: bool) -> None:
        """Save a checkpoint; if it cannot be written and more steps follow, warn and continue."""
        with self._besides_training():
            self.finish_saving()
            if self.log:
                self.saving = self.thread.submit(self.trainer.write, self.trainer.snapshot())
            if last or not self.saves_in_background:
                self.finish_saving(last)

    def finish_saving(self, last: bool = False) -> None:
        """Wait until the checkpoint is written; if it cannot be, warn, or raise OSError if it is the last one."""
        saving, self.saving = self.saving, None
        try:
            if saving:
                saving.result()
        except OSError as error:
            if last:
                raise
            assert self.log, "only the main process saves"
            self.log.warn(f"{error}; the run continues")

    def _validate(self) -> None:
        """Evaluate the averaged weights on held-out videos, if this is due at this step."""
        trainer, train = self.trainer, self.trainer.config.train
        if train.test_freq and trainer.step % train.test_freq == 0 and self.log:
            self._with_averaged_weights(self._preview)
        if train.eval_freq and trainer.step % train.eval_freq == 0:
            self._with_averaged_weights(self._distance)

    def _with_averaged_weights(self, act: Callable[[], None]) -> None:
        # Sampling has other shapes than training: with --compile, they would take minutes of compilation.
        with (
            self._besides_training(),
            self.trainer.ema.swapped_into(self.trainer.model),
            torch.compiler.set_stance("force_eager"),
        ):
            act()

    def _preview(self) -> None:
        assert self.log
        step, model = self.trainer.step, self.trainer.model
        self.log.row(step, **self.validator.loss(model, self.trainer.micro_batch))
        frames = self.validator.video(model)
        self.log.video("preview", frames, step)
        self.log.image("samples", film_strip(frames), step)

    def _distance(self) -> None:
        assert isinstance(self.trainer.model, MotionGenerator)
        distance = self.validator.distance(self.trainer.model)
        if self.log:
            self.log.row(self.trainer.step, distance=distance)

    def _videos(self) -> str:
        """The videos of the last step, for messages."""
        paths = self.trainer.data.videos_of_step(self.trainer.step - 1)
        more = f" and {len(paths) - _NAMED_VIDEOS} more" if len(paths) > _NAMED_VIDEOS else ""
        return ", ".join(map(str, paths[:_NAMED_VIDEOS])) + more

    def _warn_of_bad_step(self) -> None:
        if not self.log:
            return
        row, total = self.trainer.progress.bad_in_a_row, self.trainer.progress.bad_steps
        self.log.warn(
            f"step {self.trainer.step} skipped, its loss or gradient is not finite ({row} in a row, {total} in total); "
            f"its videos: {self._videos()}"
        )

    def _bad_steps_message(self) -> str:
        return (
            f"{self.trainer.progress.bad_in_a_row} steps in a row were not finite (--max-bad-steps); the videos of the "
            f"last one, step {self.trainer.step}: {self._videos()}; lower --lr, or resume from an earlier checkpoint"
        )
