"""Candidate positives of P1 and P2: one shape of table, one relevance filter.

A row is an event that speaks for a pair:
(query_id, item_id, source, search_id, via_query_id, user_id, watched_at, day).
"""

from __future__ import annotations

from collections.abc import Mapping

from crops.engine.backend import DuckDBBackend
from crops.engine.scoring import DOCUMENT_TEXTS, score_pairs
from crops.labels import Source
from crops.protocols import PairScorer

_TYPES = {
    "query_id": "BIGINT",
    "item_id": "BIGINT",
    "source": "BIGINT",
    "search_id": "BIGINT",
    "via_query_id": "BIGINT",
    "user_id": "BIGINT",
    "watched_at": "BIGINT",
    "day": "VARCHAR",
}
COLUMNS = ", ".join(_TYPES)

NO_CANDIDATES = (
    f"select {', '.join(f'cast(null as {type_}) as {name}' for name, type_ in _TYPES.items())} where 1 = 0"
)
"""What a source that is switched off finds."""

MICROSECONDS = 1_000_000
"""In a second."""


def columns_of(alias: str) -> str:
    """Return `COLUMNS`, each read from the table `alias`."""
    return ", ".join(f"{alias}.{name}" for name in _TYPES)


def keep_relevant(
    backend: DuckDBBackend, candidates: str, alpha: Mapping[Source, float], relevance: PairScorer | None
) -> None:
    """Make `relevant`: the candidates with theta(q, d) > alpha, and their theta.

    The comparison is strict, as in the paper. Without a scorer every candidate stays, its theta is null.

    Args:
        backend: holds the candidates.
        candidates: SELECT of `COLUMNS`.
        alpha: threshold by source.
        relevance: theta, scored once per distinct (query, item).
    """
    if relevance is None:
        backend.table("relevant", f"select {COLUMNS}, cast(null as DOUBLE) as theta from ({candidates}) c")
        return
    pairs = f"select distinct query_id as left_id, item_id as right_id from ({candidates}) c"
    score_pairs(backend, "theta", pairs, DOCUMENT_TEXTS, relevance)
    thresholds = " ".join(
        f"when {int(source)} then cast({value} as DOUBLE)" for source, value in alpha.items()
    )
    backend.table(
        "relevant",
        f"""
        select {columns_of("c")}, t.score as theta
        from ({candidates}) c join theta t on t.left_id = c.query_id and t.right_id = c.item_id
        where t.score > case c.source {thresholds} end
        """,
    )
