"""The mining job: accepted logs in, graded samples out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crops.config import EngineConfig
from crops.engine.backend import (
    SEARCH_ROW,
    SQL_TYPES,
    Backend,
    DuckDBBackend,
    id_sql,
    merge_parts,
    pieces,
    shards,
)
from crops.engine.events import GROUP_COLUMN, load_events
from crops.engine.feed import NOTHING_NEAR, feed_sql, near_sql
from crops.engine.knowledge import load_generated
from crops.engine.merge import merge_sources, samples_sql
from crops.engine.reformulation import keep_similar, reformulations_sql
from crops.engine.report import Census, build_report
from crops.engine.scoring import (
    COLUMNS,
    NO_CANDIDATES,
    CachedScorer,
    cached,
    keep_relevant,
    key_documents,
    scorer_names,
)
from crops.engine.search import sample_searches
from crops.engine.spark import SparkBackend
from crops.engine.without import Without, count_left_out
from crops.labels import Source, parse_sources
from crops.logs import Logs
from crops.outputs import publish, timed, write_manifest
from crops.protocols import PairScorer
from crops.schema import ARROW_TYPES, EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS, Table

RULES = {
    "consumed": "clicked, liked or played 18 s, or all of a shorter item; a length of 0 is unknown",
    "ties": "of a user's pairs P1 first, then by theta, equal ones drawn by the seed; of a stage's, drawn",
}

"""What the manifest says beside the settings."""

REPORT = "report.json"


def mine(
    logs: Logs,
    out: str | Path,
    config: EngineConfig,
    *,
    relevance: PairScorer | CachedScorer | None,
    similarity: PairScorer | CachedScorer | None,
    generated: str | Path | None = None,
    seed: int = 0,
    without: Without | None = None,
    noted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Mine graded samples from accepted logs and write them to a folder.

    Equal logs, settings, scores and seed give equal tables, whatever the order of rows, the engine, its
    memory and the number of threads.

    Args:
        logs: accepted logs.
        out: the folder to write: samples, queries, evidence, items and synthetic_items as Parquet,
            report.json and manifest.json. It appears whole or not at all. Spark's workers must see it.
        config: engine, days and sources, thresholds and caps.
        relevance: theta(q, d) over (query text, document text); without it P1 and P2 are not filtered by it.
            As a `CachedScorer` its scores outlive the job, and a killed job goes on from them.
        similarity: P(same intent) over two query texts; without it P1 is not filtered by it.
        generated: JSON lines of LLM documents for P3.
        seed: of the random choices under the caps.
        without: users and items that are left out, as if the logs had never held them; report.json counts
            their rows.
        noted: further entries of the manifest.

    Returns:
        The report (see `crops.engine.report.build_report`), as written to report.json.

    Raises:
        CropsError: an unknown source, no search on the days, unusable `generated` or `out`, a scorer broke
            its contract, or the engine cannot be reached or runs out of memory or disk.
    """
    generated = None if generated is None else Path(generated)
    out = Path(out)
    wanted = parse_sources(config.sources)
    seconds: dict[str, float] = {}
    census, by_event = Census(), config.group_by == "event"
    with open_backend(config) as backend, publish(out, "mine") as folder:
        scratch = folder / ".scores"
        theta, intent = cached(relevance, scratch / "relevance"), cached(similarity, scratch / "similarity")
        backend.check_workers(folder, logs, [scorer for scorer in (theta, intent) if scorer])
        with timed(seconds, "read the logs"):
            load_events(backend, logs, config.days, config.bots, config.group_by, without=without)
            # Before the long work: a bad line in the file should not cost an hour of scoring.
            load_generated(backend, generated if Source.KNOWLEDGE & wanted else None, config.knowledge, seed)
        with timed(seconds, "P1 and P2 candidates"):
            _find_candidates(backend, config, wanted)
        with timed(seconds, "similarity"):
            keep_similar(backend, config.reformulation, intent)
        with timed(seconds, "relevance"):
            if theta:
                key_documents(backend, "select item_id from p1_similar union select item_id from p2_near")
        for part in query_parts(backend, config):
            _mine_part(backend, part, config, wanted, theta, seed, seconds)
            census.add(backend)
            with timed(seconds, "write"):
                emit_part(backend, folder, by_event)
        with timed(seconds, "write"):
            write_tables(backend, folder, by_event)
            shutil.rmtree(scratch, ignore_errors=True)
            report = build_report(
                backend, config, census, theta=theta is not None, similarity=intent is not None
            )
            if without is not None:
                report["input"]["without"] = count_left_out(backend)
            (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        settings = {"seed": seed, "engine": config.model_dump(mode="json", exclude_none=True)}
        write_manifest(
            folder,
            "mine",
            config=settings,
            seconds=seconds,
            logs=str(logs.path.absolute()),
            days=report["days"],
            generated=None if generated is None else str(generated.absolute()),
            scorers=scorer_names(relevance, similarity),
            rules=RULES,
            **(noted or {}),
        )
    return report


def open_backend(config: EngineConfig) -> Backend:
    """Return the engine that the settings name.

    Raises:
        CropsError: `memory` is no size, or Spark is not installed or not reachable.
    """
    if config.engine == "spark":
        return SparkBackend(config.master, config.memory)
    return DuckDBBackend(config.memory)


def _find_candidates(backend: Backend, config: EngineConfig, wanted: Source) -> None:
    p1, p2 = Source.REFORMULATION & wanted, Source.FEED & wanted
    number = pieces(backend.count("impressions"), backend.memory)
    backend.table("p1_found", NO_CANDIDATES)
    backend.append_partitioned("p2_near", NOTHING_NEAR, number)
    for users in user_conditions(backend):
        if p1:
            backend.append("p1_found", reformulations_sql(config.reformulation, users))
        if p2:
            backend.append_partitioned("p2_near", near_sql(config.feed, users), number)


def _mine_part(
    backend: Backend,
    part: Part,
    config: EngineConfig,
    wanted: Source,
    theta: CachedScorer | None,
    seed: int,
    seconds: dict[str, float],
) -> None:
    impressions, searches = part.of("impressions"), part.of("searches")
    with timed(seconds, "search samples"):
        sample_searches(backend, impressions, config.search if Source.CLICKED & wanted else None, seed)
    with timed(seconds, "relevance"):
        alpha = {Source.REFORMULATION: config.reformulation.relevance, Source.FEED: config.feed.relevance}
        near = f"select n.*, {GROUP_COLUMN[config.group_by]} as group_id from ({part.of('p2_near')}) n"
        backend.table("near", near)
        backend.table("p2_found", feed_sql(config.feed))
        found = f"select {COLUMNS} from ({part.of('p1_similar')}) c union all select {COLUMNS} from p2_found"
        keep_relevant(backend, found, searches, alpha, theta)
    with timed(seconds, "merge"):
        backend.table("generated_pairs", part.of("generated_groups"))
        merge_sources(backend, impressions, searches, config.max_positives_per_user, seed)


# ------------------------------------------------------------------------------
# A job in parts that fit into memory: mining by user, merging by query. Every query is in one part only and
# the parts follow each other in the order of the output, so results do not depend on their number.


@dataclass(frozen=True)
class Part:
    """The queries of a part: `low` to `high` of their ids, all when None."""

    min_users: int
    low: int | None = None
    high: int | None = None

    def of(self, table: str) -> str:
        """Return the SELECT of the part's rows of a table with a column `query_id`."""
        tests = ["1 = 1"]
        if self.low is not None and self.high is not None:
            tests = [f"query_id between {id_sql(self.low)} and {id_sql(self.high)}"]
        if self.min_users > 1:
            tests.append(f"query_id in (select query_id from queries where users >= {self.min_users})")
        return f"select * from {table} where {' and '.join(tests)}"


def user_conditions(backend: Backend) -> list[str]:
    """Return SQL conditions on `user_id` that cut all users into parts by user_id modulo their number."""
    number = shards(backend.count("searches"), SEARCH_ROW, backend.memory)
    if number == 1:
        return ["1 = 1"]
    # SQL's % keeps the sign of the dividend.
    return [f"(user_id % {number} + {number}) % {number} = {part}" for part in range(number)]


def query_parts(backend: Backend, config: EngineConfig) -> Iterator[Part]:
    """Yield the parts by query, lowest ids first; query ids are hashes, so this is a cut by hash(query)."""
    rows = sum(backend.count(table) for table in ("impressions", "p1_similar", "p2_near"))
    number = merge_parts(rows, backend.memory)
    if number == 1:
        yield Part(config.min_users)
        return
    total = backend.rows("select sum(searches) as n from queries")[0]["n"]
    bounds = backend.rows(
        f"""
        select part, min(query_id) as low, max(query_id) as high from (
            select query_id, cast(floor((sum(searches) over (order by query_id) - 1) * {number} / {total}) as
            BIGINT)
                as part
            from queries
        ) q group by part order by part
        """
    )
    for row in bounds:
        yield Part(config.min_users, row["low"], row["high"])


# ------------------------------------------------------------------------------
# The tables that a job writes, in the columns and types of the contract.


_EVIDENCE_ORDER = (
    "r.item_id, r.source, r.search_id nulls last, r.via_query_id nulls last, r.watched_at nulls last, r.day"
)

_EVENT_QUERIES = """
select s.search_id as query_id, q.query, 1 as searches, q.users
from searches s join queries q on q.query_id = s.query_id
"""


def emit_part(backend: Backend, folder: Path, by_event: bool) -> None:
    """Add the samples and the evidence of a part to what will be written to `folder`.

    Sorted by query; where groups are events by query, then event, and `query_id` is the event's search_id.
    """
    for table, rows, order in (
        (SAMPLES, samples_sql(), "r.item_id"),
        (EVIDENCE, "select * from evidence", _EVIDENCE_ORDER),
    ):
        columns = columns_sql(table, {"query_id": "group_id"})
        select, first = f"select {columns} from ({rows}) r", "r.group_id"
        if by_event:
            select, first = f"{select} join groups g on g.group_id = r.group_id", "g.query_id, r.group_id"
        backend.emit(select, f"{first}, {order}", folder / f"{table.name}.parquet")


def write_tables(backend: Backend, folder: Path, by_event: bool) -> None:
    """Write all tables, the samples and evidence as they were emitted."""
    queries = _EVENT_QUERIES if by_event else "select * from queries"
    for table, rows, key in (
        (QUERIES, queries, "query_id"),
        (ITEMS, "select * from log_items", "item_id"),
        (SYNTHETIC_ITEMS, "select * from synthetic_items", "item_id"),
    ):
        backend.emit(
            f"select {columns_sql(table, {})} from ({rows}) r", f"r.{key}", folder / f"{table.name}.parquet"
        )
    for table in (SAMPLES, QUERIES, EVIDENCE, ITEMS, SYNTHETIC_ITEMS):
        backend.write(folder / f"{table.name}.parquet")


def columns_sql(table: Table, renamed: dict[str, str]) -> str:
    """Return the columns of a table, cast to its types, read from the alias `r`, some under other names."""
    types = {column.name: SQL_TYPES[ARROW_TYPES[column.type]] for column in table.columns}
    return ", ".join(
        f"cast(r.{renamed.get(name, name)} as {type_}) as {name}" for name, type_ in types.items()
    )
