"""The examples of docs/extending.md run, and meet the contracts that the page names."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_diffusion import (
    test_every_schedule_begins_with_almost_no_noise_and_ends_with_almost_nothing_else as check_schedule,
)
from test_posgn import test_every_norm_starts_at_zero_changes_no_input_and_gets_a_gradient as check_norm
from test_samplers import test_with_the_exact_denoiser_of_a_point_one_or_many_steps_reach_the_point as check_samplers

from vidm import diffusion, posgn, samplers, schedules, unet

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TABLES = (schedules.SCHEDULES, samplers.SAMPLERS, unet.NORMS)


@pytest.fixture
def examples() -> Iterator[dict[str, Any]]:
    """The page's code, run in the modules that its first line names; the tables are restored afterwards."""
    before = [dict(table) for table in TABLES]
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if found := re.match(r"# vidm/(\w+)\.py\n", block):
            names |= vars(importlib.import_module(f"vidm.{found[1]}"))
            exec(block, names)
    yield names
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


def test_the_schedule_of_the_page_meets_the_contract_of_schedules(examples):
    for num_timesteps in (1000, 250):
        check_schedule("sigmoid", num_timesteps)
    assert diffusion.GaussianDiffusion(schedule="sigmoid", respacing="10").num_timesteps == 10


def test_the_sampler_of_the_page_meets_the_contract_of_samplers(examples):
    assert "renoise" in samplers.SAMPLERS
    check_samplers()


def test_the_norm_of_the_page_meets_the_contract_of_norms_and_has_one_scale_for_all_pixels(examples):
    check_norm("global")
    norm = unet.NORMS["global"](32, 1000, 16)
    scale, _ = norm.scale_shift(posgn.Position(torch.tensor([5]), torch.tensor([2])), 4, 6)
    assert torch.equal(scale, scale[..., :1, :1].expand_as(scale))


def test_the_detector_of_the_page_measures_two_folders(world):
    (block,) = [block for block in BLOCKS if "MeanColour" in block]
    names: dict[str, Any] = {"folder": world}
    exec(block.replace('"data/real"', "folder").replace('"results/samples"', "folder"), names)
    assert abs(names["result"].value) < 1e-6
    assert names["result"].name == names["MeanColour"].name


def test_the_layout_of_the_page_lists_clips_and_says_what_is_missing(examples, tmp_path):
    (tmp_path / "clips.txt").write_text("here.mp4\naway.mp4\n")
    (tmp_path / "here.mp4").write_bytes(b"")
    listing = examples["_list_text"](tmp_path)
    assert listing.clips == [tmp_path / "here.mp4"]
    assert [path.name for path, _ in listing.bad] == ["away.mp4"]
    assert listing.found == "1 clip of clips.txt"


def test_every_function_is_where_the_page_says():
    pairs = re.findall(r"`(\w+)` (?:in |\(|of `\w+` in )`vidm/(\w+)\.py`", " ".join(PAGE.split()))
    assert len(pairs) > 12
    for name, module in pairs:
        source = inspect.getsource(importlib.import_module(f"vidm.{module}"))
        assert re.search(rf"\b{name}\b", source), (name, module)
