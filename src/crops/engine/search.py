"""Online search samples: P0 and the multi-stage negatives (CroPS, hierarchical labels 4, 3, 2, 1).

All events of a normalised query are merged: a pair carries the bits of every stage it reached in any of them.
"""

from __future__ import annotations

from crops.config import OnlineSearchConfig
from crops.engine.backend import Backend
from crops.engine.merge import random_order
from crops.labels import SEARCH_STAGES, Source


def sample_stages(backend: Backend, impressions: str, config: OnlineSearchConfig | None, seed: int) -> None:
    """Make `search_pairs` and `staged(group_id, item_id, considered, kept)`: what search did with each pair.

    `considered` has the bits of all stages that a pair reached, `kept` the same or 0. A pair counts at its
    highest stage; beyond the caps, a seeded random choice per group and stage is kept. P1, P2 and P3 do not
    influence the choice, so dropping their bits from the merged samples gives exactly the samples of a run
    without them.

    Args:
        backend: holds the impressions.
        impressions: SELECT of the impressions.
        config: the caps; None when search is no source of this run, nothing is then kept.
        seed: of the choice.
    """
    pairs = (
        f"select group_id, item_id, bit_or(source) as considered from ({impressions}) i "
        "group by group_id, item_id"
    )
    backend.table("search_pairs", f"select p.*, {stage_sql('considered')} as stage from ({pairs}) p")
    nothing = "select group_id, item_id, considered, cast(0 as INTEGER) as kept from search_pairs"
    backend.table("staged", nothing if config is None else _capped_sql(config, seed))


def _capped_sql(config: OnlineSearchConfig, seed: int) -> str:
    """Return the SELECT of `staged`: only what is over its cap is put in order.

    That is the dearest part of mining, and a fifth cheaper by a short number than by group and stage.
    """
    cap = f"""case stage
        when {Source.CLICKED.value} then {config.max_clicked}
        when {Source.EXPOSED.value} then {config.max_exposed}
        when {Source.UNEXPOSED.value} then {config.max_unexposed}
        else {config.max_filtered} end"""
    return f"""
    with crowds as (
        select group_id, stage, cast(row_number() over (order by group_id, stage) as INTEGER) as crowd from (
            select group_id, stage from search_pairs group by group_id, stage having count(*) > {cap}
        ) over_cap
    ), placed as (
        select drawn.*, row_number() over (partition by crowd order by chance, item_id) as place from (
            select p.*, c.crowd, cast({random_order("p.group_id", "p.item_id", seed)} as INTEGER) as chance
            from search_pairs p join crowds c on c.group_id = p.group_id and c.stage = p.stage
        ) drawn
    )
    select p.group_id, p.item_id, p.considered, p.considered as kept
    from search_pairs p left join crowds c on c.group_id = p.group_id and c.stage = p.stage
    where c.crowd is null
    union all
    select group_id, item_id, considered, case when place <= {cap} then considered else 0 end as kept
    from placed
    """


def stage_sql(sources: str) -> str:
    """Return the SQL of the highest search bit in a bit mask, 0 for none."""
    cases = " ".join(f"when ({sources} & {stage.value}) <> 0 then {stage.value}" for stage in SEARCH_STAGES)
    return f"case {cases} else 0 end"
