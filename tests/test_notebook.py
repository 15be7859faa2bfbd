"""Tests of videos in a notebook, and of the example notebook: its outputs are complete, and it runs."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vidm
from vidm.video_io import probe, read_video

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


class Elements(HTMLParser):
    """The elements of a fragment of HTML, and its text; checks that elements are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def clip(num_frames: int = 3, height: int = 16, width: int = 32, seed: int = 0) -> np.ndarray:
    """Frames of four grey levels, which a gif stores exactly, in blocks that H.264 changes little."""
    blocks = np.random.default_rng(seed).integers(0, 4, (num_frames, height // 8 + 1, width // 8 + 1, 1))
    frames = (blocks * 80).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2).repeat(3, axis=3)
    return frames[:, :height, :width]


def content(attributes: dict[str, str], kind: str) -> bytes:
    head, data = attributes["src"].split(",", 1)
    assert head == f"data:{kind};base64"
    return base64.b64decode(data)


def test_a_video_is_shown_as_a_looping_gif_of_its_frames_at_its_rate():
    video = clip()
    (image,) = Elements(vidm.show(video, fps=5)._repr_html_()).all("img")
    with Image.open(io.BytesIO(content(image, "image/gif"))) as gif:
        assert gif.info["loop"] == 0
        assert gif.info["duration"] == 200
        for index, frame in enumerate(video):
            gif.seek(index)
            np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), frame)


def test_a_video_is_shown_as_h264_that_plays_without_a_click(tmp_path):
    video = clip()
    (element,) = Elements(vidm.show(video, fps=5, format="mp4")._repr_html_()).all("video")
    assert {"autoplay", "loop", "muted", "playsinline", "controls"} <= element.keys()
    path = tmp_path / "copy.mp4"
    path.write_bytes(content(element, "video/mp4"))
    assert np.abs(read_video(path).astype(int) - video).mean() < 2
    assert probe(path).fps == 5


@pytest.mark.parametrize("videos", [np.stack([clip(), clip()]), [clip(2), clip(3, 24, 8)], (clip(), clip())])
def test_a_batch_and_a_sequence_of_any_lengths_and_sizes_show_every_video(videos):
    shown = vidm.show(videos)
    assert len(Elements(shown.html).all("img")) == 2
    assert repr(shown) == "ShownVideos(num_videos=2)"


def test_captions_are_below_their_videos_and_escaped():
    elements = Elements(vidm.show({"seed <0>": clip(), 7: clip()}).html)
    assert elements.text == "seed <0>7"
    assert [image["alt"] for image in elements.all("img")] == ["seed <0>", "7"]
    assert len(elements.all("figcaption")) == 2


@pytest.mark.parametrize(("width", "shown"), [(8, 128), (32, 128), (33, 132), (128, 128), (200, 200)])
def test_a_narrow_video_is_enlarged_by_a_whole_number_without_smoothing(width, shown):
    (image,) = Elements(vidm.show(clip(width=width)).html).all("img")
    assert image["width"] == str(shown)
    assert "image-rendering: pixelated" in image["style"]


@pytest.mark.parametrize("format", ["gif", "mp4"])
def test_the_html_loads_nothing_and_runs_nothing(format):
    html = vidm.show({"a": clip()}, format=format).html
    assert {tag for tag, _ in Elements(html).found} <= {"div", "figure", "img", "video", "figcaption"}
    assert not re.search(r"https?:|//|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))


def test_what_cannot_be_shown_is_named():
    with pytest.raises(ValueError, match=r"cannot show float64 \(3, 16, 32, 3\); a video is uint8"):
        vidm.show(clip() / 255)
    with pytest.raises(ValueError, match=r"cannot show uint8 \(16, 32, 3\)"):
        vidm.show(list(clip()))
    with pytest.raises(ValueError, match=r"cannot show uint8 \(0, 16, 32, 3\)"):
        vidm.show(clip()[:0])
    with pytest.raises(ValueError, match=r"fps 60: give 0\.1 to 50 for gif"):
        vidm.show(clip(), fps=60)
    with pytest.raises(ValueError, match="format 'avi': choose from gif, mp4"):
        vidm.show(clip(), format="avi")


def cells(path: Path = NOTEBOOK) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def outputs() -> list[dict]:
    return [output for cell in cells() for output in cell["outputs"]]


def test_every_cell_of_the_notebook_was_executed_in_order_without_an_error_or_a_warning():
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    assert {output["output_type"] for output in outputs()} <= {"stream", "execute_result", "display_data"}
    assert {output.get("name", "stdout") for output in outputs()} == {"stdout"}
    assert "Warning" not in NOTEBOOK.read_text()


def test_every_cell_that_shows_videos_has_stored_them():
    showing = [cell for cell in cells() if "vidm.show(" in "".join(cell["source"])]
    assert len(showing) >= 4
    for cell in showing:
        html = ["".join(output["data"]["text/html"]) for output in cell["outputs"] if "data" in output]
        assert len(html) == 1
        assert Elements(html[0]).all("img")


def test_make_notebook_runs_the_notebook_and_its_links_exist():
    makefile = (ROOT / "Makefile").read_text()
    assert f"\n\t$(BIN)/python scripts/run_notebook.py {NOTEBOOK.relative_to(ROOT)}\n" in makefile
    text = "".join("".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"])
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 3
    assert all((NOTEBOOK.parent / link).exists() for link in links)


def test_the_notebook_is_small_and_has_no_trace_of_the_machine_it_ran_on():
    assert NOTEBOOK.stat().st_size < 1_500_000
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", NOTEBOOK.read_text())
    assert not re.search(r"/(home|root|tmp|work|usr|opt|Users|mnt)/|[A-Z]:\\\\|\w+@\w+", text)
    assert all(cell["metadata"] == {} for cell in cells()), "times of execution change with every run"


@pytest.mark.slow
def test_the_notebook_runs_and_gives_the_kinds_of_outputs_that_it_stores(tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    (tmp_path / "examples").mkdir()
    copy = tmp_path / "examples" / NOTEBOOK.name
    document = json.loads(NOTEBOOK.read_text())
    for cell in document["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    copy.write_text(json.dumps(document))
    (tmp_path / "pretrained_models").symlink_to(ROOT / "pretrained_models")
    command = [sys.executable, ROOT / "scripts" / "run_notebook.py", copy]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for stored, made in zip(cells(NOTEBOOK), cells(copy), strict=True):
        for key in ("source", "metadata", "execution_count"):
            assert stored[key] == made[key]
        kinds = [
            [(output["output_type"], *output.get("data", ())) for output in cell["outputs"]] for cell in (stored, made)
        ]
        assert kinds[0] == kinds[1], "".join(made["source"])
