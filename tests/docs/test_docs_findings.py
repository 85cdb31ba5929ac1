"""Figures that docs/findings.md and README.md take from the generated pages are those of the pages."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("results-base.md", "results.md")
METRICS = ("CT recall@100", "QR recall@100", "QR recall@100 by truth")
CLAIMS = {"rewordings (P1) add": "P1 adds to the baseline", "the feed (P2) adds": "P2 adds to P1",
          "LLM documents (P3) add": "P3 adds to P1 and P2",
          "label 5 for P1 beats label 4": "P1 at label 5 beats P1 at label 4",
          "graded labels beat binary ones": "Binary labels lose against graded ones",
          "H-InfoNCE beats InfoNCE": "H-InfoNCE finds more than InfoNCE",
          "InfoNCE beats Softmax-CE": "InfoNCE finds more than Softmax-CE"}  # fmt: skip


def rows(page):
    for line in (DOCS / page).read_text().splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def verdicts(page):
    """Ruling and difference by claim and metric, from the verdicts of a generated page."""
    return {(row[0], row[1]): row[2:] for row in rows(page) if len(row) == 4 and row[1] in METRICS}


@pytest.mark.parametrize("told", CLAIMS)
def test_the_differences_of_a_claim(told):
    (row,) = (row for row in rows("findings.md") if row[0] == told)
    for metric, cell in zip(METRICS, row[1:], strict=False):
        for page, figure in zip(PAGES, cell.split(", "), strict=True):
            ruling, why = verdicts(page)[CLAIMS[told], metric]
            assert figure.startswith("**") == (ruling == "reproduced")
            if ruling == "not tested":
                assert figure == "untested"
            else:
                mean = re.match(r"[-+][0-9.]+", why)[0]
                assert float(figure.strip("*").replace("−", "-")) == float(mean)


def test_how_many_rivals_are_beaten():
    (row,) = (row for row in rows("findings.md") if row[0] == "CroPS beats seven rivals")
    for metric, cell in zip(METRICS, row[1:], strict=False):
        beaten = [
            sum(
                claim.startswith("CroPS finds more") and of == metric and ruling == "reproduced"
                for (claim, of), (ruling, _) in verdicts(page).items()
            )
            for page in PAGES
        ]
        assert [int(number) for number in re.findall("[0-9]+", cell)] == beaten


@pytest.mark.parametrize("page", PAGES)
def test_readme_counts_the_verdicts(page):
    headline = (DOCS / page).read_text().splitlines()[2]
    counts = {ruling: int(number) for number, ruling in re.findall(r"(\d+) ([a-z ]+?)[,.]", headline)}
    (row,) = (row for row in rows("../README.md") if row[-1] == f"[tables](docs/{page})")
    left = counts["inconclusive"] + counts.get("no headroom", 0) + counts["not tested"]
    assert [int(cell) for cell in row[2:5]] == [counts["reproduced"], counts["not reproduced"], left]


def test_readme_shows_the_means_and_differences_of_the_generated_table():
    found = list(rows("results-base.md"))
    (start,) = (place for place, row in enumerate(found) if row[0] == "baseline (FS-LR)" and "<br>" in row[1])
    head = found[start - 2]
    columns = [
        next(place for place, name in enumerate(head) if name.startswith(title))
        for title in ("CT recall@100 (", "QR, by truth (", "true recall@100 (", "QR recall@100, by theta (")
    ]
    table = {row[0]: row for row in reversed(found[start:]) if len(row) == len(head) and "<br>" in row[1]}
    expected = []
    for name in ("baseline (FS-LR)", "+ P1", "+ P2", "+ P3 = CroPS", "ours: the recipe `recommended`"):
        cells = [table[name][column].split("<br>") for column in columns]
        changed = name != "baseline (FS-LR)"
        expected.append([f"{cell[0]} ({cell[2]})" if changed else cell[0] for cell in cells])
    readme = list(rows("../README.md"))
    (place,) = (place for place, row in enumerate(readme) if row[0] == "trained on")
    assert [row[1:] for row in readme[place + 1 : place + 6]] == expected
