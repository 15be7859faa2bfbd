"""Tests with checkpoints made to harm: each is refused in one line, or loads, in the memory that its size explains."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint_formats import SMALL
from torch import Tensor

from vidm.checkpoint import Checkpoint as Saved
from vidm.checkpoint import build_model, check_weights, checkpoint_from, load_model, read_tensors, save_checkpoint
from vidm.checkpoint_formats import load_any, save_safetensors
from vidm.config import Config
from vidm.generator import load_generator
from vidm.resume import newest_that_verifies
from vidm.trainer import Trainer

CPU = torch.device("cpu")
# Replacements for a setting: wrong types, bounds, and numbers that would take all memory or never end.
VALUES: list[Any] = [
    *(None, True, "", "motion", "x" * 10_000, "\x1b[31m", -1, 0, 1, 3, 10**6, 10**9, 10**20, 10**400),
    *(-0.5, 1e308, float("nan"), float("inf"), [], [0], [1], [10**9], [1] * 1000, [[1]], {}, {"a": 1}),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of the motion generator."""
    path = tmp_path_factory.mktemp("hostile") / "motion.pt"
    model = build_model(SMALL)
    save_checkpoint(path, Saved(3, SMALL, model.state_dict(), model.state_dict(), {}))
    return path


def mutated(settings: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Nested settings with one to three values, names or sections replaced, removed or added."""
    settings = json.loads(json.dumps(settings))
    for _ in range(rng.randint(1, 3)):
        place: Any = settings
        while True:
            name = rng.choice([*place, "new"])
            if isinstance(place.get(name), dict) and place[name] and rng.random() < 0.9:
                place = place[name]
                continue
            break
        if rng.random() < 0.1:
            place.pop(name, None)
        else:
            place[name] = rng.choice(VALUES)
    return settings


def check_mutations(saved: Path, number: int, seed: int) -> None:
    """Load a checkpoint with `number` mutations of its settings; anything but a ValueError in one line fails."""
    rng, content = random.Random(seed), read_tensors(saved)
    described = {name: content[name] for name in ("format", "iters", "config", "progress", "versions")}
    messages, fits = [], set()
    for _ in range(number):
        settings = mutated(described, rng)
        try:
            config = checkpoint_from({**content, **settings}, "file.pt").config
            if config.model not in fits:  # building a network takes longer than all the rest
                with torch.device("meta"):
                    check_weights(build_model(config).state_dict(), content["ema_state_dict"], "file.pt")
                fits.add(config.model)
        except ValueError as error:
            messages.append(str(error))
    assert not [message for message in messages if "\n" in message]
    assert number // 4 < len(messages) < number


def test_mutated_settings_are_refused_in_one_line_or_load(saved):
    check_mutations(saved, 2_000, seed=0)


@pytest.mark.slow
def test_many_mutated_settings_are_refused_in_one_line_or_load(saved):
    check_mutations(saved, 20_000, seed=1)


@pytest.mark.parametrize(
    "values",
    [
        {"model_channels": 4096, "channel_mult": [256] * 10, "image_size": 512},
        {"image_size": 8192, "generator": "content"},
        {"num_res_blocks": 16, "channel_mult": [1] * 10, "image_size": 512, "diffusion_timesteps": 10**6},
    ],
)
def test_settings_of_a_network_that_no_memory_holds_are_refused_before_memory_is_taken(values):
    code = (
        "import resource, sys, json; from vidm.checkpoint import load_model; from vidm.config import Config\n"
        "config = Config.from_dict({'model': json.loads(sys.argv[1])})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_model(config, {}, 'file.pt')\n"
        "except ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    message, kib = done.stdout.splitlines()
    assert message.startswith("file.pt does not fit this network")
    assert int(kib) < 2**20


def rewritten(saved: Path, path: Path, **changes: Any) -> Path:
    torch.save(torch.load(saved, weights_only=True) | changes, path)
    return path


def nested(levels: int) -> list:
    """A list that contains 2**levels lists, counted by every path."""
    value: list = []
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize("value", [torch.ones(2), torch.ones(()), nested(40), 2**63, float("nan"), "x" * 10**6, [[]]])
@pytest.mark.parametrize("name", ["format", "iters", "progress", "versions", "config"])
def test_settings_that_json_would_not_contain_are_refused_in_one_line(saved, tmp_path, name, value):
    path = rewritten(saved, tmp_path / "odd.pt", **{name: value})
    with pytest.raises(ValueError, match=r"odd\.pt is damaged or was written by another version") as error:
        load_any(path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["p2_k", "fps", "batch_size", "model_channels", "lr", "clip_norm", "ema_decay"])
@pytest.mark.parametrize("value", [torch.ones(()), nested(40), -1, 10**100, float("nan")])
def test_a_setting_out_of_its_range_is_refused_in_one_line(saved, name, value):
    content = read_tensors(saved)
    section = next(part for part in content["config"].values() if name in part or name == "fps")
    section[name] = value
    with pytest.raises(ValueError, match="damaged or was written by another version") as error:
        checkpoint_from(content, "file.pt")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "optimizer",
    [
        {"state": 3},
        {"state": {}, "param_groups": []},
        {"param_groups": [{"lr": 1}]},
        {"state": {}, "param_groups": [{"params": [0]}]},
        {"state": {0: {}}, "param_groups": [{"params": "all"}]},
        {"state": {0: {"step": 1.0}}, "param_groups": [{"params": "all"}]},
        {"state": {"a": {}}, "param_groups": [{"params": "all"}]},
        {
            "state": {0: {n: torch.ones(3) for n in ("step", "exp_avg", "exp_avg_sq")}},
            "param_groups": [{"params": "all"}],
        },
    ],
)
def test_an_optimizer_of_another_shape_is_named(tiny, optimizer):
    config = tiny.replaced({"out": f"{tiny.train.out}/new"})
    model = build_model(config)
    for group in optimizer.get("param_groups", []):
        if group.get("params") == "all":
            group["params"] = list(range(sum(1 for _ in model.parameters())))
    resume = Saved(1, config, model.state_dict(), model.state_dict(), optimizer, source="file.pt")
    with pytest.raises(ValueError, match=r"file\.pt has an optimizer's state of another network"):
        Trainer(config, CPU, resume)


@pytest.mark.parametrize("step", [float("inf"), float("nan"), [], "1\n2", -1, True, 10**15])
def test_the_step_of_a_published_checkpoint_is_a_number(saved, tmp_path, step):
    state = read_tensors(saved)["state_dict"]
    path = tmp_path / "authors.pth.tar"
    torch.save({"state_dict": state, "ema_state_dict": state, "optimizer": {}, "iters": step}, path)
    with pytest.raises(ValueError, match=r"authors\.pth\.tar is damaged .*: its step is ") as error:
        load_any(path, video_timesteps=16)
    assert "\n" not in str(error.value)


def safetensors(path: Path, dtype: str, shape: list[int], num_bytes: int) -> None:
    """A file of one tensor, with the settings of a checkpoint beside it."""
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, num_bytes]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(num_bytes))
    path.with_suffix(".json").write_text(json.dumps({"format": 2, "iters": 1, "config": SMALL.to_dict()}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("dtype", "shape", "num_bytes"),
    [("F32", [0, 2**63, 2**63], 0), ("F4", [2], 1), ("F8_E4M3", [2], 2), ("C64", [2], 16), ("I64", [2], 16)],
)
def test_safetensors_of_odd_shapes_and_types_are_refused_in_one_line(tmp_path, dtype, shape, num_bytes):
    safetensors(tmp_path / "odd.safetensors", dtype, shape, num_bytes)
    with pytest.raises(ValueError, match=r"odd\.safetensors (is truncated|has weights of the type)") as error:
        load_any(tmp_path / "odd.safetensors")
    assert "\n" not in str(error.value)


def test_whole_numbers_are_no_weights(saved, tmp_path):
    state: dict[str, Tensor] = dict(read_tensors(saved)["state_dict"])
    name = next(iter(state))
    state[name] = state[name].long()
    path = rewritten(saved, tmp_path / "whole.pt", ema_state_dict=state)
    with pytest.raises(ValueError, match=rf"whole\.pt does not fit this network in 1 tensors: {name} is torch.int64"):
        load_generator(path, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_sampling(saved, tmp_path, value):
    state: dict[str, Tensor] = dict(read_tensors(saved)["state_dict"])
    name = list(state)[5]
    state[name] = torch.full_like(state[name], value)
    path = rewritten(saved, tmp_path / "nan.pt", ema_state_dict=state)
    with pytest.raises(ValueError, match=rf"nan\.pt has weights that are not finite, in {name}"):
        load_generator(path, device="cpu")


@pytest.mark.parametrize(
    "text",
    ["", "[", "[" * 100_000, '{"config": ' * 50_000, "null", "3", '{"iters": 1}', '{"state_dict": {}}', "\udce4"],
)
def test_a_settings_file_of_any_content_is_refused_in_one_line(saved, tmp_path, text):
    path = tmp_path / "motion.safetensors"
    save_safetensors(path, load_any(saved))
    path.with_suffix(".json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"motion\.(safetensors|json)") as refused:
        load_any(path)
    assert "\n" not in str(refused.value)


def test_settings_beside_safetensors_do_not_replace_its_weights(saved, tmp_path):
    path = tmp_path / "motion.safetensors"
    checkpoint = load_any(saved)
    save_safetensors(path, checkpoint)
    settings = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(settings | {"ema_state_dict": {}, "optimizer": {"state": 1}}))
    loaded = load_any(path)
    assert loaded.ema_state_dict.keys() == checkpoint.ema_state_dict.keys()
    assert loaded.optimizer == {}


def test_a_model_is_loaded_with_the_weights_of_its_file(saved):
    checkpoint = load_any(saved)
    model = load_model(Config.from_dict(checkpoint.config.to_dict()), checkpoint.state_dict, "file.pt")
    assert all(torch.equal(tensor, checkpoint.state_dict[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["motion.pt", "motion.pth.tar", "motion.safetensors", "motion.json"])
def test_a_pipe_in_place_of_a_checkpoint_is_refused_without_waiting(saved, tmp_path, name):
    save_safetensors(tmp_path / "motion.safetensors", load_any(saved))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is a pipe or a device"):
        load_any((tmp_path / name).with_suffix(".safetensors") if name == "motion.json" else tmp_path / name)


def test_a_pipe_with_the_name_of_a_checkpoint_is_skipped_on_resuming(saved, tmp_path, capsys):
    shutil.copy(saved, tmp_path / "checkpoint_00000003.pt")
    os.mkfifo(tmp_path / "checkpoint_00000004.pt")
    found = newest_that_verifies(tmp_path)
    assert found
    assert found.step == 3
    assert "checkpoint_00000004.pt is a pipe or a device" in capsys.readouterr().out
