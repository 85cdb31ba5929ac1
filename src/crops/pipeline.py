"""From logs to figures: check, mine, train, evaluate, and the one way they are put together.

Each step reads folders and writes one, whole or not at all. `crops demo`, `crops reproduce`,
`crops experiment` and `crops bubble-loop` are made of them:

    world = make_world(out, run)                             # crops.simulation: simulate, check
    mine_day(world.logs, world.day("train"), samples, run)   # graded samples of the training day
    train_model(samples, model, run.training, run.seed)
    testsets = day_testsets(world.logs, world.day("test"), world.truth, samples, run)
    results, _ = evaluate_models({"ours": model}, world.logs, testsets, run)
"""

from __future__ import annotations

import hashlib
import importlib.resources
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.config import DocumentConfig, RelevanceConfig, RunConfig, TrainingConfig, with_settings
from crops.database import read_columns
from crops.engine import CachedScorer
from crops.engine.daily import Job
from crops.engine.documents import (
    added_texts,
    count_click_queries,
    expand,
    mined_click_queries,
    read_expansion,
)
from crops.engine.mine import open_backend
from crops.engine.mined import days_seen
from crops.engine.spark_rows import rows_engine
from crops.engine.without import Without
from crops.errors import CropsError, nearest
from crops.evaluation import Evaluation, ScoringRetriever, TestSets, build_testsets, evaluate
from crops.labels import ALL_SOURCES, Source
from crops.logs import check, open_logs, render
from crops.logs.days import days_before as earlier_day
from crops.logs.days import named_days, newest_day
from crops.outputs import RESOLVED_CONFIG, cache_folder, console, is_done, read_manifest, timed
from crops.pretrained import NO_THETA, independent_theta, theta, with_readable_theta
from crops.protocols import PairScorer
from crops.relevance import Kind, scorer_identity
from crops.relevance.encode import text_encoder
from crops.relevance.evidence import Evidence, EvidenceScorer, fitted
from crops.relevance.score import prefixes
from crops.retrieval import BM25Retriever, ExactRetriever, load_items
from crops.retrieval.bm25 import Tokeniser, splitter
from crops.retrieval.uri import Texts
from crops.schema import SAMPLES
from crops.text import DOCUMENT_FIELDS, MINED_QUERY, PLAIN

Ids = NDArray[np.int64]
BM25 = "bm25"


# Check and mine


def accepted_logs(logs: str | Path, checked: Path, run: RunConfig) -> Path:
    """Return a folder of accepted rows: `logs` if a check wrote it, else the result of checking it now."""
    if isinstance(logs, Path) and logs.name == "accepted" and is_done(logs.parent):
        return logs
    console.print(render(check(logs, checked, run.engine.memory, rows_engine(run.engine))))
    return checked / "accepted"


def mine_day(
    logs: Path, day: str, samples: Path, run: RunConfig, generated: Path | None = None
) -> dict[str, Any]:
    """Mine one day (YYYY-MM-DD) of accepted logs; return the report. See `mine_logs`."""
    return mine_logs(logs, samples, with_settings(run, {"engine.days": (day,)}), generated)


def mine_logs(
    logs: Path,
    samples: Path,
    run: RunConfig,
    generated: Path | None,
    without: Without | None = None,
    held: Sequence[str] = (),
) -> dict[str, Any]:
    """Mine accepted logs with theta and the query similarity of the run's relevance model.

    Args:
        run: the settings; `engine.days` names the days.
        generated: JSON lines of documents that an LLM wrote (P3).
        without: users and items that are left out.
        held: the days that are kept for evaluation; the manifest names them.

    Returns:
        The report of the mining.
    """
    job = mining_job(logs, run, generated, without)
    noted: dict[str, Any] = {"held_out": list(held)} if held else {}
    if (folder := run.relevance.evidence) is not None:
        opened = open_logs(logs)
        job = replace(job, relevance=evidence_theta(logs, run.engine.days or opened.search_days, run))
        noted["evidence"] = str(Path(folder).absolute())
    return job.mine(open_logs(logs), samples, run.engine.days, **noted)


