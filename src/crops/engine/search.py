"""Online search samples: P0 and the multi-stage negatives (CroPS, hierarchical labels 4, 3, 2, 1).

All events of a normalised query are merged: a pair carries the bits of every stage it reached in any of them.
"""

from __future__ import annotations

from crops.config import OnlineSearchConfig
from crops.engine.merge import random_order
from crops.labels import SEARCH_STAGES, Source


def staged_sql(impressions: str, config: OnlineSearchConfig | None, seed: int) -> str:
    """Return the SELECT of what search considered for each group: group_id, item_id, considered, kept.

    `considered` has the bits of all stages that a pair reached, `kept` the same or 0. A pair counts at its
    highest stage; beyond the caps, a seeded random choice per group and stage is kept. P1, P2 and P3 do not
    influence the choice, so dropping their bits from the merged samples gives exactly the samples of a run
    without them.

    Args:
        impressions: SELECT of the impressions.
        config: the caps; None when search is no source of this run, nothing is then kept.
        seed: of the choice.
    """
    pairs = (
        f"select group_id, item_id, bit_or(source) as considered from ({impressions}) i "
        "group by group_id, item_id"
    )
    if config is None:
        return f"select group_id, item_id, considered, cast(0 as INTEGER) as kept from ({pairs}) p"
    return f"""
    select group_id, item_id, considered, case when place <= case stage
            when {Source.CLICKED.value} then {config.max_clicked}
            when {Source.EXPOSED.value} then {config.max_exposed}
            when {Source.UNEXPOSED.value} then {config.max_unexposed}
            else {config.max_filtered} end
        then considered else 0 end as kept
    from (
        select group_id, item_id, considered, stage, row_number() over (
            partition by group_id, stage order by {random_order("group_id", "item_id", seed)}, item_id
        ) as place
        from (select group_id, item_id, considered, {stage_sql("considered")} as stage from ({pairs}) p) s
    ) placed
    """


def stage_sql(sources: str) -> str:
    """Return the SQL of the highest search bit in a bit mask, 0 for none."""
    cases = " ".join(f"when ({sources} & {stage.value}) <> 0 then {stage.value}" for stage in SEARCH_STAGES)
    return f"case {cases} else 0 end"
