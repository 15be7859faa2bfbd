"""Tests of the log of a training run."""

import json

import numpy as np
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