def evidence_of(logs: Path | str, days: Sequence[str], run: RunConfig) -> tuple[Evidence, str]:
    """Return what accepted logs say of pairs on some days, and the hash of the text model beside it.

    Raises:
        CropsError: there is no text model.
    """
    config = run.relevance
    if config.model == NO_THETA:
        raise CropsError("an evidence theta compares texts too; name a text model in relevance.model")
    encoder, identity = text_encoder(config.model, config.batch_size, cache_folder() / "relevance")
    ids, texts = load_items(logs)
    words = BM25Retriever(ids, texts).scores
    found = Evidence(open_logs(logs), days, (ids, texts), encoder, words, prefixes(config.model, "relevance"))
    encoder.save()
    return found, identity


def evidence_theta(logs: Path, days: Sequence[str], run: RunConfig) -> PairScorer:
    """Return the theta of `relevance.evidence`, which reads what logs say of pairs on the days mined.

    Raises:
        CropsError: it is no output of `crops theta fit`, or was fitted with another text model, or the engine
            is Spark.
    """
    folder = Path(str(run.relevance.evidence))
    manifest = read_manifest(folder, EVIDENCE_COMMAND)
    if run.engine.engine == "spark":
        raise CropsError("an evidence theta is not sent to the workers of Spark; mine with engine duckdb")
    evidence, identity = evidence_of(logs, days, run)
    if manifest["text_model"] != identity:
        raise CropsError(
            f"{folder} was fitted with another text model than relevance.model = '{run.relevance.model}'; "
            "fit it again, or name that model"
        )
    return EvidenceScorer(fitted(folder, manifest["model"]), evidence)


def expand_rewordings(logs: Path, days: Sequence[str], out: Path, run: RunConfig) -> None:
    """Write the queries that the rewordings of some days add to the texts of items (`crops expand`).

    They are mined for it without theta, into a folder beside `out`.
    """
    mined = out.with_name(f"{out.name}-rewordings")
    only = with_settings(rewordings_only(run), {"engine.days": tuple(days)})
    mine_logs(logs, mined, only, None)
    expand(mined, out, run.expansion)


def rewordings_only(run: RunConfig) -> RunConfig:
    """Return the settings of a mining that finds all rewordings, whatever theta says, and nothing else."""
    settings = {"engine.sources": ("p1",), "engine.reformulation.relevance": 0.0}
    return with_settings(run.model_copy(update={"document": DocumentConfig()}), settings)


def mining_job(logs: Path, run: RunConfig, generated: Path | None, without: Without | None = None) -> Job:
    """Return the run's settings with the scorers of its relevance model, whose scores are kept."""
    run = with_readable_theta(logs, run)
    relevance, similarity = theta(logs, run)
    return Job(
        run.engine,
        relevance and _kept("relevance", relevance, run.relevance),
        similarity and _kept("similarity", similarity, run.relevance),
        generated,
        run.seed,
        without,
        run.document,
    )


def _kept(kind: Kind, scorer: PairScorer, config: RelevanceConfig) -> CachedScorer:
    """Return the scorer with the cache of its model and calibration."""
    key = hashlib.sha256(scorer_identity(kind, config).encode()).hexdigest()[:16]
    return CachedScorer(scorer, cache_folder() / "scores" / f"{kind}-{key}")


def packaged_documents() -> Path:
    """Return the documents that an LLM wrote for the demo's queries, generated once and shipped."""
    return Path(str(importlib.resources.files("crops.llm") / "data" / "documents.jsonl"))


EVIDENCE_COMMAND = "theta fit"


# Train


def train_model(
    samples: Path,
    out: Path,
    training: TrainingConfig,
    seed: int,
    sources: Source = ALL_SOURCES,
    fields: Sequence[str] = DOCUMENT_FIELDS,
) -> None:
    """Train a model on mined samples.

    Args:
        samples: output of a mining with all sources that are wanted.
        sources: what to learn from.
        fields: what stands for a document.
    """
    from crops.training import Samples, train  # torch takes seconds to import: not for --help

    train(Samples(samples, sources, fields=tuple(fields)), out, training, seed=seed, cache=cache_folder())


