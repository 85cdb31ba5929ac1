"""The page as a browser and a screen reader get it: structure, escaping, missing parts."""

import dataclasses
import math
import os
import re
from html.parser import HTMLParser

import pytest

from crops import evaluation
from crops.errors import CropsError
from crops.report import (
    Coverage,
    DemoReport,
    Difference,
    Estimate,
    Hit,
    MetricColumn,
    QueryCase,
    ResultRow,
    ResultTable,
    SourceCounts,
    SourceRow,
    TrainingCurve,
    render_report,
    write_report,
)

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='x'>",
    "{{ 7 * 7 }}",
    "عطارد كوكب",
    "🪐 O'Neil & Co",
    "a\u202eb",
]


class Page(HTMLParser):
    """Elements as (tag, attributes, text inside), in order; refuses tags that do not nest."""

    def __init__(self, html):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        node = (tag, dict(attrs), [])
        self.elements.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self._open:
            text.append(data)

    def all(self, tag, class_=None):
        return [
            (attrs, " ".join("".join(text).split()))
            for name, attrs, text in self.elements
            if name == tag and (class_ is None or class_ in attrs.get("class", "").split())
        ]

    def texts(self, tag, class_=None):
        return [text for _, text in self.all(tag, class_)]


def table(**changes):
    ct = MetricColumn("ct", "CT recall", "share of the clicked items that are found")
    qr = MetricColumn("qr", "QR recall", "share of the reworded items that are found")
    rows = [
        ResultRow(
            "BM25",
            {"ct": Estimate(0.40, 0.35, 0.45, 800)},
            {"ct": Difference(-0.1, -0.15, -0.05, 800, 0.001)},
        ),
        ResultRow(
            "baseline",
            {"ct": Estimate(0.50, 0.45, 0.55, 800), "qr": Estimate(0.30, 0.25, 0.35, 90)},
            is_reference=True,
        ),
        ResultRow(
            "CroPS",
            {"ct": Estimate(0.612, 0.56, 0.66, 800), "qr": Estimate(0.3001, None, None, 88)},
            {"ct": Difference(0.112, 0.08, 0.14, 800, 0.0004), "qr": Difference(0.0001, None, None, 88)},
        ),
    ]
    return dataclasses.replace(ResultTable("Result", "A note.", [ct, qr], rows), **changes)


def sources():
    rows = [
        SourceRow("clicks", "clicked", 40, 40, never_shown=0),
        SourceRow("P1", "after rewording", 90, 20, after_similarity=60, after_relevance=25, never_shown=15),
        SourceRow("P3", "written", 8, 8),
    ]
    return SourceCounts(rows, {5: 20, 4: 1048, 3: 100}, Coverage(50, 8, 1168, 8), {3: 6, 2: 1})


def case(text="quicksilver", **changes):
    before = [Hit(1, "astrology", "stars", 0.9, 0, "the sign", evidence=["clicked in 4 of its searches"])]
    after = [
        Hit(1, text, text, 0.8, 3, text, True, True, [f"P1: reworded to {text}"]),
        Hit(2, "metal", "", 0.7, 2, "the metal"),
    ]
    return dataclasses.replace(QueryCase(text, "ambiguous", "old", "new", before, after), **changes)


def curves():
    return [
        TrainingCurve("baseline", [1, 2], [3.0, 2.0], [0.05, 0.04]),
        TrainingCurve("CroPS", [1, 2], [2.0, 1.5]),
    ]


def full(**changes):
    return dataclasses.replace(
        DemoReport(
            "A bubble breaks",
            ["First.", "Second."],
            [("seed", "7")],
            [table()],
            sources(),
            curves(),
            [case()],
            ["A caveat."],
        ),
        **changes,
    )


def cells(page, row_name):
    """The row's cells, of the first table that has the row."""
    html = page.split(f">{row_name}", 1)[1].split("</tr>", 1)[0]
    return ["".join(re.sub(r"<[^>]+>", " ", cell)).split() for cell in html.split("<td")[1:]]


def test_opens_with_title_headline_and_result():
    page = Page(render_report(full()))
    assert page.texts("h1") == ["A bubble breaks"]
    assert page.texts("p", "sentence")[:2] == ["First.", "Second."]
    assert page.texts("h2") == [
        "Result",
        "The same results, drawn",
        "Where each query's positives come from",
        "Training",
        "Before and after, side by side",
        "Notes",
        "How this was made",
    ]


