"""Side by side: what two models answer to a query, and the evidence behind each answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb

from crops.engine.backend import DuckDBBackend, id_sql
from crops.engine.disclosure import Trail, tell_trails, told_queries_sql
from crops.engine.events import load_events
from crops.engine.mined import name_searchers, read_mined
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
SIMULATED_USERS = 5
"""What is told of a simulation stands for this many users: they are nobody."""


@dataclass(frozen=True)
class CaseQuery:
    """A query to show, and why it was chosen."""

    text: str
    note: str
    need_id: int | None
    """The need behind its searches on the test day; None where they had several."""


def choose_cases(
    logs: Path, truth: Path, train_day: str, test_day: str, k: int = SIMULATED_USERS
) -> list[CaseQuery]:
    """Return three queries of the test day, picked by a fixed rule and not by their results.

    The most searched query that stands for several senses; the most searched query that was also searched on
    the training day and names a single need; and the most searched one that was not: of those that at least k
    people searched on the days of the logs, so there may be fewer than three.
    """
    with duckdb.connect() as db:
        impressions = _impressions(db, logs)
        db.execute(f"""
            create table events as
            select query, day, search_id, user_id, need_id, head, sense
            from (select distinct query, day, search_id, user_id from ({impressions}))
            join {_file(truth, "searches")} using (search_id) join {_file(truth, "needs")} using (need_id);
            create table test as
            select query, count(*) as n, count(distinct sense) as senses, count(distinct need_id) as needs,
                   mode(need_id order by need_id) as need_id,
                   query in (select query from events where day = '{train_day}') as seen
            from events where day = '{test_day}' and query in (
                select query from events group by query having count(distinct user_id) >= {k}
            ) group by query;
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

    def __init__(
        self, samples: Path, logs: Path, truth: Path, until_day: str, k: int = SIMULATED_USERS
    ) -> None:
        """Open the mined evidence and the logs up to the training day; what is told stands for k people."""
        self._k = k
        mined, found = read_mined(samples), open_logs(logs)
        self._db = DuckDBBackend(mined.config.memory)
        load_events(self._db, found, [day for day in found.search_days if day <= until_day], keep=False)
        self._db.table(
            "shown",
            "select distinct group_id as query_id, item_id from impressions "
            f"where source in ({Source.CLICKED.value}, {Source.EXPOSED.value})",
        )
        self._db.drop("queries")  # the mining has its own
        mined.open(self._db)
        name_searchers(self._db, mined.open_logs(logs))
        self._db.table("asked", told_queries_sql(k))
        self._db.table("own", "select e.* from evidence e join asked a on a.query_id = e.query_id")
        tell_trails(self._db, mined, k)
        self._db.view("grades", f"from {_file(truth, 'grades')}")
        topics = f"{_file(truth, 'items')} join {_file(truth, 'needs')} using (need_id)"
        self._db.view("topics", f"select item_id, sense from {topics}")

    def __enter__(self) -> Evidence:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.__exit__(None, None, None)

    def text(self, item: int) -> tuple[str, str]:
        """Return the title of an item, and the rest of its text."""
        row = self._db.rows(f"select ocr_cover, photo_caption, keyword from items where item_id = {item}")[0]
        title, *parts = [str(part) for part in row.values() if part]
        return title, " · ".join(parts)

    def was_shown(self, query: str, item: int) -> bool:
        """Return whether the system had shown the item for this query."""
        where = f"query_id = {id_sql(query_id(query))} and item_id = {item}"
        return bool(self._db.rows(f"select 1 from shown where {where} limit 1"))

    def grade(self, need: int | None, item: int) -> int | None:
        """Return the true grade 0..3 of the item for the need; None where the need is not known."""
        if need is None:
            return None
        rows = self._db.rows(f"select grade from grades where need_id = {need} and item_id = {item}")
        return int(rows[0]["grade"]) if rows else 0

    def topic(self, item: int) -> str | None:
        """Return the sense that the item is about."""
        rows = self._db.rows(f"select sense from topics where item_id = {item}")
        return str(rows[0]["sense"]) if rows else None

    def lines(self, query: str, item: int) -> list[str]:
        """Return what speaks for the pair itself; failing that, the queries whose positive the item is."""
        own = self._db.rows(
            f"select * from trails where query_id = {id_sql(query_id(query))} and item_id = {item} "
            f"order by source desc, users desc, via limit {LINES}"
        )
        if own:
            return [_sentence(Trail.of(row), self._k) for row in own]
        rows = self._db.rows(
            "select a.query, t.source, sum(t.events) as events "
            f"from trails t join asked a on a.query_id = t.query_id where t.item_id = {item} "
            f"group by all order by events desc, a.query, t.source limit {LINES - 1}"
        )
        return [
            f"no event of this query; {_NAMES[Source(row['source'])]} positive of “{row['query']}”"
            + ("" if row["events"] is None else f" ({row['events']}×)")
            for row in rows
        ] or [f"no evidence of at least {self._k} people's queries names this item"]


_NAMES = {
    Source.CLICKED: "clicked",
    Source.REFORMULATION: "P1",
    Source.FEED: "P2",
    Source.KNOWLEDGE: "P3",
}


def _sentence(trail: Trail, k: int) -> str:
    who = f"by fewer than {k} people" if trail.users is None else f"by {trail.users} people"
    if trail.source is Source.REFORMULATION:
        via = "".join(f" to “{query}”" for query in trail.via)
        return f"P1: consumed after rewording{via}, {who}"
    if trail.source is Source.FEED:
        return f"P2: consumed in the feed around the search, {who}"
    return f"clicked or liked, {who}"


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
