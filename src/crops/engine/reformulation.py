"""P1: what a user consumed after saying it in other words is a positive of the first query (CroPS)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from crops.config import ReformulationConfig
from crops.engine.backend import Backend, DuckDBBackend
from crops.engine.candidates import COLUMNS, Miner, keep_relevant, keep_same_intent
from crops.engine.events import load_events
from crops.engine.scoring import cached, key_documents
from crops.labels import Source
from crops.logs import Logs
from crops.outputs import Scratch
from crops.protocols import PairScorer
from crops.schema import within_sql


def reformulations_sql(config: ReformulationConfig, users: str = "1 = 1") -> str:
    """Return the SELECT of what may be a P1 positive: query_id, item_id, search_id, via_query_id, user_id.

    Every search starts a window 0 < t_i - t_q <= window_s over the same user's later searches, whether or not
    something was clicked in it. All searches in the window count, but not the same normalised text again:
    that is paging. The candidates are the items consumed in the results of the later search.

    Args:
        config: settings of P1.
        users: SQL condition on `user_id`, for work in shards.
    """
    unclicked = (
        "and not exists (select 1 from impressions k "
        f"where k.search_id = q.search_id and k.source = {Source.CLICKED.value})"
    )
    return f"""
    select distinct q.query_id, i.item_id, q.search_id, q.via_query_id, q.user_id
    from ({later_searches_sql(config, users)}) q
    join later_impressions i on i.search_id = q.via_search_id
    where i.consumed {unclicked if config.require_no_click else ""}
    """


def later_searches_sql(config: ReformulationConfig, users: str = "1 = 1") -> str:
    """Return the SELECT of every search with each later one that may be its reformulation.

    Columns: group_id, query_id, search_id and user_id of the search; via_query_id and via_search_id of the
    later one: the same user's, 0 < t_i - t_q <= window_s, and another normalised text.
    """
    return f"""
    select q.group_id, q.query_id, q.search_id, q.user_id,
        r.query_id as via_query_id, r.search_id as via_search_id
    from (select * from searches where {users}) q
    join (select * from later_searches where {users}) r on r.user_id = q.user_id and r.query_id <> q.query_id
        and {within_sql("q.searched_at", "r.searched_at", config.window_s)}
    """


def candidates_sql(backend: Backend, config: ReformulationConfig, found: str) -> str:
    """Return the SELECT of the P1 candidates among the rows of `reformulations_sql` with their `group_id`."""
    return f"""
    select {COLUMNS} from (
        select f.*, cast({Source.REFORMULATION.value} as INTEGER) as source,
            cast(null as BIGINT) as watched_at
        from ({found}) f
    ) c
    """


MINER = Miner(reformulations_sql, candidates_sql, same_intent=True)


def reformulation_positives(
    logs: Logs,
    days: Sequence[str] | None,
    config: ReformulationConfig,
    *,
    similarity: PairScorer | None,
    relevance: PairScorer | None,
    memory: str,
) -> pa.Table:
    """Return the P1 positives of some days: the QR test set when the days are the test day.

    Args:
        logs: the logs.
        days: days to look at (YYYY-MM-DD), all when None.
        config: settings of P1.
        similarity: P(same intent) of two queries; None skips this filter.
        relevance: theta; None skips this filter.
        memory: memory limit of DuckDB, e.g. "2GB".

    Returns:
        One row per supporting event, sorted, without the cap per user: query_id, query (normalised text),
        item_id, search_id (the first query's), via_query_id, user_id, theta (null if skipped).

    Raises:
        CropsError: the days hold no search, or a scorer broke its contract.
    """
    with DuckDBBackend(memory) as backend, Scratch("crops-queries-") as scratch:
        load_events(backend, logs, days, keep=False)
        backend.table("p1_found", reformulations_sql(config))
        intent = cached(similarity, Path(scratch) / "similarity")
        keep_same_intent(backend, "p1_found", "p1_similar", config.similarity, intent)
        theta = cached(relevance, Path(scratch) / "relevance")
        if theta:
            key_documents(backend, "select distinct item_id from p1_similar")
        rows = "select *, query_id as group_id from p1_similar"
        backend.table("candidates", candidates_sql(backend, config, rows))
        alpha = {Source.REFORMULATION: config.relevance}
        keep_relevant(backend, "candidates", "select * from searches", alpha, theta)
        return backend.arrow(
            """
            select r.query_id, q.query, r.item_id, r.search_id, r.via_query_id, r.user_id, r.theta
            from relevant r join queries q on q.query_id = r.query_id
            order by r.query_id, r.item_id, r.search_id, r.via_query_id
            """
        )
