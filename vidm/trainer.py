"""The state of a training run and its step, on one process or many.

    trainer = Trainer(Config.from_preset("tiny"), torch.device("cpu"))
    trainer.train_step(trainer.batches())
    trainer.save()

The data, diffusion steps and noise of a sample depend only on (seed, step, its place in the global batch); each
process and each micro-batch takes its slice. One process with a batch of 8, two with 4 each and four micro-batches of 2
therefore take the same step, and a run that was stopped and resumed gives the same result as one that never stopped:
bit for bit on a CPU and, with --deterministic, on GPUs; otherwise up to rounding, which some of a GPU's sums do in an
order that changes.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vidm.checkpoint import (
    Checkpoint,
    Progress,
    build_diffusion,
    build_model,
    check_weights,
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    load_model,
    load_spynet,
    present_versions,
    save_checkpoint,
)
from vidm.config import Config, TrainConfig
from vidm.distributed import any_process, data_parallel, gather_rows, gradients_kept_local, is_main, rank, world_size
from vidm.ema import EMA
from vidm.loading import Batch, on_device
from vidm.model import ContentGenerator, MotionGenerator, relabelled, resized_constant
from vidm.randomness import draw_condition_noise, draw_noise, drop_classes
from vidm.resume import in_own_folder, trains_flow
from vidm.runtime import (
    autocast,
    check_bfloat16,
    check_compiler,
    chosen_precision,
    explain_no_deterministic_algorithm,
    explain_out_of_memory,
    loss_scaler,
    more_micro_batches,
    use_deterministic_algorithms,
)
from vidm.settings import arguments_named
from vidm.tf32 import tf32_products
from vidm.training_data import TrainingData
from vidm.unet import set_activation_checkpointing


def learning_rate(train: TrainConfig, step: int) -> float:
    """The learning rate of a step: a linear rise over `warmup_iters`, then constant or half a cosine down to 0."""
    if step < train.warmup_iters:
        return train.lr * (step + 1) / train.warmup_iters
    if train.lr_schedule == "constant":
        return train.lr
    progress = (step - train.warmup_iters) / max(train.total_iters - train.warmup_iters, 1)
    return train.lr * (1 + math.cos(math.pi * progress)) / 2


def _match_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give the moments the strides of their weights: fused AdamW assumes equal strides, and a file may have others."""
    for weight, state in optimizer.state.items():
        for name, moment in state.items():
            if moment.shape == weight.shape:
                state[name] = torch.empty_like(weight, requires_grad=False).copy_(moment)


