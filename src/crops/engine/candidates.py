"""Candidate positives of P1 and P2: one shape of table, one relevance filter.

A row is an event that speaks for a pair:
(group_id, query_id, item_id, source, search_id, via_query_id, user_id, watched_at).
"""

from __future__ import annotations

from collections.abc import Mapping

from crops.engine.backend import Backend
from crops.engine.scoring import CachedScorer, score_pairs
from crops.labels import Source

COLUMNS = "group_id, query_id, item_id, source, search_id, via_query_id, user_id, watched_at"
"""All of them BIGINT but `source`, which is INTEGER."""

NO_CANDIDATES = "select {} where 1 = 0".format(
    ", ".join(
        f"cast(null as {'INTEGER' if name == 'source' else 'BIGINT'}) as {name}"
        for name in COLUMNS.split(", ")
    )
)
"""What a source that is switched off finds."""


def columns_of(alias: str) -> str:
    """Return `COLUMNS`, each read from the table `alias`."""
    return ", ".join(f"{alias}.{name}" for name in COLUMNS.split(", "))


def keep_relevant(
    backend: Backend,
    candidates: str,
    searches: str,
    alpha: Mapping[Source, float],
    relevance: CachedScorer | None,
) -> None:
    """Make `candidate_pairs`, `scored_pairs` and `relevant`: the candidates with theta(q, d) > alpha.

    The comparison is strict, as in the paper. Without a scorer every candidate stays, its theta is null.

    Args:
        backend: holds the candidates; `documents` has the texts of their items, and `document_keys` (see
            `crops.engine.scoring.key_documents`) is there if they are scored.
        candidates: SELECT of `COLUMNS`.
        searches: SELECT of the searches that they speak for.
        alpha: threshold by source.
        relevance: theta, scored once per distinct (query, item).
    """
    backend.table(
        "candidate_pairs",
        f"select query_id, item_id, bit_or(source) as sources from ({candidates}) c "
        "group by query_id, item_id",
    )
    if relevance is None:
        backend.view(
            "scored_pairs",
            "select query_id, item_id, sources, cast(null as DOUBLE) as theta from candidate_pairs",
        )
        every = f"select {COLUMNS}, cast(null as DOUBLE) as theta from ({candidates}) c"
        backend.table("relevant", _NEAREST.format(events=every, searches=searches))
        return
    score_pairs(
        backend,
        "theta",
        "select p.query_id as left_id, p.item_id as right_id, k.key as right_key, p.sources "
        "from candidate_pairs p join document_keys k on k.item_id = p.item_id",
        "documents",
        relevance,
        also="sources",
    )
    _apply_thresholds(backend, candidates, searches, alpha)


def _apply_thresholds(
    backend: Backend, candidates: str, searches: str, alpha: Mapping[Source, float]
) -> None:
    passes = {source: f"score > cast({value} as DOUBLE)" for source, value in alpha.items()}
    bits = " + ".join(f"case when {test} then {source.value} else 0 end" for source, test in passes.items())
    backend.table(
        "scored_pairs",
        f"""
        select left_id as query_id, right_id as item_id, sources & ({bits}) as sources, score as theta
        from theta where (sources & ({bits})) <> 0
        """,
    )
    above = f"""
        select {columns_of("c")}, p.theta
        from ({candidates}) c join scored_pairs p on p.query_id = c.query_id and p.item_id = c.item_id
        where (p.sources & c.source) <> 0
        """
    backend.table("relevant", _NEAREST.format(events=above, searches=searches))


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
"""What a user watched more than once near a search of a group counts once, at the nearest time."""
