"""A configuration -> trained weights, resumably, on one process or many.

    Trainer(Config.from_preset("tiny"), torch.device("cpu")).fit()

Which data, diffusion steps and noise a sample has depends on (seed, step, its place in the global batch) alone; each
process and each micro-batch takes its slice. One process with a batch of 8, two with 4 each and four micro-batches of 2
are therefore the same step.
"""

import math
import os
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vidm.checkpoint import (
    Checkpoint,
    build_diffusion,
    build_model,
    check_weights,
    checkpoint_path,
    list_checkpoints,
    load_spynet,
    load_weights,
    save_checkpoint,
)
from vidm.config import Config, TrainConfig
from vidm.datasets import (
    Clips,
    FrameTriplets,
    ResumableSampler,
    SingleFrames,
    to_float,
    to_uint8,
    window_length,
)
from vidm.distributed import data_parallel, gather_rows, gradients_kept_local, is_main, print0, rank, world_size
from vidm.ema import EMA
from vidm.layouts import index_clips
from vidm.model import ContentGenerator, MotionGenerator
from vidm.precision import autocast
from vidm.randomness import keyed_generator
from vidm.rollout import animate, generate_first_frames, video_noise
from vidm.runlog import RunLog
from vidm.samplers import sample_ddim

Batch = dict[str, Tensor]

PREVIEW_VIDEOS = 4
PREVIEW_FRAMES = 16
PREVIEW_STEPS = "10"


def draw_noise(seed: int, step: int, places: Sequence[int], frame: Tensor, num_timesteps: int) -> tuple[Tensor, Tensor]:
    """Diffusion steps t (B,) and noise like `frame` (B, 3, H, W) for the given places of a step's global batch."""
    t, noise = [], []
    for place in places:
        generator = keyed_generator((seed, step, place))
        t.append(torch.randint(num_timesteps, (), generator=generator))
        noise.append(torch.randn(frame.shape[1:], generator=generator))
    return torch.stack(t).to(frame.device), torch.stack(noise).to(frame.device)


def learning_rate(train: TrainConfig, step: int) -> float:
    """The learning rate of a step: a linear rise over `warmup_iters`, then constant or half a cosine down to 0."""
    if step < train.warmup_iters:
        return train.lr * (step + 1) / train.warmup_iters
    if train.lr_schedule == "constant":
        return train.lr
    progress = (step - train.warmup_iters) / max(train.total_iters - train.warmup_iters, 1)
    return train.lr * (1 + math.cos(math.pi * progress)) / 2


def learns_flow(config: Config) -> bool:
    """Whether SPyNet is trained: when asked for, or when no weights, in a file or a checkpoint, were given for it."""
    given = config.train.spynet or config.train.init
    return config.model.flow_range != "none" and (config.train.train_flow or not given)


