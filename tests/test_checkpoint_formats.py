"""Tests of the authors' format and .safetensors: loaded strictly, and without running code."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import fill_by_rule, load_npz, small_content_arguments, small_model_arguments
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

import vidm
from vidm.checkpoint import Checkpoint, build_model, load_checkpoint, load_weights, save_checkpoint
from vidm.checkpoint_formats import PUBLISHED, load_any, save_safetensors
from vidm.cli import train_main
from vidm.config import Config
from vidm.generator import load_generator
from vidm.sample_config import SampleConfig
from vidm.trainer import Trainer

ROOT = Path(__file__).parent.parent
ARGUMENTS = small_model_arguments()
SMALL = PUBLISHED.replaced(ARGUMENTS)


def in_published_format(config: Config, path: Path, cached: int | None = None) -> Path:
    """A file in the authors' format, with averaged weights filled by rule and other plain weights."""
    model = fill_by_rule(build_model(config))
    averaged = {f"module.{k}": v.contiguous() for k, v in model.state_dict().items()}
    plain = {k: v + 1 for k, v in averaged.items()}
    if cached:
        for state in (averaged, plain):
            for name in [k for k in state if k.endswith("emb_layers.linear_0.weight")]:
                block = name.removesuffix("linear_0.weight")
                state[f"{block}coords"] = torch.zeros(1, 4, 4, 2)
                state[f"{block}new_coords"] = torch.zeros(1000, cached, 1, 1, 2)
    torch.save({"iters": 400_000, "state_dict": plain, "ema_state_dict": averaged, "optimizer": {"state": {}}}, path)
    return path


def modify(path: Path, change) -> Path:
    content = torch.load(path, weights_only=True)
    change(content["ema_state_dict"])
    torch.save(content, path)
    return path


@pytest.mark.parametrize("video_timesteps", [64, 128])
@pytest.mark.parametrize("cached", [True, False])
def test_a_published_file_loads_with_its_number_of_video_timesteps(tmp_path, capsys, video_timesteps, cached):
    config = SMALL.replaced({"video_timesteps": video_timesteps})
    path = in_published_format(config, tmp_path / "published.pth.tar", video_timesteps if cached else None)
    checkpoint = load_any(path, None if cached else video_timesteps, config=SMALL)
    assert checkpoint.step == 400_000
    assert checkpoint.config.model == config.model
    assert f"{video_timesteps} video timesteps" in capsys.readouterr().out
    model = build_model(checkpoint.config)
    load_weights(model, checkpoint.ema_state_dict, path)
    direct = fill_by_rule(build_model(config))
    reference = load_npz("motion_model_small")
    inputs = {k: reference[k] for k in ("x_t", "t", "frame_index", "previous", "first")}
    with torch.no_grad():
        assert (model(**inputs) - direct(**inputs)).abs().max() == 0


def test_the_wrong_number_of_video_timesteps_would_change_the_output():
    reference = load_npz("motion_model_small")
    inputs = {k: reference[k] for k in ("x_t", "t", "frame_index", "previous", "first")}
    right, wrong = (fill_by_rule(build_model(SMALL.replaced({"video_timesteps": v}))) for v in (128, 64))
    with torch.no_grad():
        assert (right(**inputs) - wrong(**inputs)).abs().max() > 1e-3


def test_the_number_of_video_timesteps_is_required_and_never_guessed(tmp_path):
    path = in_published_format(SMALL, tmp_path / "published.pth.tar")
    with pytest.raises(ValueError, match=r"published\.pth\.tar .* give --video-timesteps N"):
        load_any(path, config=SMALL)
    cached = in_published_format(SMALL, tmp_path / "cached.pth.tar", cached=64)
    with pytest.raises(ValueError, match="trained with 64 video timesteps, not 128"):
        load_any(cached, 128, config=SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("module.unet.out.0.bias"), r"in 1 tensors: unet\.out\.0\.bias is missing"),
        (lambda state: state.update({"module.extra": torch.zeros(1)}), "in 1 tensors: extra is unexpected"),
        (
            lambda state: state.update({"module.unet.out.0.bias": torch.zeros(7)}),
            r"in 1 tensors: unet\.out\.0\.bias is \(7,\), not \(32,\)",
        ),
    ],
)
def test_one_wrong_tensor_is_named(tmp_path, change, message):
    path = modify(in_published_format(SMALL, tmp_path / "published.pth.tar", cached=16), change)
    checkpoint = load_any(path, config=SMALL)
    with pytest.raises(ValueError, match=message):
        load_weights(build_model(checkpoint.config), checkpoint.ema_state_dict, path)


