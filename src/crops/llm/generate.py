"""Documents that an LLM writes for mined queries: resumable, never fatal for a bad answer, never silent.

`generate_documents` chooses the queries and their exemplars from what was mined; `generate` writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from crops.database import failing_as, open_database, pattern
from crops.errors import CropsError
from crops.labels import POSITIVE_LABEL, Source
from crops.llm.batch import Budget, Row, ask_all, read_rows
from crops.llm.endpoint import Answer, Endpoint, Payload, Refusal, connect
from crops.llm.prompt import (
    FIELDS,
    MAX_EXEMPLAR_CHARS,
    MAX_QUERY_CHARS,
    MIN_USERS,
    SEPARATORS,
    Exemplar,
    Prompt,
    Request,
    check_answer,
    check_exemplar,
    check_query,
    check_request,
    check_users,
    clean,
    clean_request,
    json_format,
    load_prompt,
    load_template,
    tidy,
)
from crops.text import normalise_query


def generate(
    requests: Iterable[Request],
    prompt: Prompt,
    endpoint: Endpoint,
    cache: str | Path,
    *,
    min_users: int = MIN_USERS,
    budget: Budget | None = None,
    retry_refused: bool = False,
) -> dict[str, int]:
    """Append one document per request to the JSONL file `cache`; what it already answers is not sent again.

    What is refused goes to the quarantine of the cache. What the guards refused is not asked for again (the
    same seed would bring it again) unless `retry_refused`.

    Args:
        requests: what to write; equal ones are sent once.
        min_users: k-anonymity: queries of fewer users are refused.

    Returns:
        The counts of `crops.llm.batch.ask_all`.

    Raises:
        MissingExtraError: the `openai` package is not installed.
        CropsError: the endpoint is another machine and that is not allowed; it does not answer, or what it
            answers is unusable; the cache holds a broken line, or another run is writing it.
    """
    ask = connect(endpoint)
    keyed = {request_key(endpoint.identity, prompt.version, request): request for request in requests}

    def send(request: Request) -> Answer:
        readable = clean_request(request)
        return ask(prompt.payload(readable), lambda value: _document(value, readable, prompt))

    def row(key: str, request: Request, answer: Answer, said: Row) -> Row:
        exemplar = clean_request(request).exemplar
        return {
            "key": key,
            "query": request.query,
            **said,
            "angle": prompt.angle(request),
            "exemplar": {"item_id": str(exemplar.item_id), **exemplar.texts},
            "model": endpoint.model,
            "model_sha256": endpoint.model_sha256,
            "prompt_version": prompt.version,
            "seed": request.seed,
            "temperature": prompt.temperature,
            "tokens": answer.tokens,
            "seconds": round(answer.seconds, 2),
        }

    return ask_all(
        keyed,
        send,
        endpoint,
        Path(cache),
        name="generate",
        why_not=partial(check_request, min_users=min_users),
        row=row,
        budget=budget,
        retry_refused=retry_refused,
    )


def request_key(model: str, prompt_version: str, request: Request) -> str:
    """Return the SHA-256 that names one document: model, prompt, query, exemplar and seed decide it."""
    exemplar = [request.exemplar.item_id, dict(request.exemplar.texts)]
    parts = [model, prompt_version, request.query, exemplar, request.seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _document(value: object, request: Request, prompt: Prompt) -> dict[str, Any]:
    """Return the tidy document of an answer; refuse other fields than asked for, and what the guards do."""
    if not isinstance(value, dict) or set(value) != set(FIELDS):
        raise Refusal("wrong_fields", value)
    if not all(isinstance(part, str) for part in value.values()):
        raise Refusal("wrong_fields", value)
    document = tidy(value, request.query, prompt.limits)
    if reason := check_answer(document, request, prompt):
        raise Refusal(reason, value)
    return dict(document)


# From mined samples to requests: which queries are asked for, and with which exemplar.

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
    """Write documents for the training queries of `crops mine`; run again, it resumes if interrupted.

    Args:
        mine_output: a folder that `crops mine` wrote.
        out_jsonl: the cache of `generate`, which says more of the rest.
        limit: most queries asked for; all when None.
        samples_per_query: documents per query, each with its own seed and angle.
        seed: seed of the first sample.
        prompt: name of a packaged template, or path of an own one.
        priority: see `training_requests`.
        missing_only: leave out what `out_jsonl` holds a document of the same query and seed for, though its
            exemplar, model or prompt was another: clicks of a new day do not pay for all documents again.

    Returns:
        The counts of `generate`, and `queries` to have a document.

    Raises:
        CropsError: the folder holds no query that may be asked for, or as `generate`.
    """
    template = load_prompt(prompt)
    requests = list(training_requests(mine_output, limit, min_users, samples_per_query, seed, priority))
    if not requests:
        raise CropsError(
            f"{mine_output}: no query has a logged positive and at least {min_users} users; "
            "lower engine.knowledge.min_users or mine more days"
        )
    queries = len(requests) // samples_per_query
    if missing_only:
        there = {(row.get("query"), row.get("seed")) for row in read_rows(Path(out_jsonl))}
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
    names = ("evidence", "samples", "queries", "items")
    tables = {name: pattern(Path(mine_output) / f"{name}.parquet") for name in names}
    with failing_as(f"{mine_output} is not an output of `crops mine`"), open_database() as connection:
        sql = _SQL.format(order=_ORDER[priority])
        rows = connection.execute(sql, {**tables, "min_users": min_users}).fetchall()
        asked = connection.execute(
            "select query from read_parquet($1) where users >= $2", [tables["queries"], min_users]
        ).fetchall()
    common = {query for (query,) in asked}
    chosen: list[tuple[str, int, Exemplar]] = []
    for (query, users), group in groupby(rows, key=lambda row: (row[0], row[1])):
        if limit is not None and len(chosen) == limit:
            break
        candidates = [_exemplar(row, common) for row in group]
        exemplar = next((one for one in candidates if not check_exemplar(one)), candidates[0])
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


# An LLM as judge of (query, video): three grades, the same guards and the same cache as generation.

GRADES = ("irrelevant", "relevant", "very relevant")
"""The rubric's grades; a grade is its place, 0 to 2."""


