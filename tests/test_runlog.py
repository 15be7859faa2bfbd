"""Tests of the log of a training run."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vidm.runlog import RunLog


def test_numbers_are_written_to_the_console_stats_and_tensorboard(tmp_path, capsys):
    log = RunLog(tmp_path, total=10, start=0)
    log.row(5, loss=0.25, grad_norm=2.0)
    log.close()
    assert "step 5: loss 0.25, grad_norm 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "stats.jsonl").read_text()) == {"step": 5, "loss": 0.25, "grad_norm": 2.0}
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(5, 0.25)]


def test_a_resumed_run_appends_its_rows(tmp_path):
    for step in (1, 2):
        log = RunLog(tmp_path, total=2, start=step - 1)
        log.row(step, loss=1.0)
        log.close()
    assert len((tmp_path / "stats.jsonl").read_text().splitlines()) == 2


def test_videos_are_saved_as_gifs_on_disk_and_in_tensorboard(tmp_path):
    log = RunLog(tmp_path, total=1, start=0)
    frames = np.zeros((3, 16, 16, 3), dtype=np.uint8)
    frames[1:] = np.array([90, 180])[:, None, None, None]
    path = log.video("preview", frames, step=1)
    log.close()
    with Image.open(path) as image:
        assert image.n_frames == 3
    (event,) = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload().Images("preview")
    assert event.encoded_image_string == path.read_bytes()


def test_the_log_of_a_run_in_a_file_has_lines_and_no_bar(tmp_path, capsys):
    log = RunLog(tmp_path, total=3000, start=0)
    for _ in range(3):
        log.step()
    log.pace(seconds=6.0, steps=3)
    log.row(1000, loss=0.5)
    log.close()
    printed = capsys.readouterr()
    assert printed.out == "step 1000: loss 0.5; 1:06:40 left\n"
    assert printed.err == ""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_time_that_is_not_training_does_not_count_for_the_time_that_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", _Terminal())
    log = RunLog(tmp_path, total=100, start=0)
    now = [1000.0]
    log.bar._time = lambda: now[0]
    log.bar.start_t = log.bar.last_print_t = now[0]
    for _ in range(10):
        now[0] += 1
        log.step()
    now[0] += 500  # a preview
    log.skip_time()
    for _ in range(10):
        now[0] += 1
        log.step()
    found = log.bar.format_dict
    log.close()
    assert found["elapsed"] == 20
    assert found["rate"] == pytest.approx(1)


def test_charts_show_the_numbers_of_all_runs_in_the_folder(tmp_path):
    for start in (0, 1000):
        log = RunLog(tmp_path, total=2000, start=start)
        for step in range(start + 1, start + 1001):
            log.row(step, loss=float(step), bad=float("nan"), **({"held_out": 1.0} if step == 1500 else {}))
        log.curves()
        log.close()
    page = (tmp_path / "curves.html").read_text()
    assert page.count("<svg") == 2
    assert "<h2>loss: 2000 at step 2000</h2>" in page
    assert "<h2>held_out: 1 at step 1500</h2>" in page
    assert len(page) < 30_000