def test_nothing_is_fetched_and_nothing_runs():
    html = render_report(full())
    page = Page(html)
    assert "://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not [
        tag for tag, attrs, _ in page.elements if tag in {"script", "link", "iframe", "img", "object"}
    ]
    assert not [attrs for _, attrs, _ in page.elements if {"src", "href", "xlink:href", "style"} & set(attrs)]
    (policy,) = [attrs["content"] for attrs, _ in page.all("meta") if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'")


def test_every_chart_has_a_text_alternative():
    html = render_report(full())
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert len(charts) == 2 + 1 + 2
    for chart in charts:
        assert 'role="img"' in chart
        assert re.search(r"<title>[^<]+</title><desc>[^<]+</desc>", chart)


def test_tables_name_their_rows_and_columns():
    page = Page(render_report(full()))
    assert all(attrs.get("scope") in {"row", "col"} for attrs, _ in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 4
    regions = page.all("div", "scroll")
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs, _ in regions)


def test_result_cells_hold_mean_interval_and_what_is_sure():
    html = render_report(full())
    assert cells(html, "BM25") == [
        [">", "▼", "significantly", "worse,", "−10.0", "40.0", "[35.0,", "45.0]"],
        [">–"],
    ]
    ct, qr = cells(html, "CroPS")
    assert ct == [">", "▲", "significantly", "better,", "+11.2", "61.2", "(best)", "[56.0,", "66.0]"]
    assert qr == [">", "30.0", "(best)", "no", "interval:", "n", "=", "88"]
    page = Page(html)
    assert page.texts("small")[:2] == ["%, n = 800", "%, n = 88–90"]
    assert page.texts("th", None)[0] == "Model"


def test_values_that_print_the_same_are_equally_best():
    page = Page(render_report(full()))
    # Once for CT, twice for QR (0.3 and 0.3001), once in the explanation.
    assert page.texts("b", "best") == ["30.0", "61.2", "30.0", "Bold, underlined"]


def test_all_differences_stand_in_a_table_of_their_own():
    page = Page(render_report(full()))
    (details,) = page.texts("details")
    assert "−10.0 [−15.0, −5.0] p = 0.001" in details.replace("]p", "] p").replace("0[", "0 [")
    assert "p < 0.001" in details
    assert "not testable" in details


def test_row_that_was_not_tested_says_why():
    rows = [*table().rows, ResultRow("+ P3", not_tested="covers 2.1 % of the queries")]
    html = render_report(full(tables=[table(rows=rows)]))
    assert Page(html).texts("td", "untested") == ["not tested: covers 2.1 % of the queries"]
    assert 'colspan="2"' in html
    assert "+ P3:" not in html


def test_metrics_are_explained_and_only_plotted_ones_drawn():
    columns = [table().columns[0], dataclasses.replace(table().columns[1], plotted=False)]
    page = Page(render_report(full(tables=[table(columns=columns)])))
    captions = page.texts("figcaption")
    assert captions == ["CT recall", "Positives by source", "Temperature", "Loss"]
    assert "share of the reworded items that are found" in page.texts("dd")


def test_metric_that_no_model_has_is_a_column_of_dashes():
    columns = [*table().columns, MetricColumn("none", "Nothing", "no query has it")]
    html = render_report(full(tables=[table(columns=columns)]))
    page = Page(html)
    assert page.texts("small")[2] == "%, n = –"
    assert cells(html, "CroPS")[2] == [">–"]
    assert "Nothing" not in page.texts("figcaption")


def test_sources_count_what_was_found_kept_and_rescued():
    html = render_report(full())
    assert cells(html, "P1</th") == [[">90"], [">60"], [">25"], [">20"], [">15"]]
    assert cells(html, "P3</th") == [[">8"], [">–"], [">–"], [">8"], [">–"]]
    text = " ".join(re.sub(r"<[^>]+>", "", html).split())
    assert "cover 8 of 50 training queries and are 8 of 1,168 samples" in text
    assert "Rescued: 7 pairs" in text
    assert [label for label in Page(html).texts("th") if label.isdigit()] == ["5", "4", "3"]
    assert "consumed after rewording (P1)" in text


def test_columns_that_no_source_uses_are_left_out():
    plain = SourceCounts([SourceRow("clicks", "clicked", 4, 4)], {})
    page = Page(render_report(full(sources=plain)))
    heads = page.texts("th")
    assert "Similar query" not in heads
    assert "Relevant" not in heads
    assert "What the model learns from" not in page.texts("h3")


def test_side_by_side_tallies_marks_and_evidence():
    page = Page(render_report(full()))
    assert page.texts("p", "tally") == [
        "0 of 1 relevant, 1 topic",
        "2 of 2 relevant, 2 topics, 1 never shown before",
    ]
    assert page.texts("span", "grade") == ["○○○grade 0 of 3", "●●●grade 3 of 3", "●●○grade 2 of 3"]
    assert page.texts("ul", "evidence") == ["clicked in 4 of its searches", "P1: reworded to quicksilver"]
    # One of each explains the marks, one is at the new result.
    assert page.texts("span", "new") == ["new", "new"]
    assert len(page.texts("span", "unseen")) == 2


def test_results_without_truth_or_without_results():
    plain = case(before=[], after=[Hit(1, "title", "", 0.5)])
    page = Page(render_report(full(cases=[plain])))
    assert page.texts("p", "tally") == []
    assert page.texts("span", "grade") == []
    assert "No results." in page.texts("p", "soft")


def test_sections_without_data_are_absent():
    page = Page(render_report(full(sources=None, curves=[], cases=[], notes=[], facts=[])))
    assert page.texts("h2") == ["Result", "The same results, drawn"]
    assert Page(render_report(DemoReport("Only a title", []))).texts("h2") == []


def test_curves_without_temperature_leave_its_chart_out():
    bare = [TrainingCurve("h_infonce", [1, 2], [3.0, 2.0])]
    assert "Temperature" not in Page(render_report(full(curves=bare))).texts("figcaption")


def test_long_curves_are_drawn_as_means_and_say_so():
    # 120 steps make windows of 2: (1 + 2) / 2 = 1.5 is the first drawn point, 119.5 the last.
    steps = list(range(1, 121))
    html = render_report(full(curves=[TrainingCurve("a", steps, steps)]))
    assert "mean over up to 2 steps" in html
    assert "a: from 1.5" in html
    assert "to 119.5" in html


def test_a_model_has_one_colour_in_all_charts():
    charts = re.findall(r"<svg.*?</svg>", render_report(full()), flags=re.S)
    assert re.findall(r'"tone-(\d)"', charts[0]) == ["0", "1", "2"]
    assert re.findall(r'"tone-(\d)"', charts[-1]) == ["1", "2"]


def test_without_curves_the_reference_and_the_rows_below_have_colours():
    charts = re.findall(r"<svg.*?</svg>", render_report(full(curves=[], sources=None)), flags=re.S)
    assert re.findall(r'"tone-(\d)"', charts[0]) == ["0", "1", "2"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_never_obeyed(text):
    rows = [dataclasses.replace(row, name=f"{text} {i}") for i, row in enumerate(table().rows)]
    rows.append(ResultRow("x", not_tested=text))
    columns = [MetricColumn("ct", text, text), MetricColumn("qr", "b", text)]
    report = full(
        title=text,
        headline=[text],
        facts=[(text, text)],
        tables=[ResultTable(text, text, columns, rows)],
        curves=[TrainingCurve(text, [1], [1.0], [0.1])],
        cases=[case(text, note=text, before_name=text, after_name=text)],
        notes=[text],
        sources=dataclasses.replace(sources(), rows=[SourceRow(text, text, 1, 1)]),
    )
    page, harmless = Page(render_report(report)), Page(render_report(full()))
    shown = " ".join(text.split())
    assert page.texts("h1") == [shown]
    assert f"“{shown}”" in page.texts("h3")
    assert shown in page.texts("div", "title")
    assert not {tag for tag, _, _ in page.elements} - {tag for tag, _, _ in harmless.elements}
    assert not [key for _, attrs, _ in page.elements for key in attrs if key.startswith("on")]


def test_texts_of_unknown_direction_are_isolated():
    page = Page(render_report(full()))
    for tag, class_ in (("div", "title"), ("div", "text")):
        assert all(attrs["dir"] == "auto" for attrs, _ in page.all(tag, class_))
    assert "“quicksilver”" in page.texts("bdi")


def test_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "new" / "report.html"
    write_report(full(), target)
    before = target.read_text(encoding="utf-8")
    assert before == render_report(full())

    broken = full(curves=[TrainingCurve("a", [1], [math.nan])])
    with pytest.raises(CropsError, match="nan"):
        write_report(broken, target)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(target), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_report(full(title="other"), target)
    assert target.read_text(encoding="utf-8") == before
    assert os.listdir(target.parent) == ["report.html"]


def test_lone_surrogates_do_not_stop_the_report(tmp_path):
    write_report(full(title="broken \ud83e text"), tmp_path / "report.html")
    assert "broken ? text" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_estimates_come_from_evaluations():
    assert Estimate.of(evaluation.Interval(0.5, 0.4, 0.6, 9)) == Estimate(0.5, 0.4, 0.6, 9)
    assert Estimate.of(evaluation.Interval(0.5, math.nan, math.nan, 1)) == Estimate(0.5, None, None, 1)
    nothing = (math.nan, math.nan, math.nan, 0)
    assert Estimate.of(evaluation.Interval(*nothing)) is None
    assert Difference.of(evaluation.Difference(*nothing, math.nan)) is None
    tested = Difference.of(evaluation.Difference(0.1, 0.05, 0.15, 9, 0.01))
    assert tested == Difference(0.1, 0.05, 0.15, 9, 0.01)
    assert tested is not None
    assert tested.significant
    single = Difference.of(evaluation.Difference(0.1, math.nan, math.nan, 1, math.nan))
    assert single == Difference(0.1, None, None, 1, None)
    assert single is not None
    assert not single.significant


@pytest.mark.parametrize("values", [(math.nan, 0.1, 0.2), (0.1, math.inf, 0.2)])
def test_estimates_refuse_what_is_not_finite(values):
    with pytest.raises(CropsError, match="not finite"):
        Estimate(*values, n=3)


def test_coverage_refuses_a_part_larger_than_its_whole():
    with pytest.raises(CropsError, match="larger than its whole"):
        Coverage(queries=5, with_generation=6, samples=10, generated=1)
