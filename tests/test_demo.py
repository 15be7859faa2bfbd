"""Tests of scripts/demo.py at a small size, from the data to the page."""

import runpy
from pathlib import Path

import pytest

from vidm.presets import PRESETS

DEMO = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "demo.py"))


def test_stopping_the_training_stops_the_demo(tmp_path, monkeypatch):
    scope = DEMO["train"].__globals__
    monkeypatch.setitem(PRESETS, "demo", {**PRESETS["tiny"], "workers": 0})
    monkeypatch.setitem(scope, "fit", lambda trainer: None)
    DEMO["make_data"](tmp_path / "data" / "train", 4, seed=0)
    with pytest.raises(KeyboardInterrupt):
        DEMO["train"](tmp_path / "motion")


@pytest.mark.slow
def test_the_demo_writes_its_page_and_fails_if_training_does_not_help(tmp_path, monkeypatch, capsys):
    shrunk = {
        "NUM_TRAIN": 16,
        "NUM_TEST": 8,
        "CONTENT_TRAINING_STEPS": 4,
        "SAMPLER": {"sampler": "ddim", "steps": "2", "content_steps": "3"},
        "WORLD_SAMPLER": {"sampler": "ddim", "steps": "2", "content_steps": "3"},
    }
    for name, value in shrunk.items():
        monkeypatch.setitem(DEMO["main"].__globals__, name, value)
    monkeypatch.setitem(PRESETS, "demo", {**PRESETS["tiny"], "total_iters": 20, "workers": 0, "test_freq": 10})
    out = tmp_path / "demo"
    pages_before_training, real_train = [], DEMO["train"]

    def train(*args, **kwargs):
        pages_before_training.append((out / "report.html").read_text())
        return real_train(*args, **kwargs)

    monkeypatch.setitem(DEMO["main"].__globals__, "train", train)
    code = DEMO["main"](out)
    printed = capsys.readouterr()
    assert [page.count("<video") for page in pages_before_training] == [24, 24]
    assert "continued without training" in printed.out
    assert (code == 1) == ("not closer to real videos" in printed.err)
    page = (out / "report.html").read_text()
    assert page.count("<video") == 48
    assert all(column in page for column in DEMO["COLUMNS"])
    assert (out / "videos.gif").is_file()