def _check_moments(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Raise ValueError unless `stored` has AdamW's moments of some of the optimizer's weights."""
    (group,) = optimizer.state_dict()["param_groups"]
    (stored_group,) = stored["param_groups"]
    if list(stored_group["params"]) != group["params"] or not set(stored["state"]) <= set(group["params"]):
        raise ValueError("another number of weights")
    weights = optimizer.param_groups[0]["params"]
    for number, moments in stored["state"].items():
        shapes = {"step": (), "exp_avg": weights[number].shape, "exp_avg_sq": weights[number].shape}
        if {name: tensor.shape for name, tensor in moments.items()} != shapes:
            raise ValueError(f"moments of weight {number} of another shape")


def _on_host(content: Any) -> Any:
    """Nested dictionaries and lists of tensors, on the CPU."""
    if isinstance(content, Tensor):
        return content.detach().cpu()
    if isinstance(content, Mapping):
        return {name: _on_host(value) for name, value in content.items()}
    return [_on_host(value) for value in content] if isinstance(content, list) else content


def _check_same_step(step: int) -> None:
    """Raise ValueError unless all processes start from the same step."""
    steps = gather_rows(torch.tensor([step])).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"processes start from different steps, {steps}: --out must be on a disk that all of them share"
        )


def _check_deterministic(config: Config) -> None:
    """Raise ValueError if a network that is trained has a gradient without a deterministic algorithm on a GPU."""
    if config.model.generator == "motion" and config.model.flow_range != "none" and config.train.train_flow:
        raise ValueError(
            "--deterministic: SPyNet is trained, and on a GPU the gradient of its warping is different in every run; "
            "freeze SPyNet with --spynet FILE and without --train-flow, or give --flow-range none"
        )


def compile_network(model: nn.Module, **options: Any) -> None:
    """Compile a generator in place for training; `options` are those of torch.compile."""
    if isinstance(model, MotionGenerator):
        # The compiler cannot trace the switch of TF32 in SPyNet's forward, so only what that calls is compiled.
        spynet: Any = model.spynet
        spynet.pyramid_flows = torch.compile(spynet.pyramid_flows, **options)
        spynet.forward = torch.compiler.disable(spynet.forward)
    model.compile(**options)


class Trainer:
    """Trains a motion or a content generator on one device, as one of world_size() processes.

    With `resume`, the run continues from that checkpoint, whose network and diffusion process must be those of
    `config`; if it has no optimizer state, the moments start at zero. With `init`, a new run begins with that
    checkpoint's averaged weights. `start_step` replaces the checkpoint's step (or 0). `self.config` is `config` with
    the decision of vidm.resume.trains_flow and the precision that "auto" is on this device. Raises ValueError or
    FileNotFoundError for invalid settings, data or files; then only the list of bad videos may have been written.
    """

    @arguments_named(*Config().sections())
    def __init__(
        self,
        config: Config,
        device: torch.device | str,
        resume: Checkpoint | None = None,
        init: Checkpoint | None = None,
        start_step: int | None = None,
    ) -> None:
        device = torch.device(device)
        config.check(world_size())
        check_bfloat16(device, config.train.precision)
        if config.train.compile:
            check_compiler(device)
        precision = chosen_precision(config.train.precision, device)
        config = config.replaced({"train_flow": trains_flow(config, resume, init), "precision": precision})
        if config.train.deterministic and device.type == "cuda":
            _check_deterministic(config)
            use_deterministic_algorithms()
        self.config, self.device = config, device
        self.step = start_step if start_step is not None else resume.step if resume else 0
        train = config.train
        found = latest_checkpoint(train.out)
        if found and not (resume and in_own_folder(resume.source, config)):
            raise ValueError(
                f"folder {train.out} already has checkpoints, the newest {found.name}: continue that run "
                "(--resume auto), or give another --out to begin a new one"
            )
        _check_same_step(self.step)
        self.micro_batch = train.batch_size // (world_size() * train.accum_steps)
        self.data = TrainingData(config)
        self.config = config = self.data.config
        begins_from = resume or init
        self.begins_from = begins_from.source if begins_from else ""
        self.resumed = resume.progress if resume else None
        self.progress = self.resumed or Progress(self.step * train.batch_size, self.step)
        self.stopping = False
        torch.manual_seed(train.seed)
        self.diffusion = build_diffusion(config)
        self.model = self._build_model(resume, init)
        self.ema = EMA(self.model, train.ema_decay, num_updates=self.progress.ema_updates)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=train.lr, weight_decay=train.weight_decay, fused=True)
        self.scaler = loss_scaler(device, train.precision)
        if resume:
            self._load_state(resume)
        if train.compile:
            compile_network(self.model)
        self.parallel = data_parallel(self.model)

    def _build_model(self, resume: Checkpoint | None, init: Checkpoint | None) -> MotionGenerator | ContentGenerator:
        config = self.config
        if resume:
            model = load_model(config, resume.state_dict, resume.source)
        elif init:
            averaged = resized_constant(init.ema_state_dict, config.model.image_size)
            with torch.device("meta"):
                own = build_model(config).state_dict()
            known, wanted = init.config.model.class_names, config.model.class_names
            model = load_model(config, relabelled(averaged, known, wanted, own), init.source)
        else:
            model = build_model(config)
        if isinstance(model, MotionGenerator):
            if config.train.spynet and not resume:
                load_spynet(model.spynet, config.train.spynet)
            model.spynet.requires_grad_(config.train.train_flow and config.model.flow_range != "none")
        set_activation_checkpointing(model, config.train.checkpoint_activations)
        return model.to(self.device)

    def _load_state(self, resume: Checkpoint) -> None:
        """Load the averaged weights and, if the checkpoint has them, the optimizer's moments and the loss scale."""
        check_weights(self.ema.state_dict(), resume.ema_state_dict, resume.source)
        self.ema.load_state_dict(resume.ema_state_dict)
        try:
            if resume.optimizer:
                _check_moments(self.optimizer, resume.optimizer)
                own = self.optimizer.state_dict()["param_groups"]  # settings come from the configuration
                self.optimizer.load_state_dict({"state": resume.optimizer["state"], "param_groups": own})
                _match_strides(self.optimizer)
            if resume.scaler and self.scaler.is_enabled():
                self.scaler.load_state_dict(dict(resume.scaler))
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{resume.source} has an optimizer's state of another network ({error})") from error

    def batches(self) -> Iterator[Batch]:
        """This process's micro-batches, from the current step to the last."""
        return self.data.batches(self.step, pin_memory=self.device.type == "cuda")

    def losses(self, batch: Batch, step: int, micro: int) -> dict[str, Tensor]:
        """Losses (micro_batch,) of this process's micro-batch number `micro` of a step."""
        train = self.config.train
        batch = on_device(batch, self.device)
        start = (micro * world_size() + rank()) * self.micro_batch
        places = range(start, start + self.micro_batch)
        x_start = batch.pop("frame")
        t, noise = draw_noise(train.seed, step, places, x_start, self.diffusion.num_timesteps, train.offset_noise)
        if "class_index" in batch:
            batch["class_index"] = drop_classes(train.seed, step, places, batch["class_index"], train.class_dropout)
        if self.data.is_motion and train.condition_noise:
            batch["previous"] += draw_condition_noise(train.seed, step, places, x_start, train.condition_noise)
        with autocast(self.device, train.precision):
            return self.diffusion.training_losses(self.parallel, x_start, t, noise, batch)

    def accumulate(self, batches: Iterator[Batch], step: int) -> dict[str, Tensor]:
        """Compute the gradient of the mean loss over a step's global batch, in `.grad`, and return the losses.

        Gradients are averaged over micro-batches and, once per step, over processes; in fp16 they are scaled. Each
        loss is a tensor (accum_steps,) of the means of the micro-batches.
        """
        accum_steps = self.config.train.accum_steps
        means: list[dict[str, Tensor]] = []
        for micro in range(accum_steps):
            last = micro == accum_steps - 1
            with gradients_kept_local(self.parallel, not last), tf32_products(self.config.train.precision == "tf32"):
                losses = self.losses(next(batches), step, micro)
                loss = self.scaler.scale(losses["loss"].mean() / accum_steps)
                # The gradient of a loss that is not finite may be finite: here it becomes NaN, in every process.
                loss.backward(1 + 0 * loss.detach())
            means.append({name: value.detach().mean() for name, value in losses.items()})
        return {name: torch.stack([m[name] for m in means]) for name in means[0]}

    def train_step(
        self, batches: Iterator[Batch], asked_to_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, Tensor] | None:
        """Take one optimizer step; return the losses of `accumulate` and the gradient's norm (1,) before clipping.

        If the loss or the gradient of any process is not finite, the weights do not change, the step counts as bad,
        and None is returned. In fp16, this may be an overflow: the loss scale is then halved, and the step counts as
        bad only at a scale of 1. `self.stopping` becomes whether any process was asked to stop.
        """
        train = self.config.train
        fits = explain_out_of_memory(f"micro-batches of {self.micro_batch}", self._memory_advice())
        with fits, explain_no_deterministic_algorithm():
            losses = self.accumulate(batches, self.step)
        # Before the first wait for the GPU, which would never end if another process died before it sent its gradient.
        self.stopping = any_process(asked_to_stop())
        (group,) = self.optimizer.param_groups
        group["lr"] = learning_rate(train, self.step)
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(group["params"], train.clip_norm).detach().reshape(1)
        updated = math.isfinite(grad_norm.item())
        bad = not (updated or self.scaler.get_scale() > 1)
        if updated:
            self.scaler.step(self.optimizer)
            self.ema.update(self.model)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        done = self.progress
        self.progress = Progress(
            samples_seen=done.samples_seen + train.batch_size,
            ema_updates=done.ema_updates + updated,
            bad_steps=done.bad_steps + bad,
            bad_in_a_row=done.bad_in_a_row + 1 if bad else 0,
            num_videos=len(self.data.index.paths),
        )
        return {**losses, "grad_norm": grad_norm} if updated else None

    def _memory_advice(self) -> str:
        """The settings to change when memory runs out."""
        train = self.config.train
        more = more_micro_batches(train.batch_size // world_size(), train.accum_steps)
        smaller = f"--accum-steps {more}" if more else "a smaller --resolution"
        return f"try {smaller}, --checkpoint-activations posgn (or full), or --precision bf16"

    def snapshot(self) -> Checkpoint:
        """The state of the current step. Tensors of a GPU are copied to the host, those of the CPU are not."""
        return Checkpoint(
            self.step,
            self.config,
            _on_host(self.model.state_dict()),
            _on_host(self.ema.state_dict()),
            _on_host(self.optimizer.state_dict()),
            self.scaler.state_dict(),
            progress=self.progress,
            versions=present_versions(),
        )

    def write(self, state: Checkpoint) -> None:
        """Write a checkpoint of this run, then delete all but the newest `keep` up to its step.

        Raises OSError if it cannot be written (the disk is full, for example); earlier checkpoints are then kept.
        """
        train = self.config.train
        newest = checkpoint_path(train.out, state.step)
        save_checkpoint(newest, state)
        if train.keep:
            for old in [path for path in list_checkpoints(train.out) if path <= newest][: -train.keep]:
                old.unlink()

    def save(self) -> None:
        """Write the checkpoint of the current step, in the main process; raises OSError as `write` does."""
        if is_main():
            self.write(self.snapshot())
