"""The mining job: accepted logs in, graded samples out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crops.config import EngineConfig
from crops.engine.backend import DuckDBBackend
from crops.engine.candidates import COLUMNS, NO_CANDIDATES, keep_relevant
from crops.engine.events import load_events
from crops.engine.feed import feed_sql
from crops.engine.knowledge import load_generated
from crops.engine.merge import merge_sources
from crops.engine.reformulation import find_reformulations, reformulations_sql
from crops.engine.report import build_report
from crops.engine.search import sample_searches
from crops.labels import Source, parse_sources
from crops.logs import Logs
from crops.outputs import publish, timed, write_manifest
from crops.protocols import PairScorer
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS

REPORT = "report.json"

_OUTPUTS = (
    (SAMPLES, "samples", "query_id, item_id"),
    (QUERIES, "queries", "query_id"),
    (EVIDENCE, "evidence", "query_id, item_id, source, search_id, via_query_id, watched_at, day"),
    (ITEMS, "log_items", "item_id"),
    (SYNTHETIC_ITEMS, "synthetic_items", "item_id"),
)
"""Table of the contract, where its rows are, their order in the file."""


def mine(
    logs: Logs,
    out: Path,
    config: EngineConfig,
    *,
    relevance: PairScorer | None,
    similarity: PairScorer | None,
    generated: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Mine graded samples from accepted logs and write them to a folder.

    Equal logs, settings, scores and seed give equal tables, whatever the order of rows and the number of
    threads.

    Args:
        logs: accepted logs.
        out: the folder to write: samples, queries, evidence, items and synthetic_items as Parquet,
            report.json and manifest.json. It appears whole or not at all.
        config: which days and sources, thresholds and caps.
        relevance: theta(q, d) over (query text, document text); without it P1 and P2 are not filtered by it.
        similarity: P(same intent) over two query texts; without it P1 is not filtered by it.
        generated: JSON lines of LLM documents for P3.
        seed: of the random choices under the caps.

    Returns:
        The report (see `crops.engine.report.build_report`), as written to report.json.

    Raises:
        CropsError: an unknown source, no search on the days, unusable `generated` or `out`, or a scorer broke
            its contract.
    """
    wanted = parse_sources(config.sources)
    seconds: dict[str, float] = {}
    with publish(out, "mine") as folder, DuckDBBackend(config.memory) as backend:
        with timed(seconds, "read the logs"):
            load_events(backend, logs, config.days)
            # Before the long work: a bad line in the file should not cost an hour of scoring.
            load_generated(backend, generated if Source.KNOWLEDGE & wanted else None, config.knowledge, seed)
        with timed(seconds, "search samples"):
            sample_searches(backend, config.search if Source.CLICKED & wanted else None, seed)
        with timed(seconds, "P1 and P2 candidates"):
            _find_candidates(backend, config, wanted, similarity)
        with timed(seconds, "relevance"):
            alpha = {Source.REFORMULATION: config.reformulation.relevance, Source.FEED: config.feed.relevance}
            found = f"select {COLUMNS} from p1_similar union all select {COLUMNS} from p2_found"
            keep_relevant(backend, found, alpha, relevance)
        with timed(seconds, "merge"):
            merge_sources(backend, config.max_positives_per_user, seed)
        with timed(seconds, "write"):
            report = build_report(
                backend, config, theta=relevance is not None, similarity=similarity is not None
            )
            _write(backend, folder, report)
        settings = {"seed": seed, "engine": config.model_dump(mode="json", exclude_none=True)}
        write_manifest(
            folder, "mine", config=settings, seconds=seconds, logs=str(logs.path), days=report["days"]
        )
    return report


def _find_candidates(
    backend: DuckDBBackend, config: EngineConfig, wanted: Source, similarity: PairScorer | None
) -> None:
    p1 = reformulations_sql(config.reformulation) if Source.REFORMULATION & wanted else NO_CANDIDATES
    find_reformulations(backend, p1, config.reformulation, similarity)
    backend.table("p2_found", feed_sql(config.feed) if Source.FEED & wanted else NO_CANDIDATES)


def _write(backend: DuckDBBackend, folder: Path, report: dict[str, Any]) -> None:
    for table, rows, order in _OUTPUTS:
        columns = ", ".join(
            f"cast({column.name} as {column.type}) as {column.name}" for column in table.columns
        )
        backend.write(f"select {columns} from {rows} order by {order}", folder / f"{table.name}.parquet")
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
