"""Writes small synthetic logs in the shapes that search logs come in: `python make_logs.py KIND FOLDER`.

One seeded world for all kinds: a shop of 120 items. Who wants a desk lamp first asks for "lamp", sees other
lamps, and often says it better within a minute: what the first query never showed is what CroPS learns from.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

GOODS = {
    "lamp": ("desk", "floor", "camping", "night"),
    "shoes": ("running", "hiking", "dance", "rain"),
    "bag": ("laptop", "travel", "beach", "gym"),
    "chair": ("office", "garden", "rocking", "folding"),
    "knife": ("bread", "pocket", "cheese", "paring"),
    "cup": ("coffee", "egg", "measuring", "thermos"),
    "table": ("dining", "coffee", "picnic", "console"),
    "brush": ("paint", "hair", "tooth", "shaving"),
    "clock": ("alarm", "wall", "chess", "cuckoo"),
    "glove": ("boxing", "oven", "ski", "baseball"),
}
MAKES = ("oak", "steel", "nordic")
START = 1_767_571_200
"""2026-01-05 00:00:00 UTC."""
DAYS, NEEDS, SHOWN = 3, 30, 4


@dataclass(frozen=True)
class Search:
    """A query with what was shown and clicked."""

    id: int
    user: int
    at: int
    """Seconds since 1970 UTC."""
    query: str
    shown: tuple[int, ...]
    clicked: tuple[int, ...]


ITEMS = {
    1_001 + n: (f"{make} {kind} {thing}", thing)
    for n, (thing, kind, make) in enumerate(
        (t, k, m) for t, kinds in GOODS.items() for k in kinds for m in MAKES
    )
}
"""Item id -> title and category."""


def searches(seed: int = 0) -> list[Search]:
    """Return the searches of three days in the order of time: 30 needs a day, most of them asked twice."""
    rng, found = random.Random(seed), []
    for day in range(DAYS):
        for need in range(NEEDS):
            thing = rng.choice(list(GOODS))
            kind = rng.choice(GOODS[thing])
            wanted = [item for item, (title, _) in ITEMS.items() if f"{kind} {thing}" in title]
            others = [
                item for item, (_, category) in ITEMS.items() if category == thing and item not in wanted
            ]
            at, user = START + day * 86_400 + need * 2_400 + rng.randrange(900), rng.randrange(1, 25)
            first = rng.sample(others, SHOWN)
            found.append((at, user, thing, first, rng.sample(first, rng.random() < 0.3)))
            if rng.random() < 0.8:
                second = rng.sample([*wanted, *rng.sample(others, SHOWN - len(wanted))], SHOWN)
                clicks = [item for item in second if item in wanted and rng.random() < 0.7]
                found.append((at + rng.randrange(15, 60), user, f"{kind} {thing}", second, clicks))
    rows = enumerate(sorted(found), 5_001)
    return [
        Search(n, user, at, query, tuple(shown), tuple(clicks))
        for n, (at, user, query, shown, clicks) in rows
    ]


def watched(seed: int = 1) -> Iterable[tuple[int, int, int, int]]:
    """Yield user, item, seconds since 1970 and seconds played of a feed after searches."""
    rng = random.Random(seed)
    for one in searches():
        of_category = [item for item, (_, category) in ITEMS.items() if category == ITEMS[one.shown[0]][1]]
        yield one.user, rng.choice(of_category), one.at + rng.randrange(600, 3_000), rng.randrange(1, 40)


def _csv(path: Path, rows: Iterable[Sequence[Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(rows)


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _tokens(text: str) -> list[int]:
    """Return words as ids, the same for the same word."""
    words = sorted({word for title, _ in ITEMS.values() for word in title.split()})
    return [words.index(word) + 100 for word in text.split()]


def impressions(folder: Path) -> None:
    """A table of impressions as pandas writes it: its index first, users as floats."""
    rows: list[Sequence[Any]] = [
        ("", "user_id", "query", "timestamp", "item_id", "title", "position", "clicked")
    ]
    for one in searches():
        for place, item in enumerate(one.shown):
            at, clicked = _iso(one.at), item in one.clicked
            rows.append((len(rows) - 1, f"{one.user}.0", one.query, at, item, ITEMS[item][0], place, clicked))
    _csv(folder / "impressions.csv", rows)


def events(folder: Path) -> None:
    """One table of events of several kinds; only the search says the query."""
    rows: list[dict[str, Any]] = []
    for one in searches():
        base = {"visitor_id": f"v{one.user}", "search_id": f"s{one.id}"}
        rows.append({"event_name": "search", "timestamp": one.at * 1_000, **base, "search_term": one.query})
        for n, item in enumerate(one.shown):
            product = {"product": {"id": f"p{item}", "name": ITEMS[item][0], "category": ITEMS[item][1]}}
            at = one.at * 1_000 + 300
            rows.append({"event_name": "impression", "timestamp": at, **base, "position": n + 1, **product})
            if item in one.clicked:
                rows.append(
                    {"event_name": "click", "timestamp": at + 4_000, **base, "position": n + 1, **product}
                )
    _lines(folder / "events.jsonl", rows)


def click_lists(folder: Path) -> None:
    """A search in each row, with lists in cells, no header, and seconds since the log began."""
    rows = [
        (one.id, one.user, one.at - START, one.query, list(one.shown), list(one.clicked))
        for one in searches()
    ]
    _csv(folder / "searches.tsv", rows, "\t")
    _csv(folder / "items.csv", [("id", "title"), *((item, title) for item, (title, _) in ITEMS.items())])


def five_columns(folder: Path) -> None:
    """Query, user, time, item and click, and nothing else."""
    rows = (
        (one.query, one.user, one.at, item, int(item in one.clicked))
        for one in searches()
        for item in one.shown
    )
    _csv(folder / "log.csv", [("query", "user", "time", "item", "click"), *rows])


def ubi(folder: Path) -> None:
    """The two indexes of User Behavior Insights as lines of JSON."""
    queries, actions = [], []
    for one in searches():
        base = {"query_id": f"q{one.id}", "client_id": f"c{one.user}"}
        hits = [str(item) for item in one.shown]
        queries.append(
            {**base, "timestamp": _iso(one.at), "user_query": one.query, "query_response_hit_ids": hits}
        )
        for n, item in enumerate(one.shown, 1):
            for action in ("impression", *(["click"] if item in one.clicked else [])):
                shown = {"object_id": str(item), "name": ITEMS[item][0]}
                attributes = {"object": shown, "position": {"ordinal": n}}
                event = {"action_name": action, "timestamp": _iso(one.at + 5), "event_attributes": attributes}
                actions.append({**base, **event})
    _lines(folder / "ubi_queries.jsonl", queries)
    _lines(folder / "ubi_events.jsonl", actions)


def kuaisar(folder: Path) -> None:
    """Files named and shaped as those of KuaiSAR: texts are token ids."""
    rows: list[Sequence[Any]] = [
        (
            "user_id",
            "search_session_id",
            "search_session_timestamp",
            "keyword",
            "item_id",
            "click_cnt",
            "item_type",
        )
    ]
    for one in searches():
        for item in one.shown:
            clicks = int(item in one.clicked)
            rows.append((one.user, one.id, one.at * 1_000, _tokens(one.query), item, clicks, "VIDEO"))
    _csv(folder / "src_inter.csv", rows)
    feed = [(user, item, at * 1_000, play * 1_000, 30_000, 1, 0) for user, item, at, play in watched()]
    columns = ("user_id", "item_id", "timestamp", "playing_time", "duration_ms", "click", "like")
    _csv(folder / "rec_inter.csv", [columns, *feed])
    names = ("item_id", "caption", "author_id", "item_type", "upload_time", "first_level_category_name_en")
    items = (
        (item, _tokens(title), 1, "VIDEO", "2025-12-01", category)
        for item, (title, category) in ITEMS.items()
    )
    _csv(folder / "item_features.csv", [names, *items])


def jdsearch(folder: Path) -> None:
    """Files shaped as those of JDsearch: token ids, lists parted by `_`, no clock."""

    def joined(values: Iterable[Any]) -> str:
        return "_".join(map(str, values))

    rows: list[Sequence[Any]] = [("query", "candidate_wid_list", "candidate_label_list")]
    for one in searches():
        labels = ((2.0 if item % 2 else 1.0) if item in one.clicked else 0.0 for item in one.shown)
        rows.append((joined(_tokens(one.query)), joined(one.shown), joined(labels)))
    _csv(folder / "user_behavior_data.txt", rows, "\t")
    names = (
        "wid",
        "name",
        "brand_name",
        "cate_name_1",
        "cate_name_2",
        "cate_name_3",
        "cate_name_4",
        "shop_id",
        "cate_id_1",
    )
    items = (
        (item, joined(_tokens(title)), "", joined(_tokens(category)), "", "", "", 1, category)
        for item, (title, category) in ITEMS.items()
    )
    _csv(folder / "product_meta_data.txt", [names, *items], "\t")


def ga4(folder: Path) -> None:
    """Events of Google Analytics 4 as BigQuery exports them."""
    rows: list[dict[str, Any]] = []

    def event(one: Search, name: str, seconds: int, items: Sequence[int]) -> dict[str, Any]:
        said = {"search_term": one.query, "ga_session_id": str(one.id // 2)}
        return {
            "event_name": name,
            "event_timestamp": (one.at + seconds) * 1_000_000,
            "user_pseudo_id": f"{one.user}.{one.user}",
            "event_params": [{"key": key, "value": {"string_value": text}} for key, text in said.items()],
            "items": [
                {"item_id": str(n), "item_name": ITEMS[n][0], "item_category": ITEMS[n][1]} for n in items
            ],
        }

    for one in searches():
        rows.append(event(one, "view_item_list", 0, one.shown))
        rows += (event(one, "select_item", 5, [item]) for item in one.clicked)
    for user, item, at, _ in watched():
        rows.append(event(Search(0, user, at, "", (), ()), "view_item", 0, [item]))
    _lines(folder / "events_20260105.json", rows)


KINDS: dict[str, Callable[[Path], None]] = {
    one.__name__: one for one in (impressions, events, click_lists, five_columns, ubi, kuaisar, jdsearch, ga4)
}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in KINDS:
        sys.exit(f"usage: python make_logs.py {{{','.join(KINDS)}}} FOLDER")
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    KINDS[sys.argv[1]](target)
