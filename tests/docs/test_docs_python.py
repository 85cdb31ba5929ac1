"""The Python code of the pages runs as it stands there, page by page, in a folder with what it names."""

import re
from pathlib import Path

import pytest
from sitegen.repository import ROOT

import crops

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:python|py)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CODE = {page.relative_to(ROOT).as_posix(): BLOCK.findall(page.read_text()) for page in PAGES}
DAY, NOON = 86_400_000_000, 1_767_614_400_000_000  # 2026-01-05
TOPICS = {"plants": "water a ficus", "music": "tune a guitar", "food": "bake sourdough bread"}


def make_logs(write_logs, folder):
    """Two days on which twelve people search for each topic and click its first items."""
    items = [
        {
            "item_id": 100 * topic + n,
            "ocr_cover": f"how to {words}, part {n}",
            "keyword": category,
            "category": category,
            "author_id": n,
            "uploaded_at": NOON - 2 * DAY,
        }
        for topic, (category, words) in enumerate(TOPICS.items(), 1)
        for n in range(1, 15)
    ]
    impressions = [
        {
            "user_id": user,
            "search_id": 1000 * day + 100 * topic + user,
            "query": query,
            "searched_at": NOON + day * DAY + user * 60_000_000 + topic,
            "item_id": 100 * wanted + n,
            "rank": n + 5 * (wanted != topic),
            "clicked": wanted == topic and n < 3,
        }
        for day in (0, 1)
        for topic, query in enumerate(TOPICS.values(), 1)
        for user in range(1, 13)
        for wanted in (topic, 1 + topic % len(TOPICS))
        for n in range(1, 6)
    ]
    write_logs(folder, items, impressions)


def prepare(page):
    """Make what a page calls `checked`, `mined`, `model` (for encoders a two-tower) and `out/index`."""
    Path("pairs.csv").write_text(
        "query,text,relevant\n"
        + "".join(
            f"{query},how to {words},{int(query == words)}\n"
            for query in TOPICS.values()
            for words in TOPICS.values()
        )
    )
    crops.check("logs", "checked")
    crops.mine("checked/accepted", "mined", day="2026-01-06", relevance="none")
    encoder = "two_tower" if page.endswith("encoders.md") else "static"
    crops.train("mined", "model", encoder=encoder, steps=2)
    crops.index("model", "logs", out="out/index")


@pytest.mark.parametrize("page", [page for page, blocks in CODE.items() if blocks])
def test_the_code_of_a_page_runs(page, write_logs, tmp_path, monkeypatch):
    assert {"README.md", "docs/getting-started.md", "docs/losses.md"} <= {p for p, b in CODE.items() if b}
    monkeypatch.chdir(tmp_path)
    code = "".join(CODE[page])
    if '"logs"' in code:
        make_logs(write_logs, tmp_path / "logs")
    elif re.search(r'"(mined|model|checked/accepted)"', code):
        make_logs(write_logs, tmp_path / "logs")
        prepare(page)
    space = {"__name__": "__page__"}
    for number, block in enumerate(CODE[page], 1):
        exec(compile(block, f"{page}, block {number}", "exec"), space)
