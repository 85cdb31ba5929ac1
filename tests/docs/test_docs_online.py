"""The tables of docs/online.md say what docs/online/effects.csv holds, which experiments wrote."""

import csv
import re
import statistics
from collections import defaultdict

import pytest

COLUMNS = ("satisfied", "ctr", "lpr", "rqr", "senses", "ratio_show:dense")
ARMS = {
    "+ P1": "+p1",
    "+ P2": "+p2",
    "CroPS": "crops",
    "click queries": "click_queries",
    "expanded": "expanded",
    "recommended": "recommended",
}


@pytest.fixture(scope="module")
def effects(request):
    """Rows by (experiment, arm, metric), of paired worlds, by seed."""
    with (request.config.rootpath / "docs/online/effects.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["seed"]))
    found = defaultdict(list)
    for row in rows:
        if row["kind"] == "paired":
            found[row["experiment"], row["arm"], row["metric"]].append(row)
    return found


def table(page, title):
    """Return the rows of the table whose first heading is `title`, by name."""
    lines = page[page.index(f"| {title} |") :].split("\n\n")[0].splitlines()[2:]
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name: cells for name, *cells in rows}


@pytest.mark.parametrize(
    ("experiment", "title"), [("default", "paired worlds"), ("strong", "paired worlds, strong bubble")]
)
def test_every_effect_that_is_told_was_measured(effects, request, experiment, title):
    rows = table((request.config.rootpath / "docs/online.md").read_text(), title)
    levels = rows.pop("baseline: the level")
    for metric, cell in zip(COLUMNS, levels, strict=True):
        measured = statistics.mean(float(one["control"]) for one in effects[experiment, "crops", metric])
        digits = len(cell.partition(".")[2])
        assert float(cell) == pytest.approx(measured, abs=0.51 * 10**-digits)
    for name, cells in rows.items():
        for metric, cell in zip(COLUMNS, cells, strict=True):
            own = effects[experiment, ARMS[name], metric]
            assert len(own) == 3, (name, metric)
            mean, *each = (float(number.replace("−", "-")) for number in re.findall(r"[+−]?\d+\.\d+", cell))
            values = [float(one["effect"]) for one in own]
            # numbers of the page are rounded to two digits
            assert mean == pytest.approx(statistics.mean(values), abs=0.0051), (name, metric)
            assert not each or each == pytest.approx(values, abs=0.0051), (name, metric)
            lows, highs = ([float(one[end]) for one in own] for end in ("low", "high"))
            assert ("**" in cell) == (min(lows) > 0 or max(highs) < 0), (name, metric)
