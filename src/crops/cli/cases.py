"""Side by side: what two models answer to a query, and the evidence behind each answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from crops.labels import Source
from crops.logs import open_logs
from crops.logs.tables import literal
from crops.logs.texts import add_texts
from crops.protocols import Retriever
from crops.report import Hit, QueryCase
from crops.text import query_id

SHOWN = 8
"""Results per column."""
LINES = 3
"""Lines of evidence per result."""


@dataclass(frozen=True)
class CaseQuery:
    """A query to show, and why it was chosen."""

    text: str
    note: str
    need_id: int | None
    """The need behind its searches on the test day; None where they had several."""


def choose_cases(logs: Path, truth: Path, train_day: str, test_day: str) -> list[CaseQuery]:
    """Return three queries of the test day, picked by a fixed rule and not by their results.

    The most searched query that stands for several senses; the most searched query that was also searched on
    the training day and names a single need; and the most searched one that was not.
    """
    with duckdb.connect() as db:
        impressions = _impressions(db, logs)
        db.execute(f"""
            create table events as
            select query, day, search_id, need_id, head, sense
            from (select distinct query, day, search_id from ({impressions}))
            join {_file(truth, "searches")} using (search_id) join {_file(truth, "needs")} using (need_id);
            create table test as
            select query, count(*) as n, count(distinct sense) as senses, count(distinct need_id) as needs,
                   mode(need_id order by need_id) as need_id,
                   query in (select query from events where day = '{train_day}') as seen
            from events where day = '{test_day}' group by query;
        """)
        rules = [
            ("senses > 1", "ambiguous: its searchers meant {senses} different things"),
            ("needs = 1 and seen", "one need, also searched on the training day"),
            ("needs = 1 and not seen", "one need, never searched on the training day"),
        ]
        cases = []
        for rule, note in rules:
            row = db.execute(
                f"select query, senses, need_id from test where {rule} order by n desc, query limit 1"
            ).fetchone()
            if row is not None:
                # What is relevant to an ambiguous query depends on the searcher: it gets topics, not grades.
                cases.append(CaseQuery(row[0], note.format(senses=row[1]), row[2] if row[1] == 1 else None))
        return cases


def _impressions(db: duckdb.DuckDBPyConnection, logs: Path) -> str:
    """Return the SELECT of the impressions, their queries normalised."""
    select = open_logs(logs).sql("search_impressions")
    add_texts(db, f"select query from ({select})")
    return f"select l.* replace (t.query as query) from ({select}) l join texts t on t.raw = l.query"


def _file(folder: Path, name: str) -> str:
    return literal(str(folder / f"{name}.parquet"))


class Evidence:
    """Looks up, for a result, why the training data or the old system knew it."""

    def __init__(self, samples: Path, logs: Path, truth: Path, until_day: str) -> None:
        """Open the mined evidence and the logs up to the training day."""
        self._db = duckdb.connect()
        impressions = _impressions(self._db, logs)
        self._db.execute(f"""
            create view evidence as from {_file(samples, "evidence")};
            create view items as from {_file(samples, "items")};
            create view queries as from {_file(samples, "queries")};
            create view grades as from {_file(truth, "grades")};
            create view topics as select item_id, sense from {_file(truth, "items")}
                join {_file(truth, "needs")} using (need_id);
            create table shown as select distinct query, item_id from ({impressions})
                where stage = 'exposed' and day <= '{until_day}';
        """)

    def __enter__(self) -> Evidence:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def text(self, item: int) -> tuple[str, str]:
        """Return the title of an item, and the rest of its text."""
        title, *rest = self._rows(
            "select ocr_cover, photo_caption, keyword from items where item_id = ?", item
        )[0]
        parts = [str(part) for part in rest if part]
        return (str(title), " · ".join(parts)) if title else (parts[0], " · ".join(parts[1:]))

    def was_shown(self, query: str, item: int) -> bool:
        """Return whether the system had shown the item for this query."""
        return bool(self._rows("select 1 from shown where query = ? and item_id = ? limit 1", query, item))

    def grade(self, need: int | None, item: int) -> int | None:
        """Return the true grade 0..3 of the item for the need; None where the need is not known."""
        if need is None:
            return None
        rows = self._rows("select grade from grades where need_id = ? and item_id = ?", need, item)
        return int(rows[0][0]) if rows else 0

    def topic(self, item: int) -> str | None:
        """Return the sense that the item is about."""
        rows = self._rows("select sense from topics where item_id = ?", item)
        return str(rows[0][0]) if rows else None

    def lines(self, query: str, item: int) -> list[str]:
        """Return what speaks for the pair itself; failing that, the queries whose positive the item is."""
        own = self._own(query, item)
        if own:
            return own[:LINES]
        rows = self._rows(
            """select q.query, e.source, count(*) from evidence e join queries q using (query_id)
               where e.item_id = ? and e.query_id <> ? group by all order by 3 desc, 1 limit ?""",
            item,
            query_id(query),
            LINES - 1,
        )
        return [
            f"no event of this query; {_name(source)} positive of “{text}” ({n}×)" for text, source, n in rows
        ] or ["no event names this item: the model found it by its text alone"]

    def _own(self, query: str, item: int) -> list[str]:
        rows = self._rows(
            """select e.source, count(*), count(distinct e.search_id), min(via.query),
                      max(e.theta)
               from evidence e left join queries via on via.query_id = e.via_query_id
               where e.query_id = ? and e.item_id = ? group by e.source order by e.source desc""",
            query_id(query),
            item,
        )
        return [
            _sentence(Source(source), n, searches, via, theta) for source, n, searches, via, theta in rows
        ]

    def _rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, list(parameters)).fetchall()


def _name(source: int) -> str:
    names = {Source.CLICKED: "clicked", Source.REFORMULATION: "P1", Source.FEED: "P2", Source.KNOWLEDGE: "P3"}
    return names[Source(source)]


def _sentence(source: Source, events: int, searches: int, via: str | None, theta: float | None) -> str:
    sure = "" if theta is None else f", θ = {theta:.2f}"
    if source is Source.REFORMULATION:
        return f"P1: consumed after {searches} of its searches were reworded, e.g. to “{via}”{sure}"
    if source is Source.FEED:
        return f"P2: watched in the feed around {searches} of its searches{sure}"
    return f"clicked in {events} of its searches"


def side_by_side(
    case: CaseQuery,
    before: tuple[str, Retriever],
    after: tuple[str, Retriever],
    evidence: Evidence,
) -> QueryCase:
    """Return the best results of two models for one query.

    Args:
        case: the query.
        before: name and retriever of the reference.
        after: name and retriever of the model to look at.
        evidence: where reasons are looked up.
    """
    lists = [retriever.search([case.text], SHOWN) for _, retriever in (before, after)]
    old = {int(item) for item in lists[0][0][0]}
    columns = []
    for ids, scores in lists:
        hits = zip(ids[0].tolist(), scores[0].tolist(), strict=True)
        columns.append(
            [
                _hit(case, rank, item, score, old, evidence)
                for rank, (item, score) in enumerate(hits, 1)
                if item >= 0
            ]
        )
    return QueryCase(
        query=case.text,
        note=case.note,
        before_name=before[0],
        after_name=after[0],
        before=columns[0],
        after=columns[1],
    )


def _hit(case: CaseQuery, rank: int, item: int, score: float, old: set[int], evidence: Evidence) -> Hit:
    title, text = evidence.text(item)
    return Hit(
        rank=rank,
        title=title,
        text=text,
        score=score,
        grade=evidence.grade(case.need_id, item),
        topic=evidence.topic(item),
        is_new=item not in old,
        never_shown=not evidence.was_shown(case.text, item),
        evidence=evidence.lines(case.text, item),
    )
