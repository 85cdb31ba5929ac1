"""Merging the sources: the highest label wins, every source stays as a bit, no user steers a query alone."""

from __future__ import annotations

from crops.engine.backend import DuckDBBackend
from crops.engine.sampling import random_order
from crops.labels import DEFAULT_LABELS, Source

_SAMPLES = """
select query_id, item_id, bit_or(sources) as sources
from (
    select query_id, item_id, sources from search_samples
    union all select query_id, item_id, source as sources from positives
    union all select query_id, item_id, cast({knowledge} as BIGINT) as sources from p3
) bits
group by query_id, item_id
"""

_EVIDENCE = """
select i.query_id, i.item_id, i.source, i.search_id, cast(null as BIGINT) as via_query_id,
    cast(null as BIGINT) as watched_at, cast(null as DOUBLE) as theta, s.day
from impressions i
join search_samples k on k.query_id = i.query_id and k.item_id = i.item_id
join searches s on s.search_id = i.search_id
where i.source = {clicked}
union all
select query_id, item_id, source, search_id, via_query_id, watched_at, theta, day from positives
union all
select query_id, item_id, cast({knowledge} as BIGINT), null, null, null, null, d.day
from p3 cross join (select max(day) as day from searches) d
"""
"""A generated document belongs to no event: its day is the last one mined."""


def merge_sources(backend: DuckDBBackend, max_positives_per_user: int, seed: int) -> None:
    """Make `positives` (P1 and P2 events within the cap per user), `samples` and `evidence`.

    A user's pairs of one query are kept P1 first, then by theta, then at random (seeded). With P1 first, the
    samples of a run without P3, or without P2 and P3, are those of the full run with their bits dropped.
    (Without P1 alone, a user at the cap may add P2 pairs that P1 pairs displace in the full run.)
    """
    backend.table("positives", _capped_sql(max_positives_per_user, seed))
    samples = _SAMPLES.format(knowledge=Source.KNOWLEDGE.value)
    backend.table(
        "samples",
        f"select query_id, item_id, cast({label_sql('sources')} as INTEGER) as label, sources, "
        f"cast(1 as DOUBLE) as weight from ({samples}) merged",
    )
    evidence = _EVIDENCE.format(clicked=Source.CLICKED.value, knowledge=Source.KNOWLEDGE.value)
    backend.table("evidence", evidence)


def label_sql(sources: str) -> str:
    """Return the SQL of the highest label among the bits of `sources`, as `crops.labels.assign_labels`."""
    cases = (
        f"case when ({sources} & {source.value}) <> 0 then {label} else -1 end"
        for source, label in DEFAULT_LABELS.items()
    )
    return f"greatest({', '.join(cases)})"


def _capped_sql(cap: int, seed: int) -> str:
    # A pair that a user adds is one, however many events and sources speak for it.
    return f"""
    select r.query_id, r.item_id, r.source, r.search_id, r.via_query_id, r.watched_at, r.theta, r.day
    from relevant r join (
        select query_id, user_id, item_id, row_number() over (
            partition by query_id, user_id
            order by source desc, theta desc, {random_order("query_id", "item_id", seed)}, item_id
        ) as place
        from (
            select query_id, user_id, item_id, max(source) as source, max(coalesce(theta, 0)) as theta
            from relevant group by query_id, user_id, item_id
        ) added
    ) p on p.query_id = r.query_id and p.user_id = r.user_id and p.item_id = r.item_id
    where p.place <= {cap}
    """
