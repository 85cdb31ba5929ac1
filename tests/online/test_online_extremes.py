"""Logs in which hardly anything happens: every report prints numbers or a dash with its reason."""

import json
import re
import warnings

import numpy as np
import pytest
from test_online_analyse import DAYS, changed, of_arm, sums_table
from typer.testing import CliRunner

import crops
from crops.cli.app import _print_warning, app
from crops.cli.experiment import OBSERVABLES, loop_page
from crops.config import RunConfig
from crops.errors import CropsError
from crops.online.analysis import analyse
from crops.online.bubble import Measured
from crops.report import Page, render_page
from crops.report.experiment import headline, section

BAD = re.compile(r"\b(nan|inf)\b|[+\N{MINUS SIGN}-](nan|inf)", re.IGNORECASE)


def printed(analysis):
    """All that the report says of an analysis, checked for numbers that are none."""
    part = section(analysis)
    cells = [cell for table in part.tables for row in table.rows for cell in row]
    told = [headline(analysis), part.lead, *cells, *(table.note for table in part.tables)]
    assert not [text for text in told if BAD.search(text)]
    render_page(Page("t", [headline(analysis)], [part]))  # charts refuse what is not finite
    return "\n".join(told)


def rows(table):
    return np.zeros(table.num_rows)


def one(table, at=5):
    values = rows(table)
    values[at] = 1
    return values


CASES = {
    "one click": lambda t: changed(
        t, clicked_searches=one(t), clicks=one(t), plays=one(t), long_plays=rows(t)
    ),
    "no click": lambda t: changed(
        t, clicked_searches=rows(t), clicks=rows(t), plays=rows(t), long_plays=rows(t)
    ),
    "all clicked": lambda t: changed(t, clicked_searches=t["searches"].to_numpy()),
    "one arm clicks": lambda t: changed(t, clicked_searches=of_arm(t, "B")),
    "other arm clicks": lambda t: changed(
        t, clicked_searches=of_arm(t, "A") * (np.arange(t.num_rows) % 3 == 0)
    ),
    "twenty reword": lambda t: changed(t, reformulated=np.arange(t.num_rows) < 20),
    "a player": lambda t: changed(t, plays=one(t), long_plays=one(t)),
    "all the same": lambda t: changed(
        t, searches=rows(t) + 2, clicked_searches=rows(t) + 1, reformulated=rows(t) + 1, plays=rows(t) + 1
    ),
    "no route": lambda t: changed(t, **{name: rows(t) for name in t.column_names if "dense" in name}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("past", ["none", "own", "like it", "other"])
@pytest.mark.parametrize("case", CASES)
def test_every_report_prints_a_number_or_a_dash_and_its_reason(case, past):
    table = CASES[case](sums_table(users=500))
    before = {
        "none": None,
        "own": table,  # the experiment's own days: CUPED explains everything
        "like it": CASES[case](sums_table(users=500, seed=1, days=DAYS[:1])),
        "other": sums_table(users=500, seed=1, days=DAYS[:1]),
    }[past]
    found = analyse(table, "A", ["B"], routes=("dense",), before=before, salts=50, wanted=0.01)
    told = printed(found)
    for one_of in found.findings:
        assert (one_of.effect is None) == (one_of.refused is not None)
        if one_of.refused:
            assert one_of.refused in told
    for why in found.gaps.values():
        assert why in told
    if case == "one click":
        assert "ctr" not in {one_of.metric for one_of in found.false_positives}


@pytest.mark.filterwarnings("error")
def test_a_control_at_nothing_has_no_relative_effect_and_says_so():
    table = sums_table(users=1000)
    found = analyse(CASES["one arm clicks"](table), "A", ["B"], salts=20)
    assert found.of("B", "ctr").verdict == "better"
    assert "relative – (control at 0)" in printed(found)


def test_a_search_log_with_one_click_is_analysed_without_a_warning(tmp_path, write_logs, recwarn):
    impressions = [
        {"user_id": user, "search_id": user, "arm": "AB"[user % 2], "clicked": user == 7}
        for user in range(1, 401)
    ]
    logs = write_logs(tmp_path / "logs", impressions=impressions)
    options = ["--control", "A", "--treatment", "B", "--relevance", "none"]
    ended = CliRunner().invoke(app, ["analyse", str(logs), *options])
    assert ended.exit_code == 0, ended.output
    assert [str(one.message) for one in recwarn if issubclass(one.category, RuntimeWarning)] == []
    assert not BAD.search(ended.output)
    assert "1 of 400 users have any clicked_searches" in " ".join(ended.output.split())
    out = logs.with_name(f"{logs.name}.analyse")
    assert not re.search(r">[^<]*\b(nan|inf)\b", (out / "report.html").read_text())
    json.loads((out / "analysis.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("effect", [0.0, float("nan"), float("inf"), 1e-300])
def test_an_effect_that_nothing_could_find_is_refused(tmp_path, effect):
    for call in (
        lambda: crops.analyse(tmp_path, control="A", treatment=["B"], effect=effect),
        lambda: crops.power(tmp_path, effect=effect),
    ):
        with pytest.raises(CropsError, match="give the relative effect that matters"):
            call()
    with pytest.raises(CropsError, match=r"chance=?\W*nan"):
        crops.power(tmp_path, chance=float("nan"))


def test_a_day_without_a_case_is_a_dash_in_the_loop():
    known = {key: Measured(0.5, 10) for key in OBSERVABLES}
    first = {**known, "recall": Measured(None, 0)}
    second = {key: value for key, value in known.items() if key != "senses"}
    page = loop_page({"baseline": {"2026-01-05": first, "2026-01-06": second}}, RunConfig())
    tables = {table.title: table for part in page.sections for table in part.tables}
    assert tables["True recall@100 of the model"].rows == [["baseline", "–", "50.0"]]
    assert "a dash: no search of that day is such a case" in tables["True recall@100 of the model"].note
    render_page(page)


def test_a_librarys_warning_is_told_in_a_line(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _print_warning
        warnings.warn("precision\nmay be lost", RuntimeWarning, stacklevel=1)
    assert capsys.readouterr().err == "note (RuntimeWarning): precision may be lost\n"
