"""Merging the sources: the highest label wins, every source stays as a bit, no user steers a query alone."""

from __future__ import annotations

import numpy as np

from crops.engine.backend import Backend
from crops.labels import DEFAULT_LABELS, Source


def merge_sources(
    backend: Backend, impressions: str, searches: str, max_positives_per_user: int, seed: int
) -> None:
    """Make `positives`, `merged(group_id, item_id, considered, sources)` and `evidence`.

    `merged` has all that was considered or found; `sources` is 0 where nothing is kept. `positives` are the
    P1 and P2 events within the cap per user: a user's pairs of one group are kept P1 first, then by theta,
    then at random (seeded). With P1 first, the samples of a run without P3, or without P2 and P3, are those
    of the full run with their bits dropped. (Without P1 alone, a user at the cap may add P2 pairs that P1
    pairs displace in the full run.)

    Args:
        backend: holds `relevant`, `staged`, `generated_pairs` and the events.
        impressions: SELECT of the impressions that `staged` was made of.
        searches: SELECT of their searches.
        max_positives_per_user: the cap.
        seed: of the choice under it.
    """
    # Few users reach the cap; only theirs are ranked.
    backend.table(
        "crowded",
        "select group_id, user_id from relevant group by group_id, user_id "
        f"having count(*) > {max_positives_per_user}",
    )
    backend.table("positives", _capped_sql(max_positives_per_user, seed))
    backend.table("positive_pairs", _POSITIVE_PAIRS)
    backend.table("merged", _MERGED)
    backend.view("evidence", _EVIDENCE.format(impressions=impressions, searches=searches))


_POSITIVE_PAIRS = f"""
select group_id, item_id, bit_or(source) as bits
from (
    select group_id, item_id, source from positives
    union all select group_id, item_id, cast({Source.KNOWLEDGE.value} as INTEGER) as source from
    generated_pairs
) p
group by group_id, item_id
"""

_MERGED = """
select coalesce(s.group_id, p.group_id) as group_id, coalesce(s.item_id, p.item_id) as item_id,
    coalesce(s.considered, 0) as considered, coalesce(s.kept, 0) | coalesce(p.bits, 0) as sources
from staged s full join positive_pairs p on p.group_id = s.group_id and p.item_id = s.item_id
"""

_EVIDENCE = f"""
select e.group_id, e.item_id, e.source, e.search_id, e.via_query_id, e.watched_at, e.theta, s.day
from (
    select i.group_id, i.item_id, i.source, i.search_id, cast(null as BIGINT) as via_query_id,
        cast(null as BIGINT) as watched_at, cast(null as DOUBLE) as theta
    from ({{impressions}}) i
    join staged k on k.group_id = i.group_id and k.item_id = i.item_id
    where i.source = {Source.CLICKED.value} and (k.kept & {Source.CLICKED.value}) <> 0
    union all
    select group_id, item_id, source, search_id, via_query_id, watched_at, theta from positives
) e join ({{searches}}) s on s.search_id = e.search_id
union all
select g.group_id, g.item_id, cast({Source.KNOWLEDGE.value} as INTEGER), null, null, null, null, d.day
from generated_pairs g cross join (select max(day) as day from searches) d
"""
"""A generated document belongs to no event: its day is the last one mined."""


def samples_sql() -> str:
    """Return the SELECT of the samples, by group."""
    return (
        f"select group_id, item_id, {label_sql('sources')} as label, sources, 1.0 as weight "
        "from merged where sources <> 0"
    )


def label_sql(sources: str) -> str:
    """Return the SQL of the highest label among the bits of `sources`, as `crops.labels.assign_labels`."""
    cases = (
        f"case when ({sources} & {source.value}) <> 0 then {label} else -1 end"
        for source, label in DEFAULT_LABELS.items()
    )
    return f"greatest({', '.join(cases)})"


def _capped_sql(cap: int, seed: int) -> str:
    # A pair that a user adds is one, however many events and sources speak for it.
    columns = ", ".join(
        f"r.{name}"
        for name in ("group_id", "item_id", "source", "search_id", "via_query_id", "watched_at", "theta")
    )
    return f"""
    select {columns}
    from relevant r left join crowded c on c.group_id = r.group_id and c.user_id = r.user_id
    where c.user_id is null
    union all
    select {columns}
    from relevant r join (
        select group_id, user_id, item_id, row_number() over (
            partition by group_id, user_id
            order by source desc, theta desc, {random_order("group_id", "item_id", seed)}, item_id
        ) as place
        from (
            select a.group_id, a.user_id, a.item_id, max(a.source) as source, max(coalesce(a.theta, 0)) as
            theta
            from relevant a join crowded c on c.group_id = a.group_id and c.user_id = a.user_id
            group by a.group_id, a.user_id, a.item_id
        ) added
    ) p on p.group_id = r.group_id and p.user_id = r.user_id and p.item_id = r.item_id
    where p.place <= {cap}
    """


PRIME = 2_147_483_647
"""2^31 - 1: products of two residues stay below 2^62, so no engine overflows."""


def random_order(query: str, item: str, seed: int) -> str:
    """Return the SQL of a pseudo-random key that orders the items of a query; every engine computes it alike.

    item * a mod p with a multiplier a in 1..p-1 drawn by query and seed: the universal hash family of Carter
    and Wegman (1979). Items whose ids differ by a multiple of p tie; order by id next.

    Args:
        query: SQL of the query id, any signed 64-bit integer.
        item: SQL of the item id, likewise.
        seed: another seed gives other multipliers.
    """
    shift = int(np.random.default_rng(seed).integers(PRIME))
    multiplier = f"(1 + ({_residue(query)} + {shift}) % {PRIME - 1})"
    return f"({_residue(item)} * {multiplier}) % {PRIME}"


def _residue(value: str) -> str:
    # SQL's % keeps the sign of the dividend, and ids may be negative.
    return f"(({value} % {PRIME} + {PRIME}) % {PRIME})"
