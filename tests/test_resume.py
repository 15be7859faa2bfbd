"""Tests of runs that begin or continue from a checkpoint: the settings they keep, and whether they train SPyNet."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from golden import fill_by_rule
from test_checkpoint_formats import SMALL, in_published_format

from vidm import trainer
from vidm.checkpoint import Checkpoint, build_model, list_checkpoints, load_checkpoint, save_checkpoint
from vidm.checkpoint_formats import load_any, save_safetensors
from vidm.config import Config
from vidm.resume import init_config, newest_that_verifies, resumed_config, trains_flow
from vidm.trainer import Trainer
from vidm.training_run import fit

CPU = torch.device("cpu")
WORLD = Path(__file__).parent.parent / "pretrained_models" / "world" / "motion.safetensors"
FLOW_WEIGHT = "spynet.basic_module.0.basic_module.0.conv.weight"


def newest(config: Config) -> Checkpoint:
    return load_checkpoint(list_checkpoints(config.train.out)[-1])


def checkpoint_of(config: Config, train_flow: bool, optimizer: bool = True) -> Checkpoint:
    """A checkpoint without weights, for decisions that read only its settings."""
    return Checkpoint(1, config.replaced({"train_flow": train_flow}), {}, {}, {"state": {}} if optimizer else {})


def as_format_1(path: Path, **train: object) -> Path:
    """Rewrite a checkpoint in format 1: without a format number, and with the flag as `train_flow`."""
    content = torch.load(path, weights_only=True)
    del content["format"]
    content["config"]["train"] |= {"train_flow": False, **train}
    torch.save(content, path)
    return path


# Files from elsewhere


@pytest.fixture
def foreign(tiny, tmp_path) -> Path:
    """A checkpoint that has left the folder of its run."""
    fit(Trainer(tiny, CPU))
    return Path(shutil.copy(newest(tiny).source, tmp_path / "foreign.pt"))


@pytest.mark.parametrize(("given", "missing"), [((), "--data"), (("data",), "--out"), (("out",), "--data")])
def test_a_checkpoint_from_elsewhere_decides_no_path(tiny, foreign, tmp_path, given, missing):
    values = {name: str(tmp_path / name) for name in given}
    with pytest.raises(ValueError, match=rf"foreign\.pt is not in the folder of its run, .*: give {missing}$"):
        resumed_config(load_checkpoint(foreign), values)


def test_a_checkpoint_from_elsewhere_neither_overwrites_nor_deletes_those_of_a_run(tiny, foreign):
    before = {path: path.read_bytes() for path in Path(tiny.train.out).iterdir() if path.is_file()}
    values = {"out": tiny.train.out, "data": tiny.data.data, "total_iters": 9}
    checkpoint = load_checkpoint(foreign)
    with pytest.raises(ValueError, match="already has checkpoints"):
        Trainer(resumed_config(checkpoint, values), CPU, checkpoint)
    assert {path: path.read_bytes() for path in Path(tiny.train.out).iterdir() if path.is_file()} == before


def test_a_checkpoint_from_elsewhere_continues_in_a_new_folder(tiny, foreign, tmp_path):
    values = {"out": str(tmp_path / "new"), "data": tiny.data.data, "total_iters": tiny.train.total_iters + 1}
    checkpoint = load_checkpoint(foreign)
    fit(Trainer(resumed_config(checkpoint, values), CPU, checkpoint))
    assert [path.name for path in list_checkpoints(tmp_path / "new")] == ["checkpoint_00000005.pt"]


# Settings that a run keeps


def test_changed_settings_are_printed_and_those_that_change_the_samples_are_refused(tiny, capsys):
    fit(Trainer(tiny, CPU))
    checkpoint = newest_that_verifies(tiny.train.out)
    assert checkpoint is not None
    capsys.readouterr()
    free = {
        "total_iters": 9,
        "workers": 1,
        "data": "elsewhere",
        "print_freq": 2,
        "test_freq": 3,
        "save_freq": 5,
        "lr": 0.5,
    }
    assert resumed_config(checkpoint, free) == tiny.replaced({**free, "train_flow": True})
    printed = capsys.readouterr().out
    assert printed.startswith(f"changed since {checkpoint.source}: ")
    assert "total_iters 4 -> 9" in printed
    assert "lr 0.001 -> 0.5" in printed
    resumed_config(checkpoint, {})
    assert capsys.readouterr().out == ""
    for name, value in (("seed", 1), ("batch_size", 8), ("frame_stride", 2), ("split", "train"), ("held_out", 0)):
        flag = f"--{name}".replace("_", "-")
        with pytest.raises(
            ValueError, match=f"{flag} is .* in .* and .* here, which would change the samples of the rest of the run"
        ):
            resumed_config(checkpoint, {name: value})


def test_a_checkpoint_records_the_precision_that_auto_chose_and_a_resumed_run_keeps_it(tiny, monkeypatch, capsys):
    monkeypatch.setattr(
        trainer, "chosen_precision", lambda precision, device: "bf16" if precision == "auto" else precision
    )
    fit(Trainer(tiny.replaced({"precision": "auto"}), CPU))
    monkeypatch.undo()
    checkpoint = newest_that_verifies(tiny.train.out)
    assert checkpoint is not None
    assert checkpoint.config.train.precision == "bf16"
    capsys.readouterr()
    for values in ({}, {"precision": "auto"}):
        assert resumed_config(checkpoint, values).train.precision == "bf16"
    assert "changed" not in capsys.readouterr().out
    assert resumed_config(checkpoint, {"precision": "fp32"}).train.precision == "fp32"


# Whether SPyNet is trained


@pytest.mark.parametrize(
    ("values", "init_trained", "trained"),
    [
        ({}, None, True),
        ({"spynet": "given.pth"}, None, False),
        ({"spynet": "given.pth", "train_flow": True}, None, True),
        ({"init": "a.pt"}, True, True),
        ({"init": "a.pt"}, False, False),
        ({"init": "a.pt", "train_flow": True}, False, True),
        ({"init": "a.pt", "spynet": "given.pth"}, True, False),
    ],
)
def test_a_new_run_trains_spynet_if_asked_or_without_finished_weights(values, init_trained, trained):
    config = Config.from_preset("tiny").replaced(values)
    init = None if init_trained is None else checkpoint_of(config, init_trained)
    assert trains_flow(config, init=init) is trained


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("values", [{}, {"spynet": "given.pth"}, {"init": "a.pt"}])
def test_a_resumed_run_keeps_spynet_trained_or_frozen(values, trained):
    config = Config.from_preset("tiny").replaced(values)
    assert trains_flow(config, resume=checkpoint_of(config, trained)) is trained
    assert trains_flow(config, resume=checkpoint_of(config, trained, optimizer=False)) is trained


def test_training_a_frozen_spynet_is_refused_on_resuming_and_allowed_without_an_optimizer():
    asked = Config.from_preset("tiny").replaced({"train_flow": True})
    with pytest.raises(ValueError, match=r"--train-flow: SPyNet is frozen in the checkpoint, .* with --init"):
        trains_flow(asked, resume=checkpoint_of(asked, False))
    assert trains_flow(asked, resume=checkpoint_of(asked, True))
    assert trains_flow(asked, resume=checkpoint_of(asked, False, optimizer=False))


def test_a_resumed_run_refuses_another_spynet_file(tiny):
    fit(Trainer(tiny, CPU))
    with pytest.raises(ValueError, match=r"--spynet some\.pth is read when a run begins, .*4\.pt began with none"):
        resumed_config(newest(tiny), {"spynet": "some.pth"})


def test_a_run_that_begins_from_unfinished_spynet_weights_trains_them_further(tiny, tmp_path):
    fit(Trainer(tiny, CPU))
    first = newest(tiny)
    assert first.config == tiny.replaced({"train_flow": True})
    values = {"init": first.source, "out": str(tmp_path / "second")}
    second = init_config(first, {**values, "data": tiny.data.data, "batch_size": 4, "workers": 0, "total_iters": 2})
    fit(Trainer(second, CPU, init=first))
    assert newest(second).config.train.train_flow
    assert not torch.equal(newest(second).state_dict[FLOW_WEIGHT], first.ema_state_dict[FLOW_WEIGHT])
    resumed = Trainer(newest(second).config, CPU, resume=newest(second))
    assert all(p.requires_grad for p in resumed.model.spynet.parameters())


# Checkpoints with finished SPyNet weights


def test_the_published_spynet_is_frozen_without_a_spynet_file(tmp_path):
    published = load_any(in_published_format(SMALL, tmp_path / "published.pth.tar", cached=16), config=SMALL)
    assert (published.config.train.spynet, published.config.train.train_flow) == ("", False)
    config = init_config(published, {"init": published.source})
    assert not trains_flow(config, init=published)
    assert not trains_flow(published.config, resume=published)
    assert trains_flow(config.replaced({"train_flow": True}), init=published)
    for name, write in (("converted.pt", save_checkpoint), ("converted.safetensors", save_safetensors)):
        write(tmp_path / name, published)
        converted = load_any(tmp_path / name)
        assert converted.config.train == published.config.train
        assert not trains_flow(config, init=converted)


def test_a_run_that_begins_from_the_shipped_motion_generator_keeps_spynet_frozen():
    shipped = load_any(WORLD)
    assert not shipped.config.train.train_flow
    assert not trains_flow(init_config(shipped, {"init": str(WORLD)}), init=shipped)


# Checkpoints of format 1, in which `train_flow` was the flag


@pytest.mark.parametrize(
    ("train", "trained"),
    [
        ({}, True),
        ({"spynet": "given.pth"}, False),
        ({"init": "a.pt"}, False),
        ({"spynet": "given.pth", "train_flow": True}, True),
        ({"init": "a.pt", "train_flow": True}, True),
    ],
)
def test_reading_format_1_derives_whether_spynet_was_trained(tmp_path, train, trained):
    config = Config.from_preset("tiny").replaced({"image_size": 16})
    state = build_model(config).state_dict()
    path = tmp_path / "checkpoint_00000001.pt"
    save_checkpoint(path, Checkpoint(1, config, state, state, {"state": {}, "param_groups": []}))
    old = load_checkpoint(as_format_1(path, **train))
    assert old.config.train.train_flow is trained
    assert trains_flow(old.config, resume=old) is trained
    save_checkpoint(path, old)
    assert load_checkpoint(path).config == old.config


@pytest.mark.parametrize("given", [True, False])
def test_a_run_of_format_1_resumes_bit_for_bit(tiny, tmp_path, given):
    if given:
        spynet = Trainer(tiny, CPU).model.spynet
        torch.save(fill_by_rule(spynet, "spynet").state_dict(), tmp_path / "spynet.pt")
        tiny = tiny.replaced({"spynet": str(tmp_path / "spynet.pt")})
    fit(Trainer(tiny, CPU))
    half = tiny.replaced({"out": str(tmp_path / "half")})
    fit(Trainer(half.replaced({"total_iters": 2}), CPU))
    old = load_checkpoint(as_format_1(Path(half.train.out) / "checkpoint_00000002.pt"))
    fit(Trainer(resumed_config(old, {"total_iters": 4}), CPU, old))
    whole, resumed = newest(tiny), newest(half)
    assert whole.config.train.train_flow is not given
    assert dataclasses.replace(resumed.config.train, out=tiny.train.out) == whole.config.train
    for name, tensor in whole.state_dict.items():
        assert torch.equal(resumed.state_dict[name], tensor)
        assert torch.equal(resumed.ema_state_dict[name], whole.ema_state_dict[name])
    assert resumed.optimizer["state"].keys() == whole.optimizer["state"].keys()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "SPyNet is trained, starting from zero flow (no --spynet given)\n"),
        ({"flow_range": "none"}, ""),
        ({"generator": "content"}, ""),
    ],
)
def test_a_run_prints_at_its_start_whether_spynet_is_trained(tiny, capsys, values, line):
    fit(Trainer(tiny.replaced({**values, "total_iters": 1}), CPU))
    printed = capsys.readouterr().out
    assert line in printed
    assert ("SPyNet" in printed) == bool(line)
