"""Tests of checkpoints: written atomically, loaded strictly, and without running code."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidm.checkpoint import (
    Checkpoint,
    build_model,
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    load_spynet,
    load_weights,
    save_checkpoint,
)
from vidm.config import Config
from vidm.spynet import SPyNet


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    config = Config.from_preset("tiny")
    state = build_model(config).state_dict()
    return Checkpoint(7, config, state, state, {"state": {}, "param_groups": []})


def test_a_checkpoint_round_trips(checkpoint, tmp_path):
    path = checkpoint_path(tmp_path, 7)
    save_checkpoint(path, checkpoint)
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.config) == (7, checkpoint.config)
    assert all(torch.equal(loaded.state_dict[k], v) for k, v in checkpoint.state_dict.items())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_00000007.pt"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(checkpoint, tmp_path):
    path = checkpoint_path(tmp_path, 7)
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, replace(checkpoint, optimizer={"hook": lambda: None}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_latest_checkpoint_is_the_one_of_the_highest_step(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None
    for name in ("checkpoint_00000010.pt", "checkpoint_00000009.pt", "checkpoint_best.pt", ".checkpoint_00000099.pt"):
        (tmp_path / name).touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_00000010.pt"


@pytest.mark.parametrize("keep", [0, 1, 1000, 100_000])
def test_a_truncated_file_is_named(checkpoint, tmp_path, keep):
    path = tmp_path / "cut.pt"
    save_checkpoint(path, checkpoint)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut\.pt"):
        load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_pickled_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"iters": Bomb()}, "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb\.pt .* code \(which was not run\)"):
        load_checkpoint("bomb.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt"):
        load_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_named(tmp_path, seed):
    (tmp_path / "noise.pt").write_bytes(np.random.default_rng(seed).bytes(300))
    with pytest.raises(ValueError, match=r"noise\.pt is truncated, damaged"):
        load_checkpoint(tmp_path / "noise.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None}, "another version: the settings are not a dictionary of sections"),
        ({"config": {"model": {"image_size": "32"}}}, "setting image_size is '32': give a whole number"),
        ({"config": {"model": {"channel_mult": [1, "2"]}}}, "setting channel_mult is .*not whole numbers"),
        ({"progress": {"magic": 3}}, "another version: .*magic"),
        ({"iters": "7"}, "its step is '7'"),
        ({"state_dict": {"a": 1}}, "its weights are not named tensors"),
        ({"optimizer": None}, "its weights are not named tensors"),
    ],
)
def test_content_of_the_wrong_kind_is_named(checkpoint, tmp_path, change, message):
    path = tmp_path / "odd.pt"
    save_checkpoint(path, checkpoint)
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(ValueError, match=rf"odd\.pt .*{message}"):
        load_checkpoint(path)


def test_a_folder_is_not_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.pt"):
        load_checkpoint(tmp_path / "absent.pt")


def test_settings_of_another_version_are_named(checkpoint, tmp_path):
    content = {
        "iters": 1,
        "config": {"model": {"magic": 3}},
        "state_dict": {},
        "ema_state_dict": {},
        "optimizer": {},
    }
    torch.save(content, tmp_path / "future.pt")
    with pytest.raises(ValueError, match="another version: there is no setting magic"):
        load_checkpoint(tmp_path / "future.pt")


def test_weights_load_strictly_and_tensors_that_do_not_fit_are_listed():
    module = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(8)])
    state = dict(module.state_dict())
    state.pop("0.bias")
    state["extra"] = torch.zeros(1)
    state["3.weight"] = torch.zeros(5, 2)
    message = r"in 3 tensors: 0\.bias is missing; extra is unexpected; 3\.weight is \(5, 2\), not \(2, 2\)$"
    with pytest.raises(ValueError, match=message):
        load_weights(module, state, "file")
    with pytest.raises(ValueError, match=r"in 16 tensors: .*; and 6 more"):
        load_weights(module, {}, "file")


def test_a_checkpoint_in_place_of_spynet_weights_is_told_so(tmp_path):
    torch.save({"state_dict": {}, "ema_state_dict": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is the checkpoint of a generator, not a file of SPyNet"):
        load_spynet(SPyNet(), tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("nested", [True, False])
def test_spynet_files_may_be_nested_and_without_buffers(tmp_path, nested):
    source, target = SPyNet(), SPyNet()
    torch.nn.init.ones_(source.basic_module[5].basic_module[4].conv.bias)
    state = {k: v for k, v in source.state_dict().items() if k not in ("mean", "std")}
    torch.save({"state_dict": state} if nested else state, tmp_path / "spynet.pth")
    load_spynet(target, tmp_path / "spynet.pth")
    assert all(torch.equal(target.state_dict()[k], v) for k, v in source.state_dict().items())
