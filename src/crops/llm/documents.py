"""From mined samples to generated documents: which queries are asked for, and with which exemplar."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import duckdb

from crops.errors import CropsError
from crops.labels import POSITIVE_LABEL, Source
from crops.llm.client import generate
from crops.llm.dispatch import Budget
from crops.llm.endpoint import Endpoint
from crops.llm.guards import MIN_USERS, check_exemplar
from crops.llm.prompt import FIELDS, SEPARATORS, Exemplar, Request, load_prompt
from crops.llm.store import read_rows
from crops.text import normalise_query

CANDIDATES = 3
"""Logged positives per query that are tried as exemplar, most reliable first, until one passes the guards."""

Priority = Literal["need", "searches"]
_ORDER: dict[Priority, str] = {
    "need": """(percent_rank() over (order by click_entropy)
        + percent_rank() over (order by users desc)
        + percent_rank() over (order by clicked_searches / searches desc)) / 3""",
    "searches": "searches",
}

_SQL = f"""
with events as (
    select query_id, item_id, count(distinct search_id) filter (source = {int(Source.CLICKED)}) as clicks,
        count(distinct search_id) filter (source = {int(Source.REFORMULATION)}) as reworded,
        count(distinct search_id) filter (source = {int(Source.FEED)}) as watched, max(theta) as theta
    from read_parquet($evidence) group by query_id, item_id
), positives as (
    select s.query_id, s.item_id, row_number() over (
        partition by s.query_id order by e.clicks desc, e.reworded desc, e.watched desc,
        coalesce(e.theta, 0) desc, s.item_id
    ) as place
    from read_parquet($samples) s join events e using (query_id, item_id)
    where s.label >= {POSITIVE_LABEL} and s.item_id > 0
), satisfied as (
    select query_id, count(distinct search_id) as clicked_searches
    from read_parquet($evidence) where source = {int(Source.CLICKED)} group by query_id
), shares as (
    select query_id, clicks / sum(clicks) over (partition by query_id) as p from events where clicks > 0
), spread as (
    select query_id, round(-sum(p * log2(p)), 9) as click_entropy from shares group by query_id
), asked as (
    select q.query_id, q.query, q.users, q.searches, coalesce(clicked_searches, 0) as clicked_searches,
        coalesce(click_entropy, 0) as click_entropy
    from read_parquet($queries) q left join satisfied using (query_id) left join spread using (query_id)
    where q.users >= $min_users and q.query_id in (select query_id from positives)
)
select a.query, a.users, i.item_id, {", ".join(f"i.{field}" for field in FIELDS)}
from (select *, {{order}} as priority from asked) a
join positives p using (query_id) join read_parquet($items) i using (item_id)
where p.place <= {CANDIDATES}
order by a.priority desc, a.searches desc, a.query_id, p.place
"""


def generate_documents(
    mine_output: str | Path,
    out_jsonl: str | Path,
    endpoint: Endpoint,
    *,
    limit: int | None = None,
    min_users: int = MIN_USERS,
    samples_per_query: int = 1,
    seed: int = 0,
    prompt: str = "en",
    priority: Priority = "need",
    missing_only: bool = False,
    budget: Budget | None = None,
    retry_refused: bool = False,
) -> dict[str, int]:
    """Write documents for the training queries of `crops mine`; run it again to go on where it stopped.

    Args:
        mine_output: a folder that `crops mine` wrote.
        out_jsonl: documents, one JSON object per line; also the cache of the run.
        endpoint: e.g. of `embedded_server` or vLLM.
        limit: most queries asked for; all when None.
        min_users: k-anonymity.
        samples_per_query: documents per query, each with its own seed and angle.
        seed: seed of the first sample.
        prompt: name of a packaged template, or path of an own one.
        priority: see `training_requests`.
        missing_only: leave out what `out_jsonl` holds a document of the same query and seed for, though its
            exemplar, model or prompt was another: clicks of a new day do not pay for all documents again.
        budget: stop once it is used up, or too much of it in vain.
        retry_refused: ask again for what the model answered and the guards refused before.

    Returns:
        The counts of `crops.llm.client.generate`, and `queries` to have a document.

    Raises:
        CropsError: the folder holds no query that may be asked for, or as `generate`.
    """
    out_jsonl = Path(out_jsonl)
    mine_output = Path(mine_output)
    template = load_prompt(prompt)
    requests = list(training_requests(mine_output, limit, min_users, samples_per_query, seed, priority))
    if not requests:
        raise CropsError(
            f"{mine_output}: no query has a logged positive and at least {min_users} users; "
            "lower engine.knowledge.min_users or mine more days"
        )
    queries = len(requests) // samples_per_query
    if missing_only:
        there = {(row.get("query"), row.get("seed")) for row in read_rows(out_jsonl)}
        requests = [request for request in requests if (request.query, request.seed) not in there]
    counts = generate(
        requests,
        template,
        endpoint,
        out_jsonl,
        min_users=min_users,
        budget=budget,
        retry_refused=retry_refused,
    )
    return {"queries": queries, **counts}


def training_requests(
    mine_output: str | Path,
    limit: int | None,
    min_users: int,
    samples_per_query: int = 1,
    seed: int = 0,
    priority: Priority = "need",
) -> Iterator[Request]:
    """Yield the requests of `generate_documents`, all first samples before any second one.

    Queries with at least `min_users` distinct users and a logged positive. Priority `need` is the mean of
    three ranks among them: ambiguous (entropy of the clicks over items: Dou et al. 2007), rare (few users),
    badly served (small share of searches with a click). `searches`: most searched first.

    The exemplar is the query's most reliable logged positive that passes the guards: the one that most
    searches with a click speak for, then most reworded searches (P1), then most feed events (P2), then theta.
    Of its click queries only those of at least `min_users` users are kept.

    Raises:
        CropsError: a table of the mining output is missing or unreadable.
    """
    mine_output = Path(mine_output)
    chosen: list[tuple[str, int, Exemplar]] = []
    rows, common = _candidates(mine_output, min_users, priority)
    for (query, users), group in groupby(rows, key=lambda row: (row[0], row[1])):
        if limit is not None and len(chosen) == limit:
            break
        candidates = [_exemplar(row, common) for row in group]
        exemplar = next(
            (candidate for candidate in candidates if not check_exemplar(candidate)), candidates[0]
        )
        chosen.append((query, users, exemplar))
    for sample in range(samples_per_query):
        for query, users, exemplar in chosen:
            yield Request(query, users, exemplar, seed + sample)


def _exemplar(row: tuple[Any, ...], common: Collection[str]) -> Exemplar:
    texts = dict(zip(FIELDS, (text or "" for text in row[3:]), strict=True))
    # What led to clicks was typed by people, maybe by a single one.
    separator = SEPARATORS["click_query"]
    typed = texts["click_query"].split(separator)
    texts["click_query"] = separator.join(text for text in typed if normalise_query(text) in common)
    return Exemplar(row[2], texts)


def _candidates(
    mine_output: Path, min_users: int, priority: Priority
) -> tuple[list[tuple[Any, ...]], set[str]]:
    """Return (query, users, item_id, texts...) of the exemplars to try, and all queries of `min_users` users.

    The exemplars are in the order of the queries.
    """
    tables = {
        name: str(mine_output / f"{name}.parquet") for name in ("evidence", "samples", "queries", "items")
    }
    try:
        with duckdb.connect() as connection:
            sql = _SQL.format(order=_ORDER[priority])
            rows = connection.execute(sql, {**tables, "min_users": min_users}).fetchall()
            common = connection.execute(
                "select query from read_parquet($1) where users >= $2", [tables["queries"], min_users]
            ).fetchall()
            return rows, {query for (query,) in common}
    except duckdb.Error as error:
        raise CropsError(f"{mine_output} is not an output of `crops mine`: {error}") from error