class Trainer:
    """Trains a motion or a content generator on one device, as one of world_size() processes.

    With `resume`, the run goes on from that checkpoint, whose network and process must be those of `config`; one that
    carries no optimizer starts its moments anew. With `init`, a new run begins with that checkpoint's averaged weights.
    `start_step` counts steps from there instead of the checkpoint's own (or 0). Raises ValueError or FileNotFoundError
    for values, data or files that cannot work, before anything but the list of bad videos is written.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        resume: Checkpoint | None = None,
        init: Checkpoint | None = None,
        start_step: int | None = None,
    ) -> None:
        config.check(world_size())
        self.config = config
        self.device = device
        self.step = start_step if start_step is not None else resume.step if resume else 0
        train = config.train
        if not resume and list_checkpoints(train.out):
            raise ValueError(
                f"{train.out} holds checkpoints of another run: --resume auto goes on, or give another --out"
            )
        if resume and resume.optimizer and learns_flow(config) != learns_flow(resume.config):
            kept = "trained" if learns_flow(resume.config) else "frozen"
            raise ValueError(f"SPyNet was {kept} in {resume.source}, which a run keeps: begin a new one with --init")
        self.micro_batch = train.batch_size // (world_size() * train.accum_steps)
        self.moves = config.model.generator == "motion"
        data = config.data
        self.index = index_clips(
            data.data,
            min_frames=window_length(config.model.video_timesteps, data.frame_stride) if self.moves else 1,
            layout=data.layout,
            split=data.split,
            max_bad_fraction=data.max_bad_fraction,
            bad_list=Path(train.out) / "bad_videos.txt",
            progress=is_main(),
        )
        torch.manual_seed(train.seed)
        self.diffusion = build_diffusion(config)
        self.model = self._build_model(resume, init)
        self.ema = EMA(self.model, train.ema_decay, num_updates=self.step)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=train.lr, weight_decay=train.weight_decay, fused=True)
        if resume:
            check_weights(self.ema.state_dict(), resume.ema_state_dict, resume.source)
            self.ema.load_state_dict(resume.ema_state_dict)
        if resume and resume.optimizer:
            self.optimizer.load_state_dict(dict(resume.optimizer))
        self.parallel = data_parallel(self.model)

    def _build_model(self, resume: Checkpoint | None, init: Checkpoint | None) -> MotionGenerator | ContentGenerator:
        config = self.config
        model = build_model(config)
        if resume:
            load_weights(model, resume.state_dict, resume.source)
        elif init:
            load_weights(model, init.ema_state_dict, init.source)
        if isinstance(model, MotionGenerator):
            if config.train.spynet and not resume:
                load_spynet(model.spynet, config.train.spynet)
            model.spynet.requires_grad_(learns_flow(config))
        return model.to(self.device)

    def _describe(self) -> None:
        """Say what is about to happen."""
        config, train = self.config, self.config.train
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        size = config.model.image_size
        print0(f"{config.data.data}: {self.index.found}")
        stride = f", every {config.data.frame_stride} frames" if self.moves and config.data.frame_stride > 1 else ""
        print0(f"a {config.model.generator} generator: {len(self.index.paths)} videos{stride}, frames of {size}x{size}")
        if self.index.skipped:
            print0(self.index.skipped_message())
        print0(
            f"{millions:.1f} M parameters on {self.device}; a step is {world_size()} x {train.accum_steps} x "
            f"{self.micro_batch} samples (processes x micro-batches x samples)"
        )
        if self.moves and learns_flow(config) and not train.train_flow:
            print0("no SPyNet weights given (--spynet): flow starts at zero and is learned with the rest")
        if self.step and not self.optimizer.state:
            print0("no optimizer's state to go on from: its moments start at zero")
        print0(f"steps {self.step} to {train.total_iters}; checkpoints and logs go to {train.out}")

    def _samples(self) -> FrameTriplets | SingleFrames:
        """What the generator learns from, keyed by (epoch, index)."""
        model, data, seed = self.config.model, self.config.data, self.config.train.seed
        if self.moves:
            return FrameTriplets(
                self.index, model.image_size, model.video_timesteps, seed, flip=data.flip, stride=data.frame_stride
            )
        return SingleFrames(self.index, model.image_size, seed, anywhere=data.content_frames == "all", flip=data.flip)

    def loader(self) -> DataLoader:
        """This process's micro-batches, from the present step to the last, in order."""
        train = self.config.train
        sampler = ResumableSampler(
            num_samples=len(self.index.paths),
            batch_size=train.batch_size,
            rank=rank(),
            world_size=world_size(),
            accum_steps=train.accum_steps,
            seed=train.seed,
            start_step=self.step,
            num_steps=train.total_iters - self.step,
        )
        workers = min(train.workers // world_size(), (os.cpu_count() or 1))
        return DataLoader(
            self._samples(), batch_sampler=sampler, num_workers=workers, pin_memory=self.device.type == "cuda"
        )

    def losses(self, batch: Batch, step: int, micro: int) -> dict[str, Tensor]:
        """Losses (micro_batch,) of this process's micro-batch number `micro` of a step."""
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        start = (micro * world_size() + rank()) * self.micro_batch
        places = range(start, start + self.micro_batch)
        x_start = batch.pop("frame")
        t, noise = draw_noise(self.config.train.seed, step, places, x_start, self.diffusion.num_timesteps)
        with autocast(self.device, self.config.train.precision):
            return self.diffusion.training_losses(self.parallel, x_start, t, noise, batch)

    def accumulate(self, batches: Iterator[Batch], step: int) -> dict[str, Tensor]:
        """Leave the gradient of the mean loss over a step's global batch in the parameters; return its losses.

        Gradients are averaged over micro-batches and, once, over processes. The losses are (accum_steps,) means.
        """
        accum_steps = self.config.train.accum_steps
        means: list[dict[str, Tensor]] = []
        for micro in range(accum_steps):
            with gradients_kept_local(self.parallel, local=micro < accum_steps - 1):
                losses = self.losses(next(batches), step, micro)
                (losses["loss"].mean() / accum_steps).backward()
            means.append({name: value.detach().mean() for name, value in losses.items()})
        return {name: torch.stack([m[name] for m in means]) for name in means[0]}

    def train_step(self, batches: Iterator[Batch], step: int) -> dict[str, Tensor]:
        """One optimizer step; return the losses as `accumulate` does, and the gradient's norm (1,) before clipping."""
        losses = self.accumulate(batches, step)
        (group,) = self.optimizer.param_groups
        group["lr"] = learning_rate(self.config.train, step)
        grad_norm = torch.nn.utils.clip_grad_norm_(group["params"], self.config.train.clip_norm)
        if not math.isfinite(grad_norm):
            raise ValueError(
                f"step {step}: the loss or its gradient is not finite, and was not applied; lower --lr, or go on from "
                "an earlier checkpoint"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model)
        return {**losses, "grad_norm": grad_norm.detach().reshape(1)}

    def save(self) -> None:
        """Write the checkpoint of the present step; of it and those before it, the newest `keep` stay."""
        if not is_main():
            return
        train = self.config.train
        save_checkpoint(
            checkpoint_path(train.out, self.step),
            Checkpoint(
                self.step, self.config, self.model.state_dict(), self.ema.state_dict(), self.optimizer.state_dict()
            ),
        )
        if train.keep:
            newest = checkpoint_path(train.out, self.step)
            for old in [path for path in list_checkpoints(train.out) if path <= newest][: -train.keep]:
                old.unlink()

    def preview(self) -> np.ndarray:
        """Frames made with the averaged weights: uint8 (T, H', W', 3).

        A motion generator continues some of the data's first frames, above what really happened; a content generator
        draws some (T = 1). Touches neither the weights nor the training data's order.
        """
        with self.ema.swapped_into(self.model), autocast(self.device, self.config.train.precision):
            rows = self._preview_motion() if isinstance(self.model, MotionGenerator) else self._preview_content()
        return np.concatenate([np.concatenate(list(row), axis=2) for row in rows], axis=1)

    def _preview_motion(self) -> list[np.ndarray]:
        """Two rows of clips (N, T, H, W, 3): made and real."""
        assert isinstance(self.model, MotionGenerator)
        model = self.config.model
        num_frames = min(model.video_timesteps, PREVIEW_FRAMES)
        clips = Clips(self.index, num_frames, model.image_size, stride=self.config.data.frame_stride)
        real = np.stack(list(islice(clips.readable(), PREVIEW_VIDEOS)))
        first = to_float(real[:, 0]).to(self.device)
        noise = video_noise(self.config.train.seed, range(len(real)), self.device)
        diffusion = build_diffusion(self.config, respacing=PREVIEW_STEPS)
        return [to_uint8(animate(self.model, diffusion, first, num_frames, noise, sampler=sample_ddim)), real]

    def _preview_content(self) -> list[np.ndarray]:
        """A row of clips of one frame (N, 1, H, W, 3)."""
        model = self.config.model
        shape = (model.in_channels, model.image_size, model.image_size)
        noise = video_noise(self.config.train.seed, range(PREVIEW_VIDEOS), self.device)
        diffusion = build_diffusion(self.config, respacing=PREVIEW_STEPS)
        return [to_uint8(generate_first_frames(self.model, diffusion, shape, noise, sampler=sample_ddim))[:, None]]

    def fit(self) -> None:
        """Train to the last step, logging, previewing and saving on the way and at the end."""
        train = self.config.train
        self._describe()
        if self.step >= train.total_iters:
            print0(f"nothing left to do: step {self.step} of {train.total_iters}")
            return
        batches: Iterator[Batch] = iter(self.loader())
        # Whatever is wrong with the data shows before anything is written.
        batches = chain([next(batches)], batches)
        log = RunLog(train.out, train.total_iters, self.step) if is_main() else None
        try:
            if log:
                log.settings(self.config.to_dict())
            self._loop(batches, log)
        finally:
            if log:
                log.close()

    def _loop(self, batches: Iterator[Batch], log: RunLog | None) -> None:
        train = self.config.train
        window: list[dict[str, Tensor]] = []
        while self.step < train.total_iters:
            window.append(self.train_step(batches, self.step))
            self.step += 1
            last = self.step == train.total_iters
            if self.step % train.print_freq == 0 or last:
                rows = {name: torch.cat([row[name] for row in window]) for name in window[0]}
                means = {name: gather_rows(row).mean().item() for name, row in rows.items()}
                window.clear()
                if log:
                    log.row(self.step, **means)
            if self.step % train.save_freq == 0 or last:
                self.save()
            if log:
                log.step()
                if train.test_freq and self.step % train.test_freq == 0:
                    log.video("preview", self.preview(), self.step)
