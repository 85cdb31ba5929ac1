"""From mined samples to generated documents: which queries are asked for, and with which exemplar."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import duckdb

from crops.errors import CropsError
from crops.labels import Source
from crops.llm.client import generate
from crops.llm.endpoint import Endpoint
from crops.llm.guards import MIN_USERS, check_exemplar
from crops.llm.prompt import FIELDS, Exemplar, Request, load_prompt

CANDIDATES = 3
"""Logged positives per query that are tried as exemplar, most clicked first, until one passes the guards."""

_SQL = f"""
with clicks as (
    select query_id, item_id, count(*) as clicks from read_parquet(?) where source = {int(Source.CLICKED)}
    group by query_id, item_id
), positives as (
    select s.query_id, s.item_id, row_number() over (
        partition by s.query_id order by coalesce(c.clicks, 0) desc, s.item_id
    ) as place
    from read_parquet(?) s left join clicks c using (query_id, item_id)
    where s.sources & {int(Source.CLICKED)} <> 0 and s.item_id > 0
)
select q.query, q.users, i.item_id, {", ".join(f"i.{field}" for field in FIELDS)}
from read_parquet(?) q join positives p using (query_id) join read_parquet(?) i using (item_id)
where p.place <= {CANDIDATES} and q.users >= ?
order by q.searches desc, q.query_id, p.place
"""


def generate_documents(
    mine_output: Path,
    out_jsonl: Path,
    *,
    base_url: str,
    model: str,
    model_sha256: str | None = None,
    limit: int | None = None,
    min_users: int = MIN_USERS,
    samples_per_query: int = 1,
    seed: int = 0,
    prompt: str = "en",
    concurrency: int = 4,
    token_budget: int | None = None,
    api_key: str = "none",
    allow_remote: bool = False,
) -> dict[str, int]:
    """Write documents for the training queries of `crops mine`; run it again to go on where it stopped.

    Priority: most searched first, among the queries with a logged clicked positive and at least `min_users`
    distinct users. The exemplar is the most clicked positive that passes the guards.

    Args:
        mine_output: a folder that `crops mine` wrote.
        out_jsonl: documents, one JSON object per line; also the cache of the run.
        base_url: any OpenAI-compatible endpoint, e.g. of `embedded_server` or vLLM.
        model: the model's name at the endpoint.
        model_sha256: identity of the weights, kept with every document.
        limit: most queries asked for; all when None.
        min_users: k-anonymity.
        samples_per_query: documents per query, each with its own seed and angle.
        seed: seed of the first sample.
        prompt: name of the prompt template.
        concurrency: requests under way at once; the server needs as many slots.
        token_budget: stop after this many generated tokens.
        api_key: key of the endpoint.
        allow_remote: let queries go to another machine.

    Returns:
        The counts of `crops.llm.client.generate`, and `queries` asked for.

    Raises:
        CropsError: the folder holds no query that may be asked for, or as `generate`.
    """
    requests = list(training_requests(mine_output, limit, min_users, samples_per_query, seed))
    if not requests:
        raise CropsError(
            f"{mine_output}: no query has a clicked positive and at least {min_users} users; "
            "lower min_users or mine more days"
        )
    endpoint = Endpoint(
        base_url, model, model_sha256, api_key=api_key, concurrency=concurrency, allow_remote=allow_remote
    )
    counts = generate(
        requests, load_prompt(prompt), endpoint, out_jsonl, min_users=min_users, token_budget=token_budget
    )
    return {"queries": len(requests) // samples_per_query, **counts}


def training_requests(
    mine_output: Path, limit: int | None, min_users: int, samples_per_query: int = 1, seed: int = 0
) -> Iterator[Request]:
    """Yield the requests of `generate_documents`, all first samples before any second one.

    Raises:
        CropsError: a table of the mining output is missing or unreadable.
    """
    tables = [str(mine_output / f"{name}.parquet") for name in ("evidence", "samples", "queries", "items")]
    try:
        with duckdb.connect() as connection:
            rows = connection.execute(_SQL, [*tables, min_users]).fetchall()
    except duckdb.Error as error:
        raise CropsError(f"{mine_output} is not an output of `crops mine`: {error}") from error
    chosen: list[tuple[str, int, Exemplar]] = []
    for (query, users), group in groupby(rows, key=lambda row: (row[0], row[1])):
        if limit is not None and len(chosen) == limit:
            break
        candidates = [
            Exemplar(row[2], dict(zip(FIELDS, (text or "" for text in row[3:]), strict=True)))
            for row in group
        ]
        exemplar = next(
            (candidate for candidate in candidates if not check_exemplar(candidate)), candidates[0]
        )
        chosen.append((query, users, exemplar))
    for sample in range(samples_per_query):
        for query, users, exemplar in chosen:
            yield Request(query, users, exemplar, seed + sample)
