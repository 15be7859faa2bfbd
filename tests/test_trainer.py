"""Tests of training: a step is the same however it is split, and runs resume exactly."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import fill_by_rule
from test_preemption import run_in_two

from vidm.checkpoint import latest_checkpoint, load_checkpoint
from vidm.config import Config, TrainConfig
from vidm.distributed import Rendezvous, is_main
from vidm.launch import launch
from vidm.randomness import draw_noise
from vidm.trainer import Trainer, learning_rate
from vidm.training_run import fit
from vidm.video_io import write_video

CPU = torch.device("cpu")


def gradients(config: Config, device: torch.device = CPU) -> dict[str, torch.Tensor]:
    """The gradients of a step of 8 samples, with weights filled by rule, since most gradients of a new model are zero.

    Norms have two channels per group: with one channel, a norm removes the bias of the layer before it.
    """
    trainer = Trainer(config.replaced({"model_channels": 64, "batch_size": 8}), device)
    fill_by_rule(trainer.model)
    trainer.accumulate(trainer.batches(), step=0)
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters()}


def save_gradients(device: torch.device, config: Config, path: Path) -> None:
    found = gradients(config, device)
    if is_main():
        torch.save(found, path)


def one_of_two_processes(node_rank: int, config: Config, path: Path, store: Path) -> None:
    torch.set_num_threads(1)
    launch(
        save_gradients,
        (config, path),
        multiprocessing=True,
        num_nodes=2,
        node_rank=node_rank,
        rendezvous=Rendezvous(f"file://{store}"),
    )


def smooth(config: Config) -> Config:
    """The robust penalty with eps 1e-2. With 1e-8, its gradient is a sign, which rounding flips at tiny errors."""
    return config.replaced({"penalty_eps": 1e-2})


def assert_same_step(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, f"{name} has no gradient"
        difference = (found[name] - gradient).norm() / gradient.norm()
        assert difference <= 1e-5, f"{name}: {difference:.1e}"


def test_four_micro_batches_are_one_big_batch(tiny):
    config = smooth(tiny)
    assert_same_step(gradients(config.replaced({"accum_steps": 4})), gradients(config))


def test_with_the_default_penalty_the_whole_gradient_of_four_micro_batches_is_that_of_one_big_batch(tiny):
    assert tiny.diffusion.penalty_eps == 1e-8
    found, expected = (
        torch.cat([g.flatten() for g in gradients(config).values()])
        for config in (tiny.replaced({"accum_steps": 4}), tiny)
    )
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_two_processes_have_the_gradients_of_one_big_batch(tiny, tmp_path):
    config = smooth(tiny)
    arguments = (config.replaced({"accum_steps": 2}), tmp_path / "gradients.pt", tmp_path / "store")
    run_in_two(one_of_two_processes, arguments)
    assert_same_step(torch.load(tmp_path / "gradients.pt", weights_only=True), gradients(config))


def test_summing_micro_batches_instead_of_averaging_would_be_detected(tiny):
    summed = {name: 4 * g for name, g in gradients(tiny.replaced({"accum_steps": 4})).items()}
    with pytest.raises(AssertionError):
        assert_same_step(summed, gradients(tiny))


def test_noise_depends_on_the_place_of_a_sample_and_not_on_its_batch():
    frame = torch.zeros(8, 3, 4, 4)
    t, noise = draw_noise(0, 5, range(8), frame, 1000)
    t_half, noise_half = draw_noise(0, 5, range(4, 8), frame[:4], 1000)
    assert torch.equal(t[4:], t_half)
    assert torch.equal(noise[4:], noise_half)
    assert not torch.equal(noise, draw_noise(0, 6, range(8), frame, 1000)[1])
    assert not torch.equal(noise, draw_noise(1, 5, range(8), frame, 1000)[1])


def test_offset_noise_adds_one_normal_number_to_every_pixel_of_a_channel():
    frame = torch.zeros(1000, 3, 4, 6)
    t, noise = draw_noise(0, 5, range(1000), frame, 1000)
    t_with, noise_with = draw_noise(0, 5, range(1000), frame, 1000, offset=0.1)
    shift = noise_with - noise
    drawn = shift.mean(dim=(2, 3))
    assert torch.equal(t_with, t)
    torch.testing.assert_close(shift, drawn[..., None, None].expand_as(shift), atol=1e-6, rtol=0)
    assert drawn.mean().abs() < 0.01  # five standard deviations of the mean
    assert drawn.std() == pytest.approx(0.1, rel=0.07)  # five of the deviation
    assert torch.corrcoef(drawn.T).triu(1).abs().max() < 0.16


def test_offset_noise_changes_the_loss_and_zero_is_the_released_training(tiny):
    def loss(**values: object) -> float:
        trainer = Trainer(tiny.replaced(values), CPU)
        fill_by_rule(trainer.model)
        return trainer.accumulate(trainer.batches(), 0)["loss"].mean().item()

    assert loss(offset_noise=0.0) == loss() != loss(offset_noise=0.1)
    assert loss(offset_noise=0.1, accum_steps=4) == pytest.approx(loss(offset_noise=0.1), rel=1e-5)


def run(config: Config, resume: Path | None = None, device: torch.device = CPU) -> dict[str, torch.Tensor]:
    """Train and return the state; a new run begins in an empty folder."""
    if not resume:
        shutil.rmtree(config.train.out, ignore_errors=True)
    trainer = Trainer(config, device, load_checkpoint(resume) if resume else None)
    fit(trainer)
    state = {f"ema.{k}": v for k, v in trainer.ema.state_dict().items()}
    for i, moments in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
    return state | trainer.model.state_dict()


def assert_resumes_bit_for_bit(config: Config, folder: Path, device: torch.device = CPU) -> None:
    whole = run(config, device=device)
    run(config.replaced({"total_iters": 2, "out": str(folder)}), device=device)
    resumed = run(config.replaced({"out": str(folder)}), folder / "checkpoint_00000002.pt", device)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny, tmp_path):
    assert_resumes_bit_for_bit(tiny, tmp_path / "half")


@pytest.mark.gpu
def test_with_deterministic_a_resumed_run_on_a_gpu_equals_an_uninterrupted_one_bit_for_bit(tiny, tmp_path):
    spynet = fill_by_rule(Trainer(tiny, CPU).model.spynet, "spynet")
    torch.save(spynet.state_dict(), tmp_path / "spynet.pt")
    config = tiny.replaced({"deterministic": True, "spynet": str(tmp_path / "spynet.pt")})
    try:
        assert_resumes_bit_for_bit(config, tmp_path / "half", torch.device("cuda", 0))
    finally:
        torch.use_deterministic_algorithms(False)


def contiguous(value):
    if isinstance(value, torch.Tensor):
        return value.contiguous(memory_format=torch.contiguous_format)
    return {k: contiguous(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_a_checkpoint_whose_tensors_have_other_strides_can_be_resumed(tiny, tmp_path):
    """Fused AdamW would mix up elements if weights and moments had different strides."""
    whole = run(tiny)
    half = tiny.replaced({"total_iters": 2, "out": str(tmp_path / "half")})
    run(half)
    path = tmp_path / "half" / "checkpoint_00000002.pt"
    stored = torch.load(path, weights_only=True)
    assert not stored["state_dict"]["unet.out.2.weight"].is_contiguous()
    torch.save(contiguous(stored), path)
    resumed = run(tiny.replaced({"out": str(tmp_path / "half")}), path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_averaged_weights_that_do_not_fit_are_named(tiny):
    run(tiny)
    checkpoint = load_checkpoint(Path(tiny.train.out) / "checkpoint_00000004.pt")
    averaged = dict(checkpoint.ema_state_dict)
    averaged.pop("unet.out.2.bias")
    with pytest.raises(ValueError, match=r"00000004\.pt does not fit .* unet\.out\.2\.bias is missing"):
        Trainer(tiny, CPU, dataclasses.replace(checkpoint, ema_state_dict=averaged))


def test_training_lowers_the_loss(tiny):
    config = tiny.replaced({"total_iters": 40})
    run(config)
    rows = [json.loads(line) for line in (Path(config.train.out) / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    first, last = (sum(row["penalty"] for row in part) / 10 for part in (rows[:10], rows[-10:]))
    assert last < 0.8 * first


def test_equal_seeds_give_equal_runs_and_other_seeds_do_not(tiny):
    name = "unet.out.2.weight"
    first, again, other = (run(tiny.replaced({"seed": seed}))[name] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_learning_rate_rises_and_then_is_constant_or_follows_half_a_cosine():
    constant = TrainConfig(lr=1.0, warmup_iters=4, total_iters=104)
    assert [learning_rate(constant, step) for step in (0, 1, 3, 4, 103)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = dataclasses.replace(constant, lr_schedule="cosine")
    found = [learning_rate(cosine, step) for step in (3, 4, 29, 54, 79, 104)]
    assert found == pytest.approx([1.0, 1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0])
    assert learning_rate(TrainConfig(), 0) == 2e-5


def test_a_run_that_diverges_stops_and_saves_finite_weights(tiny, capsys):
    trainer = Trainer(tiny.replaced({"lr": 1e9, "total_iters": 20, "max_bad_steps": 3}), CPU)
    with pytest.raises(ValueError, match=r"3 steps in a row were not finite .* the videos of .*mp4, .*; lower lr"):
        fit(trainer)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    saved = load_checkpoint(latest_checkpoint(trainer.config.train.out))
    assert (saved.step, saved.progress.bad_in_a_row) == (trainer.step, 3)
    assert saved.progress.ema_updates == trainer.step - saved.progress.bad_steps
    printed = capsys.readouterr().err
    assert printed.count("skipped, its loss or gradient is not finite") == saved.progress.bad_steps


def test_a_run_neither_starts_in_a_folder_of_another_nor_deletes_its_later_checkpoints(tiny):
    run(tiny)
    with pytest.raises(
        ValueError,
        match=r"run already has checkpoints, the newest .*4.pt: continue that run \(resume auto\), .* another out",
    ):
        Trainer(tiny, "cpu")
    first = Path(tiny.train.out) / "checkpoint_00000002.pt"
    later = Path(tiny.train.out) / "checkpoint_00000099.pt"
    later.write_bytes(b"another run's")
    run(tiny.replaced({"keep": 1}), first)
    assert sorted(p.name for p in Path(tiny.train.out).glob("*.pt")) == ["checkpoint_00000004.pt", later.name]


@pytest.mark.parametrize("workers", [0, 1])
def test_undecodable_data_stops_the_run_before_anything_is_written(tiny, tmp_path, workers):
    frames = tmp_path / "data" / "video"
    write_video(frames, np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8))
    for path in sorted(frames.iterdir())[1:]:
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"none of its 1 videos can be read"):
        fit(Trainer(tiny.replaced({"data": str(tmp_path / "data"), "workers": workers}), CPU))
    assert not Path(tiny.train.out).exists()


def test_a_run_keeps_its_spynet_trained_or_frozen(tiny, tmp_path):
    run(tiny)
    checkpoint = load_checkpoint(Path(tiny.train.out) / "checkpoint_00000004.pt")
    resumed = Trainer(tiny.replaced({"spynet": "some.pth"}), CPU, checkpoint)
    assert all(p.requires_grad for p in resumed.model.spynet.parameters())
    torch.save(resumed.model.spynet.state_dict(), tmp_path / "spynet.pt")
    run(tiny.replaced({"spynet": str(tmp_path / "spynet.pt")}))
    frozen = load_checkpoint(Path(tiny.train.out) / "checkpoint_00000004.pt")
    with pytest.raises(ValueError, match=r"^train_flow: SPyNet is frozen in .*00000004\.pt, and a resumed run"):
        Trainer(tiny.replaced({"train_flow": True}), CPU, frozen)


def test_only_the_newest_checkpoints_are_kept(tiny):
    config = tiny.replaced({"save_freq": 1, "keep": 2})
    run(config)
    names = sorted(p.name for p in Path(config.train.out).glob("*.pt"))
    assert names == ["checkpoint_00000003.pt", "checkpoint_00000004.pt"]


def test_a_preview_is_written_and_does_not_change_the_training(tiny):
    with_preview = run(tiny.replaced({"test_freq": 2}))
    assert (Path(tiny.train.out) / "preview" / "00000002.gif").stat().st_size > 0
    without = run(tiny)
    assert all(torch.equal(with_preview[name], without[name]) for name in without)


def test_spynet_is_trained_only_without_given_weights_or_when_asked(tiny, tmp_path):
    trainer = Trainer(tiny, CPU)
    torch.save(fill_by_rule(trainer.model.spynet, "spynet").state_dict(), tmp_path / "spynet.pt")
    given = tiny.replaced({"spynet": str(tmp_path / "spynet.pt")})
    name = "spynet.basic_module.0.basic_module.0.conv.weight"
    before = trainer.model.state_dict()[name].clone()
    assert torch.equal(run(given)[name], before)
    assert not torch.equal(run(given.replaced({"train_flow": True}))[name], before)
    assert trainer.config.train.train_flow
    assert all(p.requires_grad for p in trainer.model.spynet.parameters())


def test_without_flow_the_network_trains_and_spynet_does_not(tiny):
    config = tiny.replaced({"flow_range": "none", "total_iters": 1})
    assert not any(p.requires_grad for p in Trainer(config, CPU).model.spynet.parameters())
    run(config)


def test_with_bfloat16_the_weights_stay_float32(tiny):
    state = run(tiny.replaced({"precision": "bf16"}))
    assert {v.dtype for k, v in state.items() if not k.startswith("optimizer")} == {torch.float32}
    full = run(tiny)
    assert not torch.equal(state["unet.out.2.weight"], full["unet.out.2.weight"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 6, "accum_steps": 4}, "^batch_size 6 does not divide"),
        ({"total_iters": 0}, "^total_iters 0"),
        ({"image_size": 31}, "31x31"),
        ({"video_timesteps": 1}, "^video_timesteps 1"),
        ({"video_timesteps": 17}, "17 frames"),
        ({"data": "nowhere"}, "no such folder: nowhere"),
        ({"spynet": "nowhere.pth"}, "no such file: nowhere.pth"),
        ({"ema_decay": 1.5}, "^ema_decay 1.5"),
        ({"image_size": -4}, "^image_size -4"),
        ({"workers": -1}, "^workers -1"),
        ({"lr": 0.0}, "^lr 0.0: give a number above 0"),
        ({"lr": float("nan")}, "^lr nan"),
        ({"keep": -1}, "^keep -1"),
        ({"p2_gamma": -1.0}, "^p2_gamma -1"),
        ({"penalty_eps": 0.0}, "^penalty_eps 0"),
    ],
)
def test_invalid_settings_are_named_and_nothing_is_written(tiny, values, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fit(Trainer(tiny.replaced(values), CPU))
    assert not Path(tiny.train.out).exists()


@pytest.mark.parametrize("content_frames", ["first", "all"])
def test_a_content_generator_trains_resumes_and_previews(tiny, tmp_path, content_frames):
    config = tiny.replaced({"generator": "content", "content_frames": content_frames, "test_freq": 2})
    whole = run(config)
    assert not [name for name in whole if name.startswith(("encoder", "spynet"))]
    assert (Path(tiny.train.out) / "preview" / "00000002.gif").is_file()
    half = config.replaced({"out": str(tmp_path / "half")})
    run(half.replaced({"total_iters": 2}))
    resumed = run(half, tmp_path / "half" / "checkpoint_00000002.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_content_generator_trains_on_videos_of_one_frame(tiny):
    run(tiny.replaced({"generator": "content", "video_timesteps": 500, "total_iters": 1}))


@pytest.mark.parametrize(
    "values",
    [
        {"norm": "timestep"},
        {"use_encoder": False},
        {"use_previous": True},
        {"p2_gamma": 0.0, "prediction": "eps"},
        {"loss": "mse"},
    ],
)
def test_training_works_with_each_strategy_switched_off(tiny, values):
    config = tiny.replaced(values)
    run(config)
    saved = load_checkpoint(Path(tiny.train.out) / "checkpoint_00000004.pt").config
    assert saved == config.replaced({"train_flow": True})


def test_a_new_run_begins_with_the_averaged_weights_of_another_at_another_size(tiny, tmp_path):
    run(tiny)
    init = load_checkpoint(Path(tiny.train.out) / "checkpoint_00000004.pt")
    init = dataclasses.replace(init, config=init.config.replaced({"train_flow": False}))  # as with a given SPyNet
    values = {"image_size": 32, "video_timesteps": 8, "init": "yes", "out": str(tmp_path / "tuned"), "total_iters": 1}
    trainer = Trainer(tiny.replaced(values), CPU, init=init)
    state = trainer.model.state_dict()
    assert trainer.step == 0
    assert all(torch.equal(state[name], value) for name, value in init.ema_state_dict.items())
    assert not trainer.optimizer.state
    assert not any(p.requires_grad for p in trainer.model.spynet.parameters())
    fit(trainer)
    assert not torch.equal(trainer.model.state_dict()["unet.out.2.weight"], init.ema_state_dict["unet.out.2.weight"])


def test_weight_decay_is_a_setting_and_zero_by_default(tiny):
    for values, expected in (({}, 0.0), ({"weight_decay": 0.01}, 0.01)):
        trainer = Trainer(tiny.replaced(values), CPU)
        assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [expected]
    assert Config.from_preset("paper128").train.weight_decay == 0.0


def test_gradients_are_clipped_to_the_norm_before_a_step(tiny, monkeypatch):
    trainer = Trainer(tiny.replaced({"clip_norm": 1e-3}), CPU)
    fill_by_rule(trainer.model)
    norms, step = [], trainer.optimizer.step

    def recorded(*arguments, **options):
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
        return step(*arguments, **options)

    monkeypatch.setattr(trainer.optimizer, "step", recorded)
    losses = trainer.train_step(trainer.batches())
    assert losses["grad_norm"].item() > 1e-3
    assert norms == [pytest.approx(1e-3, rel=1e-2)]