def test_a_file_of_another_architecture_does_not_load_as_the_papers_network(tmp_path):
    path = in_published_format(SMALL, tmp_path / "small.pth.tar", cached=16)
    with pytest.raises(ValueError, match=r"small\.pth\.tar does not fit this network in \d+ tensors: .* more"):
        load_generator(path)


@pytest.fixture
def ours() -> Checkpoint:
    config = Config.from_preset("tiny").replaced({"image_size": 16})
    model = build_model(config)
    return Checkpoint(3, config, model.state_dict(), fill_by_rule(model).state_dict(), {})


def test_safetensors_round_trip_with_their_settings(ours, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, ours)
    loaded = load_any(path)
    assert (loaded.step, loaded.config) == (3, ours.config)
    assert all(torch.equal(loaded.ema_state_dict[k], v) for k, v in ours.ema_state_dict.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights.json", "weights.safetensors"]
    frame = np.zeros((16, 16, 3), dtype=np.uint8)
    assert vidm.load_generator(path).animate(frame, num_frames=2, sampler="ddim", steps=1).shape == (2, 16, 16, 3)


def test_settings_of_safetensors_have_no_folders_of_the_machine_that_trained(ours, tmp_path):
    places = {"data": "/home/someone/clips", "out": "/scratch/run", "spynet": "flow/spynet.pt", "init": ""}
    trained = replace(ours, config=ours.config.replaced(places))
    save_safetensors(tmp_path / "weights.safetensors", trained)
    names = {"data": "clips", "out": "run", "spynet": "flow/spynet.pt", "init": ""}
    assert load_any(tmp_path / "weights.safetensors").config == ours.config.replaced(names)


def test_half_precision_halves_the_file_and_rounds_once(ours, tmp_path):
    for name, half in (("whole", False), ("half", True)):
        save_safetensors(tmp_path / f"{name}.safetensors", ours, half)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1, "weights have the same permissions as their settings"
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert 1.8 < sizes[0] / sizes[1] <= 2
    back = load_any(tmp_path / "half.safetensors").ema_state_dict
    for name, tensor in ours.ema_state_dict.items():
        assert back[name].dtype == torch.float32
        assert torch.equal(back[name], tensor.half().float())


def test_safetensors_load_from_a_folder_whose_name_is_not_utf8(ours, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff") / "weights.safetensors"
    save_safetensors(path, ours)
    with pytest.raises(SafetensorError, match="not valid UTF-8"):  # what was reported as damage
        load_file(path)
    assert load_any(path).ema_state_dict.keys() == ours.ema_state_dict.keys()


def test_damaged_safetensors_and_settings_are_named(ours, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, ours)
    settings = path.with_suffix(".json").read_text()
    weights = path.read_bytes()
    for broken in (weights[:100], weights[: len(weights) // 2], b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"weights\.safetensors"):
            load_any(path)
    path.write_bytes(weights)
    for text in ("no json", "[1]", json.dumps({"iters": 1, "config": {"model": {"magic": 1}}})):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(ValueError, match=r"weights\."):
            load_any(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.json"):
        load_any(path)
    path.with_suffix(".json").write_text(settings)
    assert load_any(path).step == 3


def test_vidms_checkpoints_know_their_number_of_video_timesteps(ours, tmp_path):
    path = tmp_path / "ours.pt"
    save_checkpoint(path, ours)
    assert load_any(path, 16).config == ours.config
    with pytest.raises(ValueError, match="trained with 16 video timesteps, not 64"):
        load_any(path, 64)


def convert(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "convert_checkpoint.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_converting_writes_either_format_and_refuses_weights_that_do_not_fit(ours, tmp_path):
    save_checkpoint(tmp_path / "ours.pt", ours)
    done = convert(tmp_path / "ours.pt", tmp_path / "weights.safetensors")
    assert done.returncode == 0, done.stderr
    assert load_any(tmp_path / "weights.safetensors").config == ours.config
    small = in_published_format(SMALL, tmp_path / "small.pth.tar", cached=16)
    for arguments, message in (
        ((small, tmp_path / "bad.pt"), "does not fit this network"),
        ((tmp_path / "ours.pt", tmp_path / "bad.txt"), "ends in .pt or .safetensors"),
        ((tmp_path / "ours.pt", tmp_path / "half.pt", "--half"), "--half is for .safetensors"),
        ((tmp_path / "nothing.pt", tmp_path / "bad.pt"), "no such file"),
    ):
        failed = convert(*arguments)
        assert failed.returncode == 2
        (line,) = failed.stderr.splitlines()
        assert message in line
    assert not list(tmp_path.glob("bad*"))


@pytest.mark.slow
@pytest.mark.parametrize(("cached", "given"), [(128, None), (64, None), (None, 128)])
def test_a_published_file_of_paper_size_loads_converts_and_computes_the_same(tmp_path, cached, given):
    length = cached or given
    config = PUBLISHED.replaced({"video_timesteps": length})
    path = in_published_format(config, tmp_path / "published.pth.tar", cached)
    generator = load_generator(path, video_timesteps=given, device="cpu")
    assert generator.model.video_timesteps == length
    direct = fill_by_rule(build_model(config))
    own = generator.model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in direct.state_dict().items())
    frame = torch.randn(1, 3, 32, 32)
    t = torch.tensor([7])
    with torch.no_grad():
        difference = generator.model(frame, t, t, frame, frame) - direct(frame, t, t, frame, frame)
    assert difference.abs().max() == 0
    flags = ["--video-timesteps", given] if given else []
    done = convert(path, tmp_path / "checkpoint_00400000.pt", *flags)
    assert done.returncode == 0, done.stderr
    converted = load_checkpoint(tmp_path / "checkpoint_00400000.pt")
    assert converted.config.model == config.model
    assert all(torch.equal(converted.ema_state_dict[k], v) for k, v in direct.state_dict().items())


@pytest.mark.parametrize("ours", [True, False])
def test_without_averaged_weights_the_plain_ones_are_used_with_a_message(tmp_path, capsys, ours):
    path = in_published_format(SMALL, tmp_path / "small.pth.tar", cached=16)
    content = torch.load(path, weights_only=True)
    if ours:
        content = {"iters": 1, "config": SMALL.to_dict(), "optimizer": {}, **{k: content[k] for k in ("state_dict",)}}
    content.pop("ema_state_dict", None)
    torch.save(content, path)
    checkpoint = load_any(path, config=SMALL)
    assert checkpoint.ema_state_dict.keys() == checkpoint.state_dict.keys()
    assert all(
        torch.equal(checkpoint.ema_state_dict[name], checkpoint.state_dict[name]) for name in checkpoint.state_dict
    )
    assert "has no averaged weights" in capsys.readouterr().out


CONTENT = SMALL.replaced({**small_content_arguments(), "generator": "content"})


def test_a_published_content_file_is_recognized_by_its_tensors(tmp_path, capsys):
    path = in_published_format(CONTENT, tmp_path / "content.pth.tar")
    checkpoint = load_any(path, config=SMALL)
    assert (checkpoint.step, checkpoint.config) == (400_000, CONTENT)
    assert "read as a content generator of 32x32" in capsys.readouterr().out
    model = build_model(checkpoint.config)
    load_weights(model, checkpoint.ema_state_dict, path)
    reference = load_npz("content_model_small")
    with torch.no_grad():
        assert (model(reference["x_t"], reference["t"]) - reference["output"]).abs().max() <= 1e-4
    without = in_published_format(CONTENT.replaced({"constant": False}), tmp_path / "without.pth.tar")
    assert not load_any(without, config=SMALL).config.model.constant


def test_a_number_of_video_timesteps_for_a_content_file_is_refused(tmp_path):
    path = in_published_format(CONTENT, tmp_path / "content.pth.tar")
    with pytest.raises(
        ValueError, match=r"--video-timesteps has no effect: .*content\.pth\.tar is a content generator"
    ):
        load_any(path, video_timesteps=16, config=SMALL)


def test_a_published_content_file_in_the_wrong_place_is_refused_with_the_right_flag(tmp_path, monkeypatch):
    motion = in_published_format(SMALL, tmp_path / "motion.pth.tar", cached=16)
    content = in_published_format(CONTENT, tmp_path / "content.pth.tar")
    monkeypatch.setattr("vidm.generator.load_any", partial(load_any, config=SMALL))
    assert load_generator(motion, content).generate(1, num_frames=2, steps=1).shape == (1, 2, 32, 32, 3)
    with pytest.raises(ValueError, match=r"content\.pth\.tar is a content generator.* with content_path, "):
        load_generator(content)
    with pytest.raises(ValueError, match=r"motion\.pth\.tar is a motion generator.* with path, "):
        load_generator(motion, motion)


def test_a_published_content_file_starts_and_resumes_a_training(tmp_path, world, monkeypatch):
    path = in_published_format(CONTENT, tmp_path / "content.pth.tar")
    monkeypatch.setattr("vidm.cli.load_any", partial(load_any, config=SMALL))
    flags = f"--data {world} --batch-size 2 --workers 0 --test-freq 0".split()
    train_main(["--init", str(path), "--total-iters", "1", "--out", str(tmp_path / "init"), *flags])
    train_main(["--resume", str(path), "--total-iters", "400001", "--out", str(tmp_path / "resume"), *flags])
    for name, step in (("init", 1), ("resume", 400_001)):
        trained = load_checkpoint(tmp_path / name / f"checkpoint_{step:08d}.pt")
        assert trained.config.model == CONTENT.model


def test_the_constant_is_resized_for_another_resolution(world, tmp_path):
    checkpoint = load_any(in_published_format(CONTENT, tmp_path / "content.pth.tar"), config=SMALL)
    values = {"image_size": 64, "data": str(world), "out": str(tmp_path / "run"), "workers": 0, "batch_size": 2}
    trainer = Trainer(CONTENT.replaced(values), torch.device("cpu"), init=checkpoint)
    expected = F.interpolate(load_npz("content_model_small")["constant"], (64, 64), mode="bilinear")
    assert torch.equal(trainer.model.input.input.detach(), expected)


def test_a_content_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, Checkpoint(1, CONTENT, {"unet.out.2.bias": torch.zeros(6)}, {}, {}))
    with pytest.raises(ValueError, match=r"content generator of an earlier version.*train it again"):
        load_checkpoint(path)


@pytest.mark.slow
def test_a_content_file_of_the_published_size_draws_a_first_frame(tmp_path):
    path = tmp_path / "content.pth.tar"
    model = fill_by_rule(build_model(PUBLISHED.replaced({"generator": "content"})))
    state = {f"module.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    torch.save({"iters": 1, "state_dict": state, "ema_state_dict": state, "optimizer": {}}, path)
    assert path.stat().st_size > 5e8
    motion = tmp_path / "motion.pt"
    save_checkpoint(motion, Checkpoint(1, SMALL, *2 * [build_model(SMALL).state_dict()], {}))
    settings = SampleConfig(steps="2")
    frames = load_generator(motion, path, device="cpu").draw_first_frames([0], settings)
    assert (frames.shape, frames.dtype) == ((1, 128, 128, 3), np.uint8)
    assert frames.std() > 0