def require_encoder(training: TrainingConfig) -> None:
    """Load the encoder once, so that a wrong name is refused before the minutes that a world takes.

    Raises:
        CropsError: as `crops.encoders.load_encoder`.
    """
    from crops.encoders import load_encoder  # torch takes seconds to import: not for --help

    load_encoder(training, cache_folder())


# Evaluate


def require_models(models: Sequence[str]) -> None:
    """Find every model before the first one is run.

    Raises:
        CropsError: there is no such model, or a folder holds none.
    """
    for model in models:
        name, _, tokeniser = model.partition(":")
        if name == BM25:
            splitter(cast(Tokeniser, tokeniser or "english"))
            continue
        from crops.encoders import encoder_folder  # torch takes seconds to import: only when needed

        try:
            folder = encoder_folder(TrainingConfig(encoder=model), cache_folder())
        except CropsError as error:
            raise CropsError(
                f"{error} A model is a folder, a preset such as minilm, or bm25.{nearest(name, [BM25])}"
            ) from error
        if not any((folder / file).exists() for file in ("modules.json", "config.json")):
            raise CropsError(f"{folder} holds no model; name an output of crops train, or bm25")


def day_testsets(
    logs: Path, day: str | Sequence[str] | None, truth: Path | None, samples: Path | None, run: RunConfig
) -> TestSets:
    """Build the test sets of a day of accepted logs, or of several together.

    Args:
        day: the test day, YYYY-MM-DD, or several, or a range (see `crops.logs.days.named_days`); the newest
            when None.
        truth: truth of a simulation.
        samples: what the models were trained on: tells seen queries from unseen.

    Raises:
        CropsError: the test day was mined for the training samples, or it is not named and not clear.
    """
    opened = open_logs(logs)
    if day:
        named = [day] if isinstance(day, str) else day
        test_days = named_days(logs, named, opened.search_days)
    else:
        test_days = [newest_day(logs, opened.search_days, run.engine.daily.window)]
    run = with_readable_theta(logs, run)
    relevance, similarity = theta(logs, run)
    seen: list[int] | None = None
    if samples is not None:
        for test_day in test_days:
            refuse_mined(samples, test_day)
        seen = read_columns(samples / "queries.parquet", ["query_id"])["query_id"].to_pylist()
    return build_testsets(
        opened,
        test_days,
        run.evaluation,
        run.engine.reformulation,
        relevance=relevance,
        similarity=similarity,
        truth=truth,
        independent=independent_theta(logs, run),
        seed=run.seed,
        seen=seen,
        memory=run.engine.memory,
    )


def refuse_mined(samples: Path, test_day: str) -> None:
    """Refuse to test on a day that the training samples were mined from.

    Raises:
        CropsError: they were.
    """
    if test_day in days_seen(samples):
        raise CropsError(
            f"{samples} was mined from {test_day}, the test day, or saw its rows near midnight; test on "
            "another day, or mine an earlier one: it must be unseen"
        )


def evaluate_models(
    models: Mapping[str, str | Path],
    logs: Path,
    testsets: TestSets,
    run: RunConfig,
    expanded: Path | None = None,
) -> tuple[dict[str, Evaluation], dict[str, ScoringRetriever]]:
    """Evaluate models on test sets over the catalogue of their day; return both by name.

    Args:
        models: what `load_retriever` takes, by name.
        logs: the logs that the test sets were built from.
        expanded: an expansion, whose queries join the texts.
    """
    ids, texts = load_documents(logs, run, testsets.days[0], testsets.candidate_ids(), expanded=expanded)
    retrievers = {name: load_retriever(model, ids, texts, logs) for name, model in models.items()}
    results = {name: evaluate(one, testsets, run.evaluation, run.seed) for name, one in retrievers.items()}
    return results, retrievers


def load_documents(
    logs: Path, run: RunConfig, before: str, keep: Ids, expanded: Path | None = None
) -> tuple[Ids, list[str]]:
    """Return ids and texts of items as they were known when a day began, for all methods alike.

    Args:
        run: what stands for a document.
        before: the day, YYYY-MM-DD.
        expanded: queries that join the texts, of earlier days (`crops.engine.documents.expand`).
    """
    added = None if expanded is None else read_expansion(expanded, before)
    texts = document_texts(logs, run, added, before)
    return load_items(logs, keep, PLAIN.of(texts.fields), texts.queries)


