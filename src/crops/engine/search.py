"""Online search samples: P0 and the multi-stage negatives (CroPS, hierarchical labels 4, 3, 2, 1).

All events of a normalised query are merged: a pair carries the bits of every stage it reached in any of them.
"""

from __future__ import annotations

from crops.config import OnlineSearchConfig
from crops.engine.backend import DuckDBBackend
from crops.engine.sampling import random_order
from crops.labels import Source

_PAIRS = """
select query_id, item_id, bit_or(source) as sources from impressions group by query_id, item_id
"""


def sample_searches(backend: DuckDBBackend, config: OnlineSearchConfig | None, seed: int) -> None:
    """Make `pairs` (all the system considered) and `search_samples` (those kept): query_id, item_id, sources.

    A pair counts at its highest stage; beyond the caps, a seeded random choice per query and stage is kept.
    P1, P2 and P3 do not influence the choice, so dropping their bits from the merged samples gives exactly
    the samples of a run without them.

    Args:
        backend: holds the events.
        config: the caps; None when search is no source of this run, `search_samples` is then empty.
        seed: of the choice.
    """
    backend.table("pairs", _PAIRS)
    none = "select query_id, item_id, sources from pairs where 1 = 0"
    backend.table("search_samples", none if config is None else _samples_sql(config, seed))


def _samples_sql(config: OnlineSearchConfig, seed: int) -> str:
    return f"""
    select query_id, item_id, sources from (
        select query_id, item_id, sources, stage, row_number() over (
            partition by query_id, stage order by {random_order("query_id", "item_id", seed)}, item_id
        ) as place
        from (select query_id, item_id, sources, {stage_sql("sources")} as stage from pairs) staged
    ) placed
    where place <= case stage
        when {Source.CLICKED.value} then {config.max_clicked}
        when {Source.EXPOSED.value} then {config.max_exposed}
        when {Source.UNEXPOSED.value} then {config.max_unexposed}
        else {config.max_filtered} end
    """


def stage_sql(sources: str) -> str:
    """Return the SQL of the highest search bit in a bit mask, 0 for none."""
    stages = (Source.CLICKED, Source.EXPOSED, Source.UNEXPOSED, Source.FILTERED)
    cases = " ".join(f"when ({sources} & {stage.value}) <> 0 then {stage.value}" for stage in stages)
    return f"case {cases} else 0 end"
