"""Figures, the map, and the four forms of a report."""

import csv
import io
import json
from xml.etree import ElementTree

import pytest
from handmade_cells import write_cell

from crops.config import RunConfig, load_config
from crops.report import Figure, Line, Page, Section, Table
from crops.report.page import markdown
from crops.reproduce import produce
from crops.reproduce.design import CT, QR, Design, build_world
from crops.reproduce.produce import (
    FACTORS,
    Produced,
    map_cells,
    map_sections,
    misplaced,
    write_all,
    write_docs,
)
from crops.reproduce.run import above, precision_section, temperature_section
from crops.reproduce.tables import Measured, cells_csv, read_measured
from crops.reproduce.verdicts import Verdict, verdict_section


def test_temperature_is_the_mean_over_worlds(tmp_path):
    """From .05 to .03 in one world, to .041 in the other, within 100 steps; 100 more are flat."""
    cells = []
    for seed, end in ((0, 0.03), (1, 0.041)):
        fall = [0.05 + (end - 0.05) * i / 100 for i in range(100)] + [end] * 100
        cells.append(write_cell(tmp_path, "crops", seed, {CT: [0.5]}, log=fall))
    section = temperature_section({"CroPS": cells})
    # within 1 %: from .0303 on, place 99 at .0002 a step; from .04141 on, place 96 at .00009 a step
    assert section.tables[0].rows == [
        ["CroPS, seed 0", "0.0500", "0.0300", "step 100"],
        ["CroPS, seed 1", "0.0500", "0.0410", "step 97"],
    ]
    (line,) = section.figures[0].series
    assert len(line.x) == 60
    assert line.y[-1] == pytest.approx(0.0355)
    assert "0.05 to about 0.03" in section.lead


def test_precision_is_told_by_seed_and_drawn_as_mean(tmp_path):
    folders = []
    for seed, right in ((0, 60), (1, 80)):
        rows = [
            {"source": "P1", "alpha": None, "pairs": 100, "share": right / 100, "for_query": right / 80},
            {"source": "P3", "alpha": 0.6, "pairs": 0, "share": None},  # of before "for_query"
        ]
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "precision.json").write_text(json.dumps(rows))
        folders.append(tmp_path / str(seed))
    section = precision_section(folders)
    assert section.tables[0].rows[0] == ["P1", "all found", "100", "60.0, 80.0", "75.0, 100.0"]
    assert section.tables[0].rows[1] == ["P3", "theta above 0.6", "0", "–, –", "–, –"]
    assert [bar.value for bar in section.figures[0].series] == [pytest.approx(0.7)]
    assert "81.3 % very relevant" in section.lead
    # it is of all that theta would reject
    wide = above(Design(load_config()).cell(build_world("default", "tiny", 0), "crops"), 0.0)
    assert wide.run.engine.reformulation.relevance == wide.run.engine.feed.relevance == 0
    assert wide.run.engine.reformulation.similarity == load_config().engine.reformulation.similarity


def test_map_changes_one_factor_at_a_time_and_shares_the_default(tmp_path):
    """Each factor has its default among its values: the same cells as Table 3's."""
    documents = tmp_path / "d.jsonl"
    documents.write_text("".join(f'{{"query": "q{i}", "ocr_cover": "x"}}\n' for i in range(4)))
    design = Design(load_config(), {}, {"": documents})
    cells, files = map_cells(design, "tiny", [0], tmp_path)
    default = {cell.name() for cell in design.cells("table3", build_world("default", "tiny", 0))}
    for factor in FACTORS:
        at_default = [
            value for value in factor.values if {c.name() for c in cells[factor.name, value]} <= default
        ]
        assert len(at_default) == 1, factor.name
    # of the LLM's factor only CroPS has cells of its own: the others do not learn from what it writes
    assert len({c.name() for own in cells.values() for c in own}) == 4 * (1 + 2 + 3 + 2 + 1 + 3 + 2) + 1 * 2
    weak = cells["bubble", "weak"][0].world
    assert weak == build_world("weak", "tiny", 0)  # the world of `--worlds weak`, made once
    assert set(files) == {c.generated for own in cells.values() for c in own}