def document_texts(
    items: Path, run: RunConfig, added: pa.Table | None = None, before: str | None = None
) -> Texts:
    """Return what stands for a document: the fields, and the queries among them that are counted anew.

    Args:
        items: accepted logs, or mined samples; where no click queries are wanted, any items.
        added: an expansion, whose queries join the texts.
        before: see `click_queries`.
    """
    fields, queries = run.document.fields, None
    if run.document.counts_clicks:
        mined = (items / f"{SAMPLES.name}.parquet").exists()
        if items.is_file():
            raise CropsError(f"{items}: click queries are counted in logs; name the folder")
        queries = mined_click_queries(items) if mined else click_queries(items, run, before)
    if added is not None:
        fields, more = (*fields, MINED_QUERY), added_texts(added)
        queries = more if queries is None else queries.join(more, "item_id", join_type="full outer")
    return Texts(fields, queries)


def say_other_fields(model: str | Path, fields: Sequence[str]) -> None:
    """Say so where a model of ours was trained on other texts than it is to read now."""
    if (trained := trained_fields(model)) and set(trained) != set(fields):
        console.print(
            f"[yellow]{model} was trained on other texts:[/yellow] --fields {','.join(trained)}; here it "
            f"reads {','.join(fields)}",
            soft_wrap=True,
        )


def trained_fields(model: str | Path) -> tuple[str, ...]:
    """Return the fields of the texts that a model of ours was trained on; none of any other."""
    resolved = Path(model) / RESOLVED_CONFIG
    if not resolved.is_file():
        return ()
    return tuple(tomllib.loads(resolved.read_text()).get("document", {}).get("fields", DOCUMENT_FIELDS))


def click_queries(logs: Path, run: RunConfig, before: str | None = None) -> pa.Table:
    """Return the click queries of documents, as `crops.engine.documents.count_click_queries`.

    Args:
        before: the day on whose morning they are known; None counts all days up to today.
    """
    opened = open_logs(logs)
    if before is None:
        newest = newest_day(logs, opened.search_days, run.engine.daily.window)
        before = earlier_day(newest, -1)
    history = dict.fromkeys(opened.search_days, opened)
    with timed({}, f"click queries before {before}"), open_backend(run.engine) as backend:
        found, days = count_click_queries(backend, history, before, run.document, run.engine.bots)
    if not days:
        console.print(f"[yellow]{logs} holds no day before {before}:[/yellow] no document has click queries")
    return found


def load_retriever(
    model: str | Path, ids: Ids, texts: Sequence[str], items: Path | None = None
) -> ScoringRetriever:
    """Return a retriever over a catalogue: BM25, or exact search with a dual encoder.

    Args:
        model: `bm25`, `bm25:bigrams` (any tokeniser of `crops.retrieval.bm25`), an encoder preset, a model
            folder or a SentenceTransformer name.
        ids: item ids, [n].
        texts: their document texts, n.
        items: the item table, for an encoder that reads ids and not texts (see `load_items`).

    Raises:
        CropsError: there is no such model or tokeniser, or it needs the item table.
    """
    name, _, tokeniser = str(model).partition(":")
    if name == BM25:
        return BM25Retriever(ids, texts, tokeniser=cast("Tokeniser | None", tokeniser or None))
    from crops.encoders import load_encoder, rendering_of  # torch takes seconds to import: only when needed

    encoder = load_encoder(TrainingConfig(encoder=str(model)), cache_folder())
    rendering = rendering_of(encoder)
    if rendering is PLAIN:
        return ExactRetriever(encoder, ids, texts)
    if items is None:
        raise CropsError(
            f"{model} reads ids of items, not texts; there is no item table here to take them from"
        )
    ids, texts = load_items(items, keep=ids, rendering=rendering)
    return ExactRetriever(encoder, ids, texts, render_query=rendering.query)
