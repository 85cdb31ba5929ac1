"""`crops judge report`: sheets in, agreement and grades by source out."""

import csv
import json

import pytest

from crops.cli.llm import judge_report
from crops.errors import CropsError
from crops.evaluation.raters import COLUMNS
from crops.labels import Source

SOURCES = {"0001": Source.CLICKED, "0002": Source.KNOWLEDGE, "0003": Source.FEED | Source.REFORMULATION}


def sheet(path, grades):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((pair, "fig", 30, "<b>title</b>", "", "", grade) for pair, grade in grades.items())
    return path


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "sheet.key.csv"
    path.write_text("pair,sources\n" + "".join(f"{pair},{int(s)}\n" for pair, s in SOURCES.items()))
    return path


def test_report_by_hand(tmp_path, key):
    ann = sheet(tmp_path / "ann.csv", {"0001": "very relevant", "0002": 1, "0003": 0})
    bob = sheet(tmp_path / "bob.csv", {"0001": 2, "0002": 0, "0003": 0})
    llm = sheet(tmp_path / "llm.csv", {"0001": 2, "0002": 2, "0003": 0})

    found = judge_report([ann, bob], key=key, out=tmp_path / "out", llm=llm)

    # The lower of two middle grades: 2, 0, 0.
    people = {row["name"]: row["counts"] for row in found["people"]}
    assert people == {"clicks": (0, 0, 1), "P1": (1, 0, 0), "P2": (1, 0, 0), "P3": (1, 0, 0)}
    assert {row["name"]: row["counts"] for row in found["llm"]}["P3"] == (0, 0, 1)
    first, second = found["agreement"]
    # 2 of 3 equal; chance: 0: 1/3 * 2/3, 2: 1/3 * 1/3 = 1/3; kappa = (2/3 - 1/3) / (2/3) = .5.
    assert (first["names"], first["pairs"], first["same"]) == ("ann, bob", 3, pytest.approx(2 / 3))
    assert first["kappa"] == pytest.approx(0.5)
    # People 2, 0, 0 and the LLM 2, 2, 0: chance 1/3 * 2/3 + 2/3 * 1/3 = 4/9; (2/3 - 4/9) / (5/9) = .4.
    assert second["names"] == "people, the LLM"
    assert second["kappa"] == pytest.approx(0.4)
    saved = json.loads((tmp_path / "out" / "judge.json").read_text())
    assert saved["facts"][0] == ["raters", "ann, bob"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "81.3 %" in page
    assert "ann, bob" in page


def test_wilson_interval(tmp_path, key):
    found = judge_report([sheet(tmp_path / "ann.csv", {"0001": 2})], key=key, out=tmp_path / "out")
    (row,) = found["people"]
    assert (row["low"], row["high"]) == (None, None)
    assert found["headline"][0].endswith("of 1 pairs are relevant or better (no interval below 10 pairs).")
    key.write_text("pair,sources\n" + "".join(f"{n:04},{int(Source.CLICKED)}\n" for n in range(10)))
    ten = sheet(tmp_path / "ten.csv", {f"{n:04}": 2 for n in range(10)})
    (row,) = judge_report([ten], key=key, out=tmp_path / "out")["people"]
    # Wilson, 10 of 10: low = 1 / (1 + z^2 / 10) with z = 1.959964.
    low = pytest.approx(1 / (1 + 1.959964**2 / 10), abs=1e-6)
    assert (row["low"], row["high"]) == (low, pytest.approx(1.0))
    assert found["agreement"] == []
    assert "one rater" in dict(found["facts"]).values()


def test_two_sheets_of_one_name_and_foreign_pairs_are_refused(tmp_path, key):
    (tmp_path / "a").mkdir()
    first, second = sheet(tmp_path / "ann.csv", {"0001": 2}), sheet(tmp_path / "a" / "ann.csv", {"0001": 2})
    with pytest.raises(CropsError, match="same file name"):
        judge_report([first, second], key=key, out=tmp_path / "out")
    with pytest.raises(CropsError, match="knows no pair 0009"):
        judge_report([sheet(tmp_path / "eve.csv", {"0009": 1})], key=key, out=tmp_path / "out")
