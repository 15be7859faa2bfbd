"""Tests of the HTML report: it embeds all it shows, escapes all text, and is written completely or not at all."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from vidm.report import Distance, Report, VideoRow, line_chart, svg_file, write_report
from vidm.video_io import VideoError, write_video

Element = tuple[str, dict[str, str]]


class Page(HTMLParser):
    """The elements and the text of a page; checks that elements are closed in order."""

    VOID = ("meta", "img")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def row(tmp_path: Path) -> VideoRow:
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    still, small, large = tmp_path / "still.png", tmp_path / "small.mp4", tmp_path / "large.mp4"
    Image.fromarray(frames[0]).save(still)
    write_video(small, frames)
    write_video(large, frames.repeat(8, axis=1).repeat(8, axis=2))
    return VideoRow("video 0", [still, small, large])


COLUMNS = ["first frame", "generated", "real"]


def embedded(attributes: dict[str, str]) -> tuple[str, bytes]:
    head, data = attributes["src"].split(",", 1)
    return head, base64.b64decode(data)


def test_every_video_and_image_is_embedded_byte_for_byte(tmp_path: Path, row: VideoRow) -> None:
    write_report(tmp_path / "report.html", Report("Title", "Intro", COLUMNS, [row, row]))
    page = Page(tmp_path / "report.html")
    still, small, large = (Path(path).read_bytes() for path in row.media)
    assert [embedded(image) for image in page.all("img")] == [("data:image/png;base64", still)] * 2
    assert [embedded(video) for video in page.all("video")] == [
        ("data:video/mp4;base64", small),
        ("data:video/mp4;base64", large),
    ] * 2
    assert page.open == []


def test_the_page_loads_nothing_from_outside(tmp_path: Path, row: VideoRow) -> None:
    report = Report("T", "I", COLUMNS, [row], "name", [Distance("a", 1)], ["note"], {"k": "v"})
    write_report(tmp_path / "report.html", report)
    page = Page(tmp_path / "report.html")
    for _, attributes in page.elements:
        assert "href" not in attributes
        assert attributes.get("src", "data:").startswith("data:")
    without_data = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.source)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bimport\b", without_data)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';")


def test_all_text_is_escaped(tmp_path: Path, row: VideoRow) -> None:
    nasty = "</title></script><script>alert('$title')</script> \"&amp;"
    rows = [VideoRow(nasty, row.media)]
    report = Report(nasty, nasty, [nasty] * 3, rows, nasty, [Distance(nasty, 1.0)], [nasty], {nasty: nasty})
    write_report(tmp_path / "report.html", report)
    page = Page(tmp_path / "report.html")
    assert len(page.all("script")) == 1
    assert page.text.count("alert('$title')") == 2 + 1 + 3 + 1 + 1 + 1 + 1 + 2  # the title appears twice
    assert page.all("video")[0]["aria-label"] == f"{nasty}: {nasty}"
    assert page.open == []


def test_the_page_shows_columns_captions_notes_and_settings(tmp_path: Path, row: VideoRow) -> None:
    settings = {"diffusion steps": 50, "seed": 0}
    report = Report("Title", "Intro", COLUMNS, [row], notes=["From scratch."], settings=settings)
    write_report(tmp_path / "report.html", report)
    page = Page(tmp_path / "report.html")
    headings = [attributes for _, attributes in page.elements if attributes.get("role") == "columnheader"]
    assert len(headings) == 3
    for words in (*COLUMNS, "video 0", "From scratch.", "diffusion steps 50", "seed 0"):
        assert words in page.text
    assert page.all("video")[0]["aria-label"] == "generated: video 0"
    assert page.all("img")[0]["alt"] == "first frame: video 0"


def test_videos_are_muted_and_do_not_loop_on_their_own(tmp_path: Path, row: VideoRow) -> None:
    write_report(tmp_path / "report.html", Report("Title", "Intro", COLUMNS, [row]))
    for video in Page(tmp_path / "report.html").all("video"):
        assert {"muted", "playsinline"} <= video.keys()
        assert not {"loop", "autoplay"} & video.keys()


def test_only_small_videos_are_enlarged_without_smoothing(tmp_path: Path, row: VideoRow) -> None:
    write_report(tmp_path / "report.html", Report("Title", "Intro", COLUMNS, [row]))
    small, large = Page(tmp_path / "report.html").all("video")
    assert (small["width"], small["height"], small.get("class")) == ("24", "16", "pixels")
    assert (large["width"], large["height"], large.get("class")) == ("192", "128", None)


def test_distances_are_shown_with_their_name_and_their_notes(tmp_path: Path) -> None:
    distances = [Distance("real and real", 0.5, floor=True), Distance("generated and real", 12345.678, note="25000 x")]
    report = Report("Title", "Intro", distance_name="not an FVD", distances=distances, notes=["Few videos."])
    write_report(tmp_path / "report.html", report)
    page = Page(tmp_path / "report.html")
    assert "Not an FVD. Lower is closer." in page.text
    assert "real and real 0.5 generated and real 12350 25000 x" in page.text
    assert "minutes of training to tens of times. Few videos." in page.text
    assert [div["style"] for div in page.all("div") if "--share" in div.get("style", "")] == [
        "--share: 0.00%",
        "--share: 100.00%",
    ]


def test_numbers_come_first_and_a_floor_is_explained_only_where_there_is_one(tmp_path: Path, row: VideoRow) -> None:
    report = Report("T", "I", COLUMNS, [row], distances=[Distance("a", 0.0)], settings={"seed": 1}, curves={"by": [1]})
    write_report(tmp_path / "report.html", report)
    page = Page(tmp_path / "report.html")
    headings = ["Distances", "Over time", "Videos", "How it was made"]
    assert sorted(headings, key=page.text.index) == headings
    assert "Floor" not in page.text


def test_the_x_values_of_a_curve_can_be_given(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", Report("T", "I", curves={"a": [1, 2], "b": [3, 4]}, x_ranges={"b": (5, 9)}))
    page = Page(tmp_path / "report.html")
    assert "a 2 1 0 1 b 4 3 5 9" in page.text


def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", Report("Title", "Intro"))
    page = Page(tmp_path / "report.html")
    assert [tag for tag, _ in page.elements if tag in ("section", "table", "button", "dl")] == []


def test_an_unreadable_file_is_named_in_the_error_and_the_previous_page_is_kept(tmp_path: Path, row: VideoRow) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "clip.npy").write_bytes(b"")
    wrong: list[tuple[str, type[Exception], str]] = [
        ("absent.mp4", FileNotFoundError, "absent.mp4"),
        ("broken.mp4", VideoError, "broken.mp4"),
        ("clip.npy", ValueError, r"clip\.npy: a report shows only \.mp4"),
    ]
    for name, kind, message in wrong:
        with pytest.raises(kind, match=message):
            write_report(path, Report("Title", "Intro", ["real"], [VideoRow("v", [tmp_path / name])]))
    with pytest.raises(ValueError, match="'video 0' has 3 videos for 2 columns"):
        write_report(path, Report("Title", "Intro", COLUMNS[:2], [row]))
    assert path.read_text() == "before"
    assert sorted(found.name for found in tmp_path.glob("*report*")) == ["report.html"]


SVG = "{http://www.w3.org/2000/svg}"


def points_of(chart: ElementTree.Element, prefix: str = "") -> list[tuple[float, float]]:
    pairs = chart.find(f"{prefix}polyline").get("points").split()
    return [tuple(map(float, pair.split(","))) for pair in pairs]


def test_values_run_from_left_to_right_at_proportional_heights():
    (x0, y0), (x1, y1), (x2, y2) = points_of(ElementTree.fromstring(line_chart((3.0, 1.0, 2.5), "a")))
    assert x0 < x1 < x2
    assert x1 - x0 == x2 - x1
    assert y0 < y2 < y1
    assert (y1 - y2) / (y1 - y0) == 0.75


def test_a_chart_shows_its_extremes_and_its_x_range():
    def texts(*arguments):
        return [text.text for text in ElementTree.fromstring(line_chart(*arguments)).iter("text")]

    assert texts((3.0, 1.0, 2.5), "a") == ["3", "1", "0", "2"]
    assert texts((3.0, 1.0, 2.5), "a", (2000, 6000)) == ["3", "1", "2000", "6000"]
    assert texts((3.0,), "a") == ["3", "0"]


def test_an_svg_file_shows_its_label_inside_the_image():
    chart = ElementTree.fromstring(svg_file((3.0, 1.0), "PSNR < 30 & more", (1, 2)))
    label = chart.find(f"{SVG}text")
    assert label.text == "PSNR < 30 & more"
    left, top, width, height = map(float, chart.get("viewBox").split())
    assert left < float(label.get("x")) < left + width
    assert top + 13 < float(label.get("y")) < top + height
    assert [chart.get("width"), chart.get("height")] == [f"{width:g}", f"{height:g}"]
    assert points_of(chart, SVG)
