"""Tests of the charts of a training run."""

import json
import re

import numpy as np
import pytest

from vidm.curves import POINTS, _points, _running_mean, write_curves


def test_points_are_equally_spaced_means_over_rows_and_lines_between_them():
    assert _points([5], [2.0]) == [2.0]
    assert _points([0, 100], [1.0, 3.0]) == [1.0, 3.0]
    assert _points([0, 10, 90, 100], [1.0, 3.0, 4.0, 4.0]) == pytest.approx([2, 2 + 2 / 3, 3 + 1 / 3, 4])
    many = _points(list(range(POINTS * 10)), [float(step) for step in range(POINTS * 10)])
    assert len(many) == POINTS
    assert many[0] == pytest.approx(4.5, abs=0.5)
    assert many[-1] == pytest.approx(POINTS * 10 - 5.5, abs=0.5)


def test_the_line_is_a_running_mean_of_many_points_and_exact_for_few():
    few = [5.0, 1.0, 4.0]
    assert _running_mean(few) == few
    noise = np.random.default_rng(0).normal(size=POINTS)
    smooth = _running_mean((3 + noise).tolist())
    assert np.std(smooth) < np.std(noise) / 3
    assert smooth[0] == pytest.approx(3 + noise[0])
    assert smooth[-1] == pytest.approx(np.mean(3 + noise[-11:]))
    assert smooth[100] == pytest.approx(np.mean(3 + noise[90:111]))


def test_a_chart_names_its_axes_and_keeps_the_raw_values_faint(tmp_path):
    rows = [json.dumps({"step": step, "loss": 1.0 + step % 2, "lr": step / 9}).encode() for step in range(100)]
    write_curves(tmp_path / "curves.html", "run", rows)
    page = (tmp_path / "curves.html").read_text()
    assert re.findall(r'text-anchor="middle">(.*?)</text>', page) == ["step", "loss", "step", "lr"]
    assert page.count('<polyline class="faint" points=') == 1, "a learning rate has no noise"
    assert page.count("<polyline points=") == 2
    write_curves(tmp_path / "curves.html", "run", [*rows[:10], b'{"step": 10, "distance": 2.0}'])
    assert "distance (Frechet distance to held-out videos, which only" in (tmp_path / "curves.html").read_text()
    assert 'class="faint"' not in (tmp_path / "curves.html").read_text()


def test_a_page_of_hostile_rows_has_no_markup_of_theirs(tmp_path):
    rows = [json.dumps({"step": 1, "<b>loss": 1.0, "text": "<script>", "no": None, "huge": 1e300}).encode()]
    write_curves(tmp_path / "curves.html", "<i>run", rows)
    page = (tmp_path / "curves.html").read_text()
    assert "<b>loss" not in page
    assert "<i>run" not in page
    assert "&lt;b&gt;loss: 1 at step 1" in page
