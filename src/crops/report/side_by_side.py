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
from crops.logs.sql import add_texts
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
    only_here: bool = False
    """Not among the results of the other model: new after, gone before."""
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


@dataclass(frozen=True)
class Cases:
    """Queries to show, and how typical they are."""

    compared: Sequence[SideBySide]
    summary: str = ""


Named = tuple[str, Retriever]
"""A model and what it is called."""


def choose_queries(
    logs: Path, truth: Path, test_day: str, before: Retriever, after: Retriever, k: int = SIMULATED_USERS
) -> tuple[str, list[ChosenQuery]]:
    """Return what changes in the first results of a day's queries, and up to four of these by a fixed rule.

    Of the queries of one need with other results than before: the median change of the number of relevant
    ones (the typical case), the largest gain and the largest loss, each the most searched query of that
    change; and the most searched query of several senses. Only queries that at least k people searched on
    the days of the logs are looked at.
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
                   min(need_id) as need_id
            from events where day = '{test_day}' and query in (
                select query from events group by query having count(distinct user_id) >= {k}
            ) group by query;
        """)
        asked = db.execute(
            "select query, need_id from test where needs = 1 order by n desc, query"
        ).fetchall()
        wanted = db.execute(f"""
            select need_id, item_id from {_file(truth, "grades")}
            where grade >= {RELEVANT_GRADE} and need_id in (select need_id from test where needs = 1)
        """).fetchall()
        ambiguous = db.execute(
            "select query, senses from test where senses > 1 order by n desc, query limit 1"
        ).fetchone()
    summary, chosen = _typical(asked, set(wanted), before, after) if asked else ("", [])
    if ambiguous is not None:
        # What is relevant to it depends on the searcher: it gets topics, not grades.
        query, senses = ambiguous
        note = f"The most searched ambiguous query: its searchers meant {senses} different things."
        chosen.append(ChosenQuery(query, note, None))
    return summary, chosen


def _typical(
    asked: Sequence[tuple[str, int]], relevant: set[tuple[int, int]], before: Retriever, after: Retriever
) -> tuple[str, list[ChosenQuery]]:
    """Return the summary and the queries of one need, of (query, need), the most searched first."""
    lists = [one.search([query for query, _ in asked], SHOWN)[0].tolist() for one in (before, after)]
    hits = [
        [
            sum((need, item) in relevant for item in found)
            for (_, need), found in zip(asked, each, strict=True)
        ]
        for each in lists
    ]
    change = [new - old for old, new in zip(*hits, strict=True)]
    moved = [row for row, (old, new) in enumerate(zip(*lists, strict=True)) if set(old) != set(new)]
    more, fewer = sum(one > 0 for one in change), sum(one < 0 for one in change)
    means = [f"{sum(each) / len(asked):.2f}" for each in hits]
    summary = (
        f"Of {len(asked):,} queries with one need, {more:,} have more relevant results among the first "
        f"{SHOWN} than before, {fewer:,} fewer; {len(asked) - len(moved):,} show the same results. "
        f"On average {means[0]} of {SHOWN} were relevant, now {means[1]} are."
    )
    if not moved:
        return summary, []
    steps = sorted(change[row] for row in moved)
    typical, most, least = steps[(len(steps) - 1) // 2], steps[-1], steps[0]
    reasons = {typical: f"Typical, the median of the {len(moved):,} queries with other results than before"}
    if most > 0:
        reasons.setdefault(most, "The largest gain")
    if least < 0:
        reasons.setdefault(least, "The largest loss")
    chosen = []
    for step, reason in reasons.items():
        row = next(row for row in moved if change[row] == step)
        note = f"{reason} ({step:+d} relevant, the most searched query of {steps.count(step):,} such)."
        chosen.append(ChosenQuery(asked[row][0], note.replace("-", "\N{MINUS SIGN}"), asked[row][1]))
    return summary, chosen


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


def side_by_side(asked: ChosenQuery, before: Named, after: Named, reasons: Reasons) -> SideBySide:
    """Return the best results of two named models for one query: of the reference, and of the one to look at.

    `reasons` is where their evidence is looked up.
    """
    lists = []
    for _, retriever in (before, after):
        ids, scores = retriever.search([asked.text], SHOWN)
        pairs = zip(ids[0].tolist(), scores[0].tolist(), strict=True)
        lists.append({item: score for item, score in pairs if item >= 0})
    columns = [
        [
            Hit(
                rank,
                *reasons.text(item),
                score,
                grade=reasons.grade(asked.need_id, item),
                topic=reasons.topic(item),
                only_here=item not in others,
                never_shown=not reasons.was_shown(asked.text, item),
                evidence=reasons.lines(asked.text, item),
            )
            for rank, (item, score) in enumerate(found.items(), 1)
        ]
        for found, others in zip(lists, reversed(lists), strict=True)
    ]
    return SideBySide(asked.text, asked.note, before[0], after[0], *columns)


def comparison_section(cases: Cases) -> Section:
    """Return the section that shows queries side by side."""
    lead = Markup(
        "{} Under each result: how relevant it truly is (●●● answers the need, ○○○ does not), what it is "
        'about, why the training data or the old system knew it. <span class="tag new">new</span> was not '
        'among the results before, <span class="tag lost">gone</span> is not among those after; '
        '<span class="tag unseen">never shown before</span> the system had not shown it for this query up to '
        "the training day."
    ).format(cases.summary)
    html = environment().get_template("compared.html")
    drawn = html.render(compared=cases.compared, top_grade=TOP_GRADE, relevant_grade=RELEVANT_GRADE)
    return Section("Before and after, side by side", lead, html=Markup(drawn))
