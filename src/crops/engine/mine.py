"""The mining job from top to bottom: accepted logs in, graded training samples out.

`mine` names the steps, and `TABLES` what they make, in this order. Mining goes by shards of users, merging by
partitions of queries; both are cut so that they fit into memory. Every query is in one partition only, and
these follow each other in the order of the output: results do not depend on their number.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from crops.config import DocumentConfig, EngineConfig
from crops.engine.backend import (
    SEARCH_ROW,
    Backend,
    DuckDBBackend,
    file_partitions,
    id_sql,
    query_partitions,
    shards,
)
from crops.engine.candidates import COLUMNS, NO_CANDIDATES, Miner, keep_relevant, keep_same_intent, miners
from crops.engine.documents import COUNTED, count_click_queries, with_click_queries
from crops.engine.events import GROUP_COLUMN, load_events
from crops.engine.knowledge import load_generated
from crops.engine.merge import merge_sources, samples_sql
from crops.engine.midnight import Beside
from crops.engine.mined import REPORT, columns_sql
from crops.engine.report import PairCounts, build_report
from crops.engine.scoring import CachedScorer, cached, key_documents, scorer_names
from crops.engine.search import sample_stages
from crops.engine.spark import SparkBackend
from crops.engine.stages import build_key, work_folder
from crops.engine.without import Without, count_left_out
from crops.errors import CropsError
from crops.labels import Origin, Source, parse_sources
from crops.logs import Logs
from crops.logs.days import spans
from crops.outputs import publish, timed, write_manifest
from crops.protocols import PairScorer
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS


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
    document: DocumentConfig | None = None,
    history: Mapping[str, Logs] | None = None,
    beside: Beside | None = None,
    used_items: bool = False,
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
            As a `CachedScorer` its scores outlive the job, and a killed job resumes from them.
        similarity: P(same intent) over two query texts; without it P1 is not filtered by it.
        generated: JSON lines of LLM documents for P3.
        seed: of the random choices under the caps.
        without: users and items that are left out, as if the logs had never held them; report.json counts
            their rows.
        document: if its fields name click_query, that column of items is counted anew, on the days before
            the first one mined.
        history: logs by day where it is counted; those mined when None.
        beside: the days beside the mined ones, where these see over midnight.
        used_items: whether items are those of the samples, and those whose click queries were counted; the
            whole catalogue otherwise.
        noted: further entries of the manifest.

    Returns:
        The report (see `crops.engine.report.build_report`), as written to report.json.

    Raises:
        CropsError: an unknown source, no search on the days, unusable `generated` or `out`, a scorer broke
            its contract, or the engine cannot be reached or runs out of memory or disk.
    """
    generated = None if generated is None else Path(generated).absolute()
    wanted = parse_sources(config.sources)
    if Source.PROMOTED & wanted and relevance is None:
        raise CropsError(
            "engine.sources holds p4, which promotes what theta finds right, and there is no theta; name one "
            "in relevance.model or relevance.evidence (crops theta fit), or leave p4 out"
        )
    seconds: dict[str, float] = {}
    clicks, counted = None, None
    with open_backend(config) as backend, publish(out, "mine") as folder:
        scratch = folder / ".scores"
        theta, intent = cached(relevance, scratch / "relevance"), cached(similarity, scratch / "similarity")
        counts = document is not None and document.counts_clicks
        history = (history or dict.fromkeys(logs.search_days, logs)) if counts else {}
        others = [generated] if generated and generated.exists() else []
        around, around_days = (beside.files(), beside.logs) if beside else ([], {})
        backend.check_workers(
            folder,
            logs,
            [scorer for scorer in (theta, intent) if scorer],
            [*others, *(file for file in around if isinstance(file, Path))],
        )
        read = [(logs, config.days), *((of_day, [day]) for day, of_day in history.items())]
        build = functools.partial(
            build_key,
            {file for one, days in read for table in one.tables.values() for file in table.on(days).files}
            | {*around},
            others,
            config.model_dump(exclude={"engine", "master", "memory"}),
            (seed, document, sorted(history), without and without.digest(), sorted(around_days)),
            [one.snapshots() for one in [*(logs for logs, _ in read), *around_days.values()]],
            # A scorer without a cache of its own has no name, so no other job can take its stages.
            [one and (one.folder.name, one in (relevance, similarity) or folder) for one in (theta, intent)],
        )
        work = work_folder(Path(os.path.realpath(out)))
        if document is not None and counts:
            with timed(seconds, "click queries"), open_backend(config) as counting:
                counting.keep_in(work / "clicks", build)
                first = min(config.days or logs.search_days, default="")
                clicks, counted = count_click_queries(
                    counting, history, first, document, config.bots, without
                )
        backend.keep_in(work / "mined", build)
        run = Run(
            backend,
            logs,
            folder,
            config,
            wanted,
            theta,
            intent,
            generated,
            seed,
            without,
            miners(wanted),
            beside,
        )
        for name, step in (  # the names stand in the manifest, with their seconds
            ("read the logs", read_logs),
            ("P1 and P2 candidates", find_candidates),
            ("similarity", keep_similar),
            ("relevance", key_texts),
        ):
            with timed(seconds, name):
                step(run)
        for partition in partitions(run):
            for name, merging in (
                ("search samples", sample_search),
                ("relevance", keep_above_alpha),
                ("merge", merge),
                ("write", write_partition),
            ):
                with timed(seconds, name):
                    merging(run, partition)
        with timed(seconds, "write"):
            write_tables(run, clicks, used_items=used_items)
            shutil.rmtree(scratch, ignore_errors=True)
            report = build_report(
                backend, config, run.counts, theta=theta is not None, similarity=intent is not None
            )
            if without is not None:
                report["input"]["without"] = count_left_out(backend)
            if beside is not None:
                report["notes"].append(_beside_note(beside, report["days"]))
            if counted is not None:
                report["notes"].append(_counted_note(counted))
            (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        write_manifest(
            folder,
            "mine",
            config={
                "seed": seed,
                "engine": config.model_dump(mode="json", exclude_none=True),
                **(
                    {}
                    if counted is None or document is None
                    else {"document": document.model_dump(mode="json")}
                ),
            },
            seconds=seconds,
            logs=str(logs.path),
            days=report["days"],
            generated=None if generated is None else str(generated),
            scorers=scorer_names(relevance, similarity),
            rules=RULES,
            **{"without": without.digest() if without else "", **(noted or {})},
            **({} if counted is None else {COUNTED: counted}),
            **({"snapshots": found} if (found := logs.snapshots()) else {}),
        )
        shutil.rmtree(work, ignore_errors=True)
    return report


def _beside_note(beside: Beside, days: Sequence[str]) -> str:
    seen = f"the rows of {spans(beside.logs)} near midnight" if beside.logs else "no day beside it"
    return f"{spans(days)}: P1 and P2 see {seen}"


def _counted_note(days: Sequence[str]) -> str:
    if not days:
        return "no day before the mined ones is in the logs: no document has click queries"
    return f"click queries of the documents: counted on {spans(days)}"


RULES = {
    "consumed": "clicked, liked or played 18 s, or all of a shorter item; a length of 0 is unknown",
    "ties": "of a user's pairs P1 first, then by theta, equal ones drawn by the seed; of a stage's, drawn",
}
"""What the manifest says besides the settings."""


def open_backend(config: EngineConfig) -> Backend:
    """Return the engine that the settings name.

    Raises:
        CropsError: `memory` is no size, or Spark is not installed or not reachable.
    """
    if config.engine == "spark":
        return SparkBackend(config.master, config.memory)
    return DuckDBBackend(config.memory)


TABLES = {
    # Read the logs (`crops.engine.without`, `crops.engine.events`).
    "log_impressions": "as the contract: a row of search_impressions of the days",
    "log_feed": "as the contract: a row of feed_events of the days",
    "log_items": "as the contract: a row of the catalogue",
    "texts": "raw VARCHAR, query_id BIGINT, query VARCHAR: a text as typed, its id and normal form",
    "bots": "user_id BIGINT: a user left out as bot-like",
    "searches": "search_id BIGINT, group_id BIGINT, query_id BIGINT, user_id BIGINT, searched_at BIGINT, "
    "day VARCHAR: a query event of the other users, in its training group",
    "bot_searches": "search_id BIGINT: a search of a bot-like user",
    "queries": "query_id BIGINT, query VARCHAR, searches BIGINT, users BIGINT: a distinct normalised query",
    "groups": "group_id BIGINT, query_id BIGINT: a training group, which is a query or an event",
    "staged_impressions": "search_id BIGINT, query_id BIGINT, item_id BIGINT, source INTEGER, "
    "consumed BOOLEAN: an impression with the bit of its stage",
    "impressions": "those of staged_impressions, group_id BIGINT: the same, in its group",
    "feed": "user_id BIGINT, item_id BIGINT, watched_at BIGINT: what was consumed in the feed",
    "documents": "item_id BIGINT, text VARCHAR: the document text of a real item",
    # What P1 and P2 look at: these, and rows of the days beside one that sees over midnight
    # (`crops.engine.midnight`, whose own tables begin with `beside`).
    "later_searches": "search_id BIGINT, query_id BIGINT, user_id BIGINT, searched_at BIGINT: what may be a "
    "later query",
    "later_impressions": "search_id BIGINT, item_id BIGINT, consumed BOOLEAN: their impressions",
    "near_feed": "those of feed: what may be near a search",
    "wordings": "query_id BIGINT, query VARCHAR: the texts of both queries of P1",
    # Generated documents (`crops.engine.knowledge`).
    "generated": "query_id BIGINT, item_id BIGINT, and their texts: a document that an LLM wrote",
    "p3": "query_id BIGINT, item_id BIGINT: a pair within the caps",
    "generated_groups": "group_id BIGINT, query_id BIGINT, item_id BIGINT: the same for each group",
    "synthetic_items": "as the contract: a generated document that is in p3",
    # Candidates of the sources that read the logs, by users (`crops.engine.reformulation`, `.feed`).
    "p1_found": "query_id BIGINT, item_id BIGINT, search_id BIGINT, via_query_id BIGINT, user_id BIGINT: "
    "an item consumed after a later query",
    "p2_found": "query_id BIGINT, search_id BIGINT, user_id BIGINT, item_id BIGINT, watched_at BIGINT, "
    "distance BIGINT: an item consumed in the feed near a search",
    "p1_similar": "those of p1_found: those whose two queries mean the same",
    "similarity": "left_id BIGINT, right_id BIGINT, right_key BIGINT, score DOUBLE: of two queries",
    "document_keys": "item_id BIGINT, key BIGINT: the hash of a document text that is scored",
    # Of each partition by query: search itself (`crops.engine.search`), then the candidates and their filter
    # (`crops.engine.candidates`).
    "search_pairs": "group_id BIGINT, item_id BIGINT, considered INTEGER, stage INTEGER: a pair with the "
    "bits of its stages, and the highest",
    "staged": "group_id BIGINT, item_id BIGINT, considered INTEGER, kept INTEGER: what search did with "
    "a pair, and those bits if it is kept",
    "near": "those of p2_found, group_id BIGINT: the same, in its group",
    "candidates": "group_id BIGINT, query_id BIGINT, item_id BIGINT, source INTEGER, search_id BIGINT, "
    "via_query_id BIGINT, user_id BIGINT, watched_at BIGINT: an event that speaks for a pair",
    "candidate_pairs": "query_id BIGINT, item_id BIGINT, sources INTEGER: its distinct pairs",
    "theta": "left_id BIGINT, right_id BIGINT, right_key BIGINT, sources INTEGER, score DOUBLE: the "
    "relevance of a pair",
    "scored_pairs": "query_id BIGINT, item_id BIGINT, sources INTEGER, theta DOUBLE: those above alpha",
    "relevant": "those of candidates, theta DOUBLE: their events",
    # And the merge (`crops.engine.merge`).
    "generated_pairs": "those of generated_groups: those of the partition",
    "crowded": "group_id BIGINT, user_id BIGINT: a user with more events than the cap",
    "positives": "group_id BIGINT, item_id BIGINT, source INTEGER, search_id BIGINT, via_query_id BIGINT, "
    "watched_at BIGINT, theta DOUBLE: an event within the cap per user",
    "positive_pairs": "group_id BIGINT, item_id BIGINT, bits INTEGER: a pair of positives, or of P3",
    "merged": "group_id BIGINT, item_id BIGINT, considered INTEGER, sources INTEGER: all that was considered "
    "or found; sources is 0 where nothing is kept",
    "evidence": "group_id BIGINT, item_id BIGINT, source INTEGER, search_id BIGINT, via_query_id BIGINT, "
    "watched_at BIGINT, theta DOUBLE, day VARCHAR: an event that made a pair positive",
}
"""Every table there is at the end, with its columns and what a row is; a test compares them with a job."""


@dataclass
class Run:
    """A mining job at work."""

    backend: Backend
    logs: Logs
    folder: Path
    config: EngineConfig
    wanted: Source
    theta: CachedScorer | None
    intent: CachedScorer | None
    generated: Path | None
    seed: int
    without: Without | None
    miners: Mapping[Origin, Miner]
    beside: Beside | None = None
    counts: PairCounts = field(default_factory=PairCounts)

    def settings(self, row: Origin) -> Any:  # noqa: ANN401  (of any source)
        """Return the settings of a source."""
        return getattr(self.config, row.section)

    def candidates(self) -> dict[Origin, str]:
        """Return the tables with the events of each source that may become candidates."""
        return {
            row: f"{row.key}_similar" if miner.same_intent else f"{row.key}_found"
            for row, miner in self.miners.items()
        }


def read_logs(run: Run) -> None:
    """Read what the job needs of the logs and, before the long work, the generated documents."""
    config = run.config
    load_events(
        run.backend,
        run.logs,
        config.days,
        config.bots,
        config.group_by,
        without=run.without,
        beside=run.beside,
    )
    generated = run.generated if Source.KNOWLEDGE & run.wanted else None
    load_generated(run.backend, generated, config.knowledge, run.seed)


def find_candidates(run: Run) -> None:
    """Find what may be positive of each source, one shard of users at a time."""
    partitions = file_partitions(run.backend.count("impressions"), run.backend.memory)
    for users in user_shards(run.backend):
        for row, miner in run.miners.items():
            found = miner.find(run.settings(row), users)
            run.backend.append_partitioned(f"{row.key}_found", found, partitions)


def keep_similar(run: Run) -> None:
    """Keep the events whose later query means the same."""
    for row, miner in run.miners.items():
        if miner.same_intent:
            threshold = run.settings(row).similarity
            keep_same_intent(run.backend, f"{row.key}_found", f"{row.key}_similar", threshold, run.intent)


def key_texts(run: Run) -> None:
    """Hash the document texts that will be scored."""
    if run.theta:
        tables = [f"({NO_CANDIDATES}) c", *run.candidates().values()]
        items = " union ".join(f"select item_id from {table}" for table in tables)
        key_documents(run.backend, items, by_item=run.theta.by_item)


def sample_search(run: Run, partition: Partition) -> None:
    """Take the stages of search, capped."""
    config = run.config.search if Source.CLICKED & run.wanted else None
    sample_stages(run.backend, partition.of("impressions"), config, run.seed)


def keep_above_alpha(run: Run, partition: Partition) -> None:
    """Make candidates of what was found, and keep the relevant ones."""
    group, selects = GROUP_COLUMN[run.config.group_by], [NO_CANDIDATES]
    for row, table in run.candidates().items():
        found = f"select f.*, f.{group} as group_id from ({partition.of(table)}) f"
        selects.append(run.miners[row].candidates(run.backend, run.settings(row), found))
    run.backend.table("candidates", " union all ".join(f"select {COLUMNS} from ({one}) c" for one in selects))
    alpha = {row.bit: run.settings(row).relevance for row in run.miners}
    keep_relevant(run.backend, "candidates", partition.of("searches"), alpha, run.theta)


def merge(run: Run, partition: Partition) -> None:
    """Unite the sources: the highest label wins, every bit stays, no user steers a query alone."""
    run.backend.table("generated_pairs", partition.of("generated_groups"))
    impressions, searches = partition.of("impressions"), partition.of("searches")
    merge_sources(run.backend, impressions, searches, run.config.max_positives_per_user, run.seed)


def write_partition(run: Run, partition: Partition) -> None:
    """Count the partition, and add its samples and evidence to their files.

    Sorted by query; where groups are events by query, then event, and `query_id` is the event's search_id.
    """
    run.counts.add(run.backend)
    for table, rows, order in (
        (SAMPLES, samples_sql(), "r.item_id"),
        (
            EVIDENCE,
            "select * from evidence",
            "r.item_id, r.source, r.search_id nulls last, r.via_query_id nulls last, "
            "r.watched_at nulls last, r.day",
        ),
    ):
        columns = columns_sql(table, {"query_id": "group_id"})
        select, first = f"select {columns} from ({rows}) r", "r.group_id"
        if run.config.group_by == "event":
            select, first = f"{select} join groups g on g.group_id = r.group_id", "g.query_id, r.group_id"
        run.backend.emit(select, f"{first}, {order}", run.folder / f"{table.name}.parquet")


def write_tables(run: Run, clicks: pa.Table | None, *, used_items: bool) -> None:
    """Write all tables, the samples and evidence as they were added; `clicks` in place of items' own."""
    for table in (SAMPLES, EVIDENCE):
        run.backend.write(run.folder / f"{table.name}.parquet")
    items = "select * from log_items"
    if clicks is not None:
        run.backend.load("click_queries", clicks.schema, clicks.to_batches())
        items = with_click_queries("log_items", "click_queries")
    if used_items:  # what evidence names is in the samples
        samples = run.folder / f"{SAMPLES.name}.parquet"
        run.backend.read_parquet("written_samples", [samples], SAMPLES.arrow())
        used = "select item_id from written_samples"
        used += "" if clicks is None else " union all select item_id from click_queries"
        items = f"select i.* from ({items}) i where i.item_id in ({used})"
    events = (
        "select s.search_id as query_id, q.query, 1 as searches, q.users "
        "from searches s join queries q on q.query_id = s.query_id"
    )
    queries = events if run.config.group_by == "event" else "select * from queries"
    for table, rows, key in (
        (QUERIES, queries, "query_id"),
        (ITEMS, items, "item_id"),
        (SYNTHETIC_ITEMS, "select * from synthetic_items", "item_id"),
    ):
        select = f"select {columns_sql(table)} from ({rows}) r"
        run.backend.emit(select, f"r.{key}", run.folder / f"{table.name}.parquet")
    for table in (QUERIES, ITEMS, SYNTHETIC_ITEMS):
        run.backend.write(run.folder / f"{table.name}.parquet")


def user_shards(backend: Backend) -> list[str]:
    """Return SQL conditions on `user_id` that cut all users into shards by user_id modulo their number."""
    number = shards(backend.count("searches"), SEARCH_ROW, backend.memory)
    if number == 1:
        return ["1 = 1"]
    # SQL's % keeps the sign of the dividend.
    return [f"(user_id % {number} + {number}) % {number} = {shard}" for shard in range(number)]


@dataclass(frozen=True)
class Partition:
    """The queries of a partition: `low` to `high` of their ids, all when None."""

    min_users: int
    low: int | None = None
    high: int | None = None

    def of(self, table: str) -> str:
        """Return the SELECT of the partition's rows of a table with a column `query_id`."""
        tests = ["1 = 1"]
        if self.low is not None and self.high is not None:
            tests = [f"query_id between {id_sql(self.low)} and {id_sql(self.high)}"]
        if self.min_users > 1:
            tests.append(f"query_id in (select query_id from queries where users >= {self.min_users})")
        return f"select * from {table} where {' and '.join(tests)}"


def partitions(run: Run) -> Iterator[Partition]:
    """Yield the partitions, lowest query ids first; these are hashes, so this is a cut by hash(query)."""
    backend, least = run.backend, run.config.min_users
    rows = sum(backend.count(table) for table in ("impressions", *run.candidates().values()))
    number = query_partitions(rows, backend.memory)
    if number == 1:
        yield Partition(least)
        return
    total = backend.rows("select sum(searches) as n from queries")[0]["n"]
    for row in backend.rows(
        f"""
        select bucket, min(query_id) as low, max(query_id) as high from (
            select query_id, cast(
                floor((sum(searches) over (order by query_id) - 1) * {number} / {total}) as BIGINT
            ) as bucket
            from queries
        ) q group by bucket order by bucket
        """
    ):
        yield Partition(least, row["low"], row["high"])
