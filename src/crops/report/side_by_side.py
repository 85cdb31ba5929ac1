"""Side by side: what two models answer to a query, and the evidence behind each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from crops.database import open_database, path_literal
from crops.engine.backend import DuckDBBackend, id_sql
from crops.engine.events import load_events
from crops.engine.evidence import Trail, tell_queries
from crops.engine.mined import name_searchers, read_mined
from crops.labels import POSITIVE_ORIGINS, Source
from crops.logs import open_logs
from crops.logs.tables import add_texts
from crops.protocols import Retriever
from crops.report.page import Section, environment
from crops.text import query_id

SHOWN = 8
"""Results per column."""
LINES = 3
"""Lines of evidence per result."""
SIMULATED_USERS = 5
"""What is shown of a simulation counts as this many users: they are nobody."""
RELEVANT_GRADE, TOP_GRADE = 2, 3
"""The lowest grade that counts as relevant, and the highest."""


@dataclass(frozen=True)
class Hit:
    """One result of a search."""

    rank: int
    title: str
    text: str
    score: float
    grade: int | None = None
    """True grade, 0 to `TOP_GRADE`; None where unknown."""
    topic: str | None = None
    is_new: bool = False
    """Not among the results it is compared with."""
    never_shown: bool = False
    """The system had never shown it for this query."""
    evidence: Sequence[str] = ()
    """Plain sentences: why the training data or the old system knew it."""


@dataclass(frozen=True)
class SideBySide:
    """What two models answer to one query."""

    query: str
    note: str
    before_name: str
    after_name: str
    before: Sequence[Hit]
    after: Sequence[Hit]


@dataclass(frozen=True)
class ChosenQuery:
    """A query to show, and why it was chosen."""

    text: str
    note: str
    need_id: int | None
    """The need behind its searches on the test day; None where they had several."""


def choose_queries(
    logs: Path, truth: Path, train_day: str, test_day: str, k: int = SIMULATED_USERS
) -> list[ChosenQuery]:
    """Return three queries of the test day, picked by a fixed rule and not by their results.

    The most searched query that stands for several senses; the most searched query that was also searched on
    the training day and names a single need; and the most searched one that was not: of those that at least k
    people searched on the days of the logs, so there may be fewer than three.
    """
    with open_database() as db:
        logged = open_logs(logs).sql("search_impressions")
        add_texts(db, f"select query from ({logged})")
        impressions = (
            f"select l.* replace (t.query as query) from ({logged}) l join texts t on t.raw = l.query"
        )
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
        chosen = []
        for rule, note in rules:
            row = db.execute(
                f"select query, senses, need_id from test where {rule} order by n desc, query limit 1"
            ).fetchone()
            if row is not None:
                # What is relevant to an ambiguous query depends on the searcher: it gets topics, not grades.
                chosen.append(
                    ChosenQuery(row[0], note.format(senses=row[1]), row[2] if row[1] == 1 else None)
                )
        return chosen


def _file(folder: Path, name: str) -> str:
    return path_literal(folder / f"{name}.parquet")


class Reasons:
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
        self._db.drop_tables("queries")  # the mining has its own
        mined.open(self._db)
        name_searchers(self._db, mined.open_logs(logs))
        tell_queries(self._db, mined, k)
        self._db.view("grades", f"from {_file(truth, 'grades')}")
        topics = f"{_file(truth, 'items')} join {_file(truth, 'needs')} using (need_id)"
        self._db.view("topics", f"select item_id, sense from {topics}")

    def __enter__(self) -> Reasons:
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


_NAMES = {row.bit: row.stage or row.name for row in POSITIVE_ORIGINS}


def _sentence(trail: Trail, k: int) -> str:
    who = f"by fewer than {k} people" if trail.users is None else f"by {trail.users} people"
    if trail.source is Source.REFORMULATION:
        via = "".join(f" to “{query}”" for query in trail.via)
        return f"P1: consumed after rewording{via}, {who}"
    if trail.source is Source.FEED:
        return f"P2: consumed in the feed around the search, {who}"
    return f"clicked or liked, {who}"


def side_by_side(
    asked: ChosenQuery, before: tuple[str, Retriever], after: tuple[str, Retriever], reasons: Reasons
) -> SideBySide:
    """Return the best results of two named models for one query: of the reference, and of the one to look at.

    `reasons` is where their evidence is looked up.
    """
    columns: list[list[Hit]] = []
    old: set[int] | None = None
    for _, retriever in (before, after):
        ids, scores = retriever.search([asked.text], SHOWN)
        found = [(item, score) for item, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True)]
        found = [(item, score) for item, score in found if item >= 0]
        old = {item for item, _ in found} if old is None else old
        hits = []
        for rank, (item, score) in enumerate(found, 1):
            title, text = reasons.text(item)
            hits.append(
                Hit(
                    rank=rank,
                    title=title,
                    text=text,
                    score=score,
                    grade=reasons.grade(asked.need_id, item),
                    topic=reasons.topic(item),
                    is_new=item not in old,
                    never_shown=not reasons.was_shown(asked.text, item),
                    evidence=reasons.lines(asked.text, item),
                )
            )
        columns.append(hits)
    return SideBySide(asked.text, asked.note, before[0], after[0], *columns)


def comparison_section(compared: Sequence[SideBySide]) -> Section:
    """Return the section that shows queries side by side."""
    lead = Markup(
        "Under each result: how relevant it truly is (filled dots), what it is about, and why the training "
        'data or the old system knew it. <span class="tag new">new</span> was not among the results before; '
        '<span class="tag unseen">never shown before</span> the system had not shown it for this query up to '
        "the training day."
    )
    html = environment().get_template("compared.html")
    drawn = html.render(compared=compared, top_grade=TOP_GRADE, relevant_grade=RELEVANT_GRADE)
    return Section("Before and after, side by side", lead, html=Markup(drawn))
