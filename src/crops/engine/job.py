"""The mining job: accepted logs in, graded samples out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from crops.config import EngineConfig
from crops.engine.backend import Backend, DuckDBBackend
from crops.engine.candidates import COLUMNS, NO_CANDIDATES, keep_relevant
from crops.engine.census import Census
from crops.engine.events import GROUP_COLUMN, load_events
from crops.engine.feed import NOTHING_NEAR, feed_sql, near_sql
from crops.engine.knowledge import load_generated
from crops.engine.memory import pieces
from crops.engine.merge import merge_sources
from crops.engine.parts import Part, query_parts, user_conditions
from crops.engine.reformulation import keep_similar, reformulations_sql
from crops.engine.report import build_report
from crops.engine.scoring import CachedScorer, cached, key_documents, scorer_names
from crops.engine.search import sample_searches
from crops.engine.spark import SparkBackend
from crops.engine.tables import emit_part, write_tables
from crops.labels import Source, parse_sources
from crops.logs import Logs
from crops.outputs import publish, timed, write_manifest
from crops.protocols import PairScorer

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
            load_events(backend, logs, config.days, config.bots, config.group_by)
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
    backend.cut("p2_near", NOTHING_NEAR, number)
    for users in user_conditions(backend):
        if p1:
            backend.append("p1_found", reformulations_sql(config.reformulation, users))
        if p2:
            backend.cut("p2_near", near_sql(config.feed, users), number)


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