def test_misplaced_documents_keep_their_texts_and_lose_their_queries(tmp_path):
    rows = [{"query": f"q{i}", "ocr_cover": f"t{i}"} for i in range(10)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for share, wrong in ((0.5, 5), (1.0, 10)):
        found = [
            json.loads(line)
            for line in misplaced(tmp_path / "d.jsonl", share, tmp_path).read_text().splitlines()
        ]
        assert sum(row["query"][1:] != row["ocr_cover"][1:] for row in found) == wrong
        assert sorted(row["query"] for row in found) == sorted(row["query"] for row in rows)


def test_map_tells_the_lift_of_each_source(tmp_path, monkeypatch):
    """P1 adds 2 points, P2 1, P3 takes 3; a factor value without all of its cells has no figure."""
    monkeypatch.setattr(produce, "FACTORS", [factor for factor in FACTORS if factor.name == "bubble"])
    design = Design(load_config())
    cells, _ = map_cells(design, "tiny", [0], tmp_path)
    measured = []
    for cell in cells["bubble", "default"]:
        gain = {"fs_lr": 0.0, "plus_p1": 0.02, "plus_p2": 0.03, "crops": 0.0}[cell.method]
        made = write_cell(tmp_path, cell.method, 0, {CT: [0.5 + gain + 0.01 * (i % 3) for i in range(30)]})
        made.folder.rename(made.folder.with_name(cell.name()))
        measured.append(read_measured(made.folder.with_name(cell.name())))
    (section,) = map_sections(cells, measured, [0])
    assert section.tables[0].head[:5] == ["bubble", "CT: queries", "P1: CT", "P2: CT", "P3: CT"]
    rows = {row[0]: [cell.split("\n")[0] for cell in row[1:5]] for row in section.tables[0].rows}
    assert rows == {"weak": ["–"] * 4, "default": ["30", "+2.0*", "+1.0*", "-3.0*"], "strong": ["–"] * 4}
    assert {len(row) for row in section.tables[0].rows} == {len(section.tables[0].head)}
    assert section.figures[0].x_label == "weak, default, strong"  # an axis of names has numbers for ticks
    assert [(line.name, list(line.y)) for line in section.figures[0].series] == [
        ("P1", [pytest.approx(2.0)]),
        ("P2", [pytest.approx(1.0)]),
        ("P3", [pytest.approx(-3.0)]),
    ]


def hostile():
    table = Table("T", ["method", "CT"], [["<script>a|b", "1.0\n[0, 2]"]], "note", 0)
    return Page("R", ["H."], [Section("S", "lead", [table])], [("size", "tiny")], ["a note"])


def test_four_forms_of_one_content(tmp_path):
    verdict = Verdict("A beats B", "CT", "reproduced", "+1", ["a-0", "b-0"])
    write_all(Produced(hostile(), {"default": [verdict]}, [], {}), tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "results.md").read_text()
    assert "&lt;script&gt;a|b" in page
    assert "<script>" not in page
    assert "<small>[0, 2]</small>" in page
    assert {"# R", "| --- | --- |", "- a note", "- size: tiny"} <= set(markdown(hostile()).splitlines())
    assert r"| <script>a\|b | 1.0<br>[0, 2] |" in text
    tables = json.loads((tmp_path / "tables.json").read_text())["sections"]["S"]
    assert tables[0]["rows"][0][1] == "1.0\n[0, 2]"
    told = json.loads((tmp_path / "verdicts.json").read_text())["default"][0]
    assert (told["ruling"], told["cells"]) == ("reproduced", ["a-0", "b-0"])
    online = Verdict("C", "", "not tested", "elsewhere", [])
    rulings, cells = verdict_section("default", [verdict, online]).tables
    assert rulings.rows == [["A beats B", "CT", "reproduced", "+1"], ["C", "–", "not tested", "elsewhere"]]
    assert cells.rows == [["A beats B", "CT", "a-0\nb-0"]]
    section = verdict_section("default", [verdict, online])
    page = tmp_path / "docs" / "results.md"
    write_docs(Produced(Page("R", [], [section]), {"default": [verdict, online]}, [], {}), page)
    assert "| A beats B | CT | reproduced | +1 |" in page.read_text()
    assert "a-0" not in page.read_text()  # what nobody reads is a download
    first, second = csv.DictReader(page.with_name("results").joinpath("verdicts.csv").open())
    assert (first["world"], first["verdict"], first["cells"]) == ("default", "reproduced", "a-0 b-0")
    assert (second["claim"], second["cells"]) == ("C", "")


def test_docs_have_the_curves_as_files_that_stand_alone(tmp_path):
    curve = Figure("P1 <by> factor", [Line("P1", [0.0, 1.0], [1.0, 2.0], 1)], "factor")
    empty = Figure("nothing", [])
    report = Page("R", [], [Section("A"), Section("S", "", [], [curve, empty])])
    page, stale = tmp_path / "map.md", tmp_path / "map" / "9-9.svg"
    stale.parent.mkdir()
    stale.write_text("of an earlier run")
    write_docs(Produced(report, {}, [], {}), page)
    assert "![P1 <by> factor](map/2-1.svg)" in page.read_text().splitlines()
    assert sorted(file.name for file in stale.parent.iterdir()) == ["2-1.svg", "cells.csv"]
    assert page.read_text().splitlines()[-1].endswith("[cells.csv](map/cells.csv)")
    root = ElementTree.parse(stale.with_name("2-1.svg")).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "P1 <by> factor"
    style = root.findtext("{http://www.w3.org/2000/svg}style")
    # the colours that its classes name, and nothing of the page around it
    assert all(rule in style for rule in ("--t1:", ".tone-1 {", ".chart .line {"))
    assert "main" not in style
    assert "Drawn in the page: P1 <by> factor." in markdown(report).splitlines()


def test_the_csv_has_each_cell_with_the_settings_that_are_not_the_defaults(tmp_path):
    settings = RunConfig().model_dump(mode="json")
    settings["seed"], settings["platform"]["size"] = 1, "base"
    settings["platform"]["world"] = "/home/me/judged"
    facts = dict.fromkeys(("world", "size", "encoder", "validated", "code", "platform", "test_day"), "x")
    facts |= {"method": "dpr", "seed": 1, "encoder": "/home/me/model", "settings": settings}
    facts["point"] = {"docs_per_source": 1}
    facts |= {"p3_coverage": {"share_of_queries": 0.25}, "metrics": {CT: {"mean": 0.5, "n": 7}}}
    trained = Measured(tmp_path / "dpr-1", facts | {"training": {"cpu_seconds": 3.5}}, "dpr", 1, 0)
    bm25 = Measured(tmp_path / "bm25-1", facts | {"method": "bm25", "training": {}}, "bm25", 1, 0)
    first, second = csv.DictReader(io.StringIO(cells_csv([trained, bm25])))
    assert (first["cell"], first["cpu_seconds"]) == ("bm25-1", "")
    assert (second["cell"], second["method"], second["cpu_seconds"]) == ("dpr-1", "dpr", "3.5")
    assert json.loads(second["settings"]) == {"seed": 1, "platform.size": "base", "platform.world": "judged"}
    assert second["encoder"] == "model"
    assert json.loads(second["point"]) == {"docs_per_source": 1}
    assert (second["p3_share_of_queries"], second[CT], second[f"n {CT}"]) == ("0.25", "0.5", "7")
    assert (second[QR], second[f"n {QR}"]) == ("", "")
