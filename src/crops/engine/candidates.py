"""Candidate positives: what the file of a source gives to the pipeline, and the filter that all pass.

A new source of positives is a copy of `crops.engine.feed` or `crops.engine.reformulation`, named as its
section of `crops.config.EngineConfig`, and a row in `crops.labels`, by which the pipeline finds it (see
`examples/extending/source.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crops.engine.backend import Backend
from crops.engine.scoring import CachedScorer, score_pairs
from crops.labels import POSITIVE_ORIGINS, Origin, Source

COLUMNS = "group_id, query_id, item_id, source, search_id, via_query_id, user_id, watched_at"
"""Of a candidate: an event that speaks for a pair. All are BIGINT but `source`, which is INTEGER."""
NO_CANDIDATES = "select {} where 1 = 0".format(
    ", ".join(
        f"cast(null as {'INTEGER' if name == 'source' else 'BIGINT'}) as {name}"
        for name in COLUMNS.split(", ")
    )
)


@dataclass(frozen=True)
class Miner:
    """How a source finds candidates in the logs; `MINER` of its file. Its settings hold `relevance`."""

    find: Callable[[Any, str], str]
    """(settings, SQL condition on `user_id`) -> SELECT of the events of these users that may become
    candidates: query_id, search_id, user_id and what `candidates` needs."""
    candidates: Callable[[Backend, Any, str], str]
    """(backend, settings, SELECT of found events with group_id, all of a query or none) -> SELECT of
    `COLUMNS`."""
    same_intent: bool = False
    """Whether what is found has a `via_query_id` that must mean the same; its settings hold `similarity`."""


def miners(wanted: Source) -> dict[Origin, Miner]:
    """Return those of the wanted sources that find their positives in the logs besides search itself."""
    files = {
        row: importlib.import_module(f"crops.engine.{row.section}")
        for row in POSITIVE_ORIGINS
        if row.bit & wanted
    }
    return {row: file.MINER for row, file in files.items() if hasattr(file, "MINER")}


def keep_same_intent(
    backend: Backend, found: str, kept: str, threshold: float, similarity: CachedScorer | None
) -> None:
    """Make `kept`: the rows of the table `found` whose `query_id` and `via_query_id` mean the same.

    Args:
        backend: holds `found`, `queries`, and the texts of later queries in `wordings`.
        found: a table with these columns.
        kept: the new table.
        threshold: two queries are similar when P(same intent) >= this; the threshold itself passes.
        similarity: scored once per distinct (query, later query); None lets every pair pass.
    """
    if similarity is None:
        backend.view(kept, f"select * from {found}")
        return
    pairs = (
        "select distinct query_id as left_id, via_query_id as right_id, via_query_id as right_key "
        f"from {found}"
    )
    score_pairs(backend, "similarity", pairs, "wordings", similarity)
    backend.table(
        kept,
        f"""
        select c.*
        from {found} c join similarity s on s.left_id = c.query_id and s.right_id = c.via_query_id
        where s.score >= cast({threshold} as DOUBLE)
        """,
    )


def keep_relevant(
    backend: Backend,
    candidates: str,
    searches: str,
    alpha: Mapping[Source, float],
    relevance: CachedScorer | None,
) -> None:
    """Make `candidate_pairs`, `scored_pairs` and `relevant`: the candidates with theta(q, d) > alpha.

    The comparison is strict, as in the paper. Without a scorer every candidate stays, its theta is null. What
    a user watched more than once near a search of a group counts once, at the nearest time.

    Args:
        backend: holds the candidates; `documents` has the texts of their items, and `document_keys` (see
            `crops.engine.scoring.key_documents`) is there if they are scored.
        candidates: table of `COLUMNS`.
        searches: SELECT of the searches that they speak for.
        alpha: threshold by source.
        relevance: theta, scored once per distinct (query, item).
    """
    backend.table(
        "candidate_pairs",
        f"select query_id, item_id, bit_or(source) as sources from {candidates} group by query_id, item_id",
    )
    if relevance is None:
        backend.view(
            "scored_pairs",
            "select query_id, item_id, sources, cast(null as DOUBLE) as theta from candidate_pairs",
        )
        events = f"select {COLUMNS}, cast(null as DOUBLE) as theta from {candidates}"
    else:
        pairs = (
            "select p.query_id as left_id, p.item_id as right_id, k.key as right_key, p.sources "
            "from candidate_pairs p join document_keys k on k.item_id = p.item_id"
        )
        score_pairs(backend, "theta", pairs, "documents", relevance, also="sources")
        passed = " + ".join(
            f"case when score > cast({value} as DOUBLE) then {source.value} else 0 end"
            for source, value in alpha.items()
        )
        bits = f"sources & ({passed or 0})"
        backend.table(
            "scored_pairs",
            f"select left_id as query_id, right_id as item_id, {bits} as sources, score as theta "
            f"from theta where ({bits}) <> 0",
        )
        columns = ", ".join(f"c.{name}" for name in COLUMNS.split(", "))
        events = f"""
            select {columns}, p.theta
            from {candidates} c join scored_pairs p on p.query_id = c.query_id and p.item_id = c.item_id
            where (p.sources & c.source) <> 0
            """
    backend.table("relevant", _NEAREST.format(events=events, searches=searches))


_NEAREST = f"""
with events as ({{events}}), placed as (
    select e.*, row_number() over (
        partition by e.group_id, e.user_id, e.item_id
        order by abs(e.watched_at - s.searched_at), e.watched_at, e.search_id
    ) as visit
    from events e join ({{searches}}) s on s.search_id = e.search_id
    where e.source = {Source.FEED.value}
)
select {COLUMNS}, theta from events where source <> {Source.FEED.value}
union all
select {COLUMNS}, theta from placed where visit = 1
"""