@dataclass(frozen=True)
class Rubric:
    """The instruction to the judge; `version` names the file and its content."""

    version: str
    system: str
    max_tokens: int


@dataclass(frozen=True)
class JudgePair:
    """A pair to judge: its name, the normalised query, how many users typed it, the video's texts."""

    name: str
    query: str
    users: int
    video: Exemplar


def load_rubric(name: str = "judge-en") -> Rubric:
    """Read a packaged rubric, or an own one by the path of its `.toml` file.

    Raises:
        CropsError: there is none, or a part of it is missing or malformed.
    """

    def parse(version: str, values: dict[str, Any]) -> Rubric:
        return Rubric(version, values["system"].strip(), int(values["max_tokens"]))

    return load_template(name, "rubric", ("judge-en",), parse)


def judge_pairs(
    pairs: Iterable[JudgePair],
    rubric: Rubric,
    endpoint: Endpoint,
    cache: str | Path,
    *,
    min_users: int = MIN_USERS,
    budget: Budget | None = None,
    retry_refused: bool = False,
) -> tuple[dict[str, int], dict[str, int]]:
    """Ask the LLM for the grade of each pair; what `cache` answers already is not sent again.

    Grading is greedy (temperature 0). Refused pairs and unusable answers go to the quarantine of the cache
    with the reason, and get no grade; unusable answers are asked for again only with `retry_refused`.

    Returns:
        The grades (0 to 2) by the names of the pairs, and the counts of `crops.llm.batch.ask_all`.

    Raises:
        MissingExtraError: the `openai` package is not installed.
        CropsError: as `generate`.
    """
    ask = connect(endpoint)
    keyed = {pair.name: (_key(pair, rubric, endpoint), pair) for pair in pairs}

    def row(key: str, _: JudgePair, answer: Answer, said: Row) -> Row:
        return {"key": key, "model": endpoint.model, "rubric": rubric.version, **said}

    counts = ask_all(
        dict(keyed.values()),
        lambda pair: ask(_payload(pair, rubric), _grade),
        endpoint,
        Path(cache),
        name="judge",
        why_not=partial(_refused, min_users=min_users),
        row=row,
        budget=budget,
        retry_refused=retry_refused,
    )
    known = {row["key"]: row["grade"] for row in read_rows(Path(cache))}
    return {name: known[key] for name, (key, _) in keyed.items() if key in known}, counts


def _refused(pair: JudgePair, min_users: int) -> str | None:
    return check_users(pair.users, min_users) or check_query(pair.query) or check_exemplar(pair.video)


def _payload(pair: JudgePair, rubric: Rubric) -> Payload:
    texts = {field: clean(pair.video.texts.get(field) or "", MAX_EXEMPLAR_CHARS) for field in FIELDS[:2]}
    turn = {
        "query": clean(pair.query, MAX_QUERY_CHARS),
        "video": {"title": texts["ocr_cover"], "description": texts["photo_caption"]},
    }
    return {
        "messages": [
            {"role": "system", "content": rubric.system},
            {"role": "user", "content": json.dumps(turn, ensure_ascii=False)},
        ],
        "response_format": json_format("grade", {"grade": {"type": "string", "enum": list(GRADES)}}),
        "temperature": 0.0,
        "max_tokens": rubric.max_tokens,
        "seed": 0,
    }


def _grade(value: object) -> dict[str, Any]:
    grade = value.get("grade") if isinstance(value, dict) else None
    if grade not in GRADES:
        raise Refusal("wrong_fields", value)
    return {"grade": GRADES.index(grade)}


def _key(pair: JudgePair, rubric: Rubric, endpoint: Endpoint) -> str:
    texts = [pair.video.texts.get(field) or "" for field in FIELDS[:2]]
    parts = [endpoint.identity, rubric.version, pair.query, texts]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
