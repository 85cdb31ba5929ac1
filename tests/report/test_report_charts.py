"""Chart geometry on numbers worked out by hand, and the data that charts must take or refuse."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from crops.errors import CropsError
from crops.report.charts import (
    Bar,
    Figure,
    Line,
    SplitBar,
    axis,
    clip,
    draw,
    element,
    nice_step,
    tick_format,
)

LEFT, RIGHT = 1.0, 399.0
"""Both ends of the axis of a bar chart: 398 units for its range."""


def chart(bars, *, title="t", **more):
    return draw(Figure(title, bars, **more))


def elements(drawn, tag, class_=None):
    return [node for node in ET.fromstring(drawn).iter(tag) if class_ is None or node.get("class") == class_]


def words(drawn, class_=None):
    return [node.text for node in elements(drawn, "text", class_)]


def points(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path.get("d"))]


def test_half_of_the_range_is_half_of_the_width():
    drawn = chart([Bar("half", 0.4), Bar("full", 0.8), Bar("none", 0.0)])
    widths = [float(bar.get("width")) for bar in elements(drawn, "rect", "bar")]
    assert widths == [199.0, 398.0, 0.0]
    assert words(drawn, "tick") == ["0", "20", "40", "60", "80"]
    # charts on one scale draw equal values equally long
    low, high = chart([Bar("a", 0.1)], upper=0.8), chart([Bar("a", 0.1), Bar("b", 0.8)])
    assert [elements(one, "rect")[0].get("width") for one in (low, high)] == ["49.75"] * 2
    assert not elements(low, "path", "whisker")
    told = chart([Bar("BM25", 0.429, 0.4, 0.45), Bar("new", 0.691)], title="Recall")
    assert ET.fromstring(told).get("role") == "img"
    assert elements_text(told, "title") == "Recall, in %"
    assert elements_text(told, "desc") == "BM25: 42.9, interval 40.0 to 45.0; new: 69.1"


def test_whisker_and_reference_stand_at_their_values():
    # On 0..0.8 a share s is at 1 + 398 s / 0.8: 0.2 at 100.5, 0.6 at 299.5, 0.4 at 200.
    drawn = chart([Bar("a", 0.4, 0.2, 0.6)], upper=0.8, reference=0.4)
    (whisker,), (reference,) = elements(drawn, "path", "whisker"), elements(drawn, "path", "reference")
    assert points(whisker)[:2] == [(100.5, 33.0), (299.5, 33.0)]
    assert {x for x, _ in points(reference)} == {200.0}


def test_negative_values_go_left_of_zero():
    # The axis is -0.4..0.4, zero at 200.
    drawn = chart([Bar("down", -0.4), Bar("up", 0.4)])
    down, up = elements(drawn, "rect")
    assert (float(down.get("x")), float(down.get("width"))) == (1.0, 199.0)
    assert (float(up.get("x")), float(up.get("width"))) == (200.0, 199.0)


def elements_text(drawn, tag):
    (node,) = elements(drawn, tag)
    return node.text


def test_split_bar_hatches_the_marked_part():
    # 1000 of an axis to 1000: 250 unmarked are 99.5 units wide, 750 marked 298.5, starting at 100.5.
    drawn = chart([SplitBar("feed", 1000, 750, tone=2)], marked="never shown")
    (solid,), (part,) = elements(drawn, "rect", "bar"), elements(drawn, "rect", "part")
    assert float(solid.get("width")) == 99.5
    assert (float(part.get("x")), float(part.get("width"))) == (100.5, 298.5)
    (hatch,) = elements(drawn, "path", "hatch")
    top = float(part.get("y"))
    assert all(100.4 <= x <= 399.1 and top - 0.1 <= y <= top + 12.1 for x, y in points(hatch))
    assert "1,000, 75 % never shown" in words(drawn)
    for count in (None, 0):  # nothing marked is a plain bar
        plain = chart([SplitBar("clicks", 1, count)], marked="never shown")
        assert not elements(plain, "path", "hatch")
        assert ("0 % never shown" in plain) == (count == 0)
        assert words(plain, "tick") == ["0", "1"]  # counts have whole ticks
    for count in (-1, 11):
        with pytest.raises(CropsError, match="of 10"):
            chart([SplitBar("a", 10, count)], marked="m")


def test_line_joins_its_points():
    # y spans 0..10 on 190..12, x spans 0..100 on 46..386: (50, 5) is at (216, 101).
    drawn = chart([Line("a", [0, 50, 100], [0, 5, 10])], x_label="step")
    assert points(elements(drawn, "path", "line")[0]) == [(46.0, 190.0), (216.0, 101.0), (386.0, 12.0)]
    drawn = chart([Line("a", [1, 2, 3], [0, 5, 10])], x_label="day")
    below = [one.text for one in elements(drawn, "text", "tick") if float(one.get("y")) == 207]
    assert below == ["1", "2", "3"]
    with pytest.raises(CropsError, match="2 x for 1 y"):
        chart([Line("a", [1, 2], [1])], x_label="x")


def test_lines_differ_in_more_than_colour():
    lines = [Line(f"arm {tone}", [0, 1], [tone, tone], tone) for tone in range(1, 5)]
    drawn = chart(lines, x_label="step")
    groups = [group for group in elements(drawn, "g") if group.get("class", "").startswith("tone-")]
    dashes = {group.find("path").get("stroke-dasharray") for group in groups}
    marks = {re.sub(r"[\d.-]+", "", group.findall("path")[1].get("d")) for group in groups}
    assert len(groups) == len(dashes) == len(marks) == 4


@pytest.mark.parametrize(("x", "y"), [
    ([3], [0.05]),
    ([1, 2], [7, 7]),
    ([0, 0], [0, 0]),
    ([1, 2], [1e-12, 2e-12]),
    ([1, 2], [-1e90, 1e90]),
    ([1, 2], [1e15, 1e15 + 0.125]),
    ([1, 2], [5e-324, 0]),
    ([-5, 5], [-3, -1]),
])  # fmt: skip
def test_any_finite_line_stays_inside_the_plot(x, y):
    drawn = chart([Line("a", x, y)], x_label="step")
    for px, py in points(elements(drawn, "path", "line")[0]):
        assert 46 <= px <= 386
        assert 12 <= py <= 190
    for value in (0.0, 1.0, 1e-9, 1e12, -2.0):
        (bar,) = elements(chart([Bar("a", value, value, value)]), "rect")
        assert LEFT <= float(bar.get("x")) <= float(bar.get("x")) + float(bar.get("width")) <= RIGHT


def test_without_data_there_is_no_chart():
    assert chart([]) == ""
    assert chart([], marked="m") == ""
    assert chart([], x_label="x") == ""
    assert chart([Line("empty", [], [])], x_label="x") == ""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308])
def test_numbers_without_a_place_are_refused_by_name(bad):
    with pytest.raises(CropsError, match=r"'loss': arm 2 is"):
        chart([Line("arm 1", [1], [1]), Line("arm 2", [1, 2], [1, bad])], title="loss", x_label="step")
    with pytest.raises(CropsError, match="arm 3"):
        chart([Bar("arm 3", 0.5, bad, 0.6)], title="recall")
    with pytest.raises(CropsError, match="reference"):
        chart([Bar("arm 3", 0.5)], title="recall", reference=bad)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", 'a "b" & c', "عطارد", "🪐" * 80])
def test_names_are_text(name):
    assert element("a", x='"><b') == '<a x="&#34;&gt;&lt;b"></a>'
    for drawn in (
        chart([Bar(name, 0.5)], title=name),
        chart([SplitBar(name, 5, 2)], title=name, marked="m"),
        chart([Line(name, [1], [1])], title=name, x_label=name),
    ):
        assert not elements(drawn, "script")
        assert name in elements_text(drawn, "desc")


def test_long_text_is_cut_to_its_width():
    assert clip("short", 100) == "short"
    assert clip("two\n  lines", 100) == "two lines"
    # 70 units are 10 mean characters of 12.5 * 0.56 = 7 units: nine letters and the ellipsis.
    assert clip("abcdefghijklm", 70) == "abcdefghi…"
    # A wide character takes 1.8: five are 9 of 10, with the ellipsis they would be 10.
    assert clip("漢" * 9, 70) == "漢漢漢漢漢…"


def test_ticks_are_exact_multiples_and_distinct_names():
    scale = axis([0.031, 0.052], 0, 100, about=4, round_ends=True)
    written = [tick_format(scale.step)(tick) for tick in scale.ticks()]
    assert written == ["0.03", "0.04", "0.05", "0.06"]
    assert tick_format(2000)(12000) == "12,000"
    assert tick_format(1e-7)(3e-7) == "3e-07"
    # steps are one, two or five
    steps = {0.011: 0.02, 0.2: 0.2, 0.21: 0.5, 6: 10, 1000: 1000}
    assert {rough: nice_step(rough) for rough in steps} == pytest.approx(steps)
