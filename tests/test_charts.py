"""Claims about charts: values lie where their size puts them, and what is written says what they are."""

from xml.etree import ElementTree

from vidm.charts import line_chart, svg_file

SVG = "{http://www.w3.org/2000/svg}"


def points_of(chart: ElementTree.Element, prefix: str = "") -> list[tuple[float, float]]:
    pairs = chart.find(f"{prefix}polyline").get("points").split()
    return [tuple(map(float, pair.split(","))) for pair in pairs]


def test_values_go_from_left_to_right_and_larger_ones_lie_higher_in_proportion():
    (x0, y0), (x1, y1), (x2, y2) = points_of(ElementTree.fromstring(line_chart((3.0, 1.0, 2.5), "a")))
    assert x0 < x1 < x2
    assert x1 - x0 == x2 - x1
    assert y0 < y2 < y1
    assert (y1 - y2) / (y1 - y0) == 0.75


def test_extremes_and_ends_are_written():
    def texts(*arguments):
        return [text.text for text in ElementTree.fromstring(line_chart(*arguments)).iter("text")]

    assert texts((3.0, 1.0, 2.5), "a") == ["3", "1", "0", "2"]
    assert texts((3.0, 1.0, 2.5), "a", (2000, 6000)) == ["3", "1", "2000", "6000"]
    assert texts((3.0,), "a") == ["3", "0"]


def test_a_file_of_its_own_shows_its_label_inside_the_picture():
    chart = ElementTree.fromstring(svg_file((3.0, 1.0), "PSNR < 30 & more", (1, 2)))
    label = chart.find(f"{SVG}text")
    assert label.text == "PSNR < 30 & more"
    left, top, width, height = map(float, chart.get("viewBox").split())
    assert left < float(label.get("x")) < left + width
    assert top + 13 < float(label.get("y")) < top + height
    assert [chart.get("width"), chart.get("height")] == [f"{width:g}", f"{height:g}"]
    assert points_of(chart, SVG)
