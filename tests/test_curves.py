"""Tests of the charts of a training run."""

import json

import pytest

from vidm.curves import POINTS, _points, write_curves


def test_points_are_equally_spaced_means_over_rows_and_lines_between_them():
    assert _points([5], [2.0]) == [2.0]
    assert _points([0, 100], [1.0, 3.0]) == [1.0, 3.0]
    assert _points([0, 10, 90, 100], [1.0, 3.0, 4.0, 4.0]) == pytest.approx([2, 2 + 2 / 3, 3 + 1 / 3, 4])
    many = _points(list(range(POINTS * 10)), [float(step) for step in range(POINTS * 10)])
    assert len(many) == POINTS
    assert many[0] == pytest.approx(4.5, abs=0.5)
    assert many[-1] == pytest.approx(POINTS * 10 - 5.5, abs=0.5)


def test_a_page_of_hostile_rows_has_no_markup_of_theirs(tmp_path):
    rows = [json.dumps({"step": 1, "<b>loss": 1.0, "text": "<script>", "no": None, "huge": 1e300}).encode()]
    write_curves(tmp_path / "curves.html", "<i>run", rows)
    page = (tmp_path / "curves.html").read_text()
    assert "<b>loss" not in page
    assert "<i>run" not in page
    assert "&lt;b&gt;loss: 1 at step 1" in page
