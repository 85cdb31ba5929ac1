"""`crops simulate`: days of behaviour on a platform whose own retriever learns from its own clicks."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import typer
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from crops.cli.options import DEFAULTS, ConfigOption, SeedOption, command
from crops.cli.search import BM25, load_retriever
from crops.config import EngineConfig, RunConfig, TrainingConfig, load_config
from crops.engine import mine
from crops.labels import Source
from crops.logs import open_logs
from crops.outputs import cache_folder, console, publish, timed, write_manifest
from crops.platform import (
    ROUTES,
    SIZES,
    IdModel,
    JudgedWorld,
    Platform,
    build_platform,
    day_name,
    fit_id_model,
    platform_version,
    simulate_day,
    write_day,
    write_items,
    write_truth,
)
from crops.protocols import Retriever
from crops.retrieval import FlatIndex
from crops.text import DOCUMENT_FIELDS, document_text

WARM_UP, TRAIN = 0, 1
"""Day numbers; the last day is the test day, and the days between are the gap."""


@command
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write: logs/, truth/, deployed_model/.")],
    size: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(SIZES)}.", show_default=DEFAULTS.platform.size)
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(help="Days: warm-up, train, gap, test.", show_default=str(DEFAULTS.platform.days)),
    ] = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    *,
    world: Annotated[
        str | None,
        typer.Option(
            help="topics, or a folder of docs, queries and qrels.", show_default=DEFAULTS.platform.world
        ),
    ] = None,
    bubble: Annotated[
        str | None,
        typer.Option(help="Filter bubble: weak, default or strong.", show_default=DEFAULTS.platform.bubble),
    ] = None,
    click_model: Annotated[
        str | None, typer.Option(help="dbn, dcm or pbm.", show_default=DEFAULTS.platform.click_model)
    ] = None,
    null: Annotated[
        bool,
        typer.Option("--null", help="Later queries and the feed say nothing about what a searcher needs."),
    ] = False,
) -> Path:
    """Simulate a short-video platform: search and feed logs, and the truth beside them.

    On the first day the search finds items by words and popularity only. The platform then trains its own
    dense retriever on that day's clicks and deploys it: from there on it learns from what it showed.
    """
    run = load_config(
        config,
        seed=seed,
        platform__size=size,
        platform__days=days,
        platform__world=world,
        platform__bubble=bubble,
        platform__click_model=click_model,
        platform__informative=False if null else None,
    )
    seconds: dict[str, float] = {}
    last = run.platform.days - 1
    with publish(out, "simulate") as folder:
        with timed(seconds, "platform"):
            platform = build_platform(run.platform, run.seed)
        searches = simulate_days(folder, platform, run, run.platform.days, seconds)
        write_truth(folder / "truth", platform, searches)
        _write_rejects(folder, platform)
        named = {"warm_up": day_name(WARM_UP), "train": day_name(TRAIN), "test": day_name(last)}
        write_manifest(
            folder,
            "simulate",
            config=run.dump(),
            seconds=seconds,
            days=named,
            routes=ROUTES,
            platform=platform_version(),
        )
    console.print(f"platform in [bold]{out}[/bold]; next: crops check {out / 'logs'} {out / 'checked'}")
    return out


def simulate_days(
    folder: Path, platform: Platform, run: RunConfig, days: int, seconds: dict[str, float]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Simulate the first days: words alone on the warm-up day, then with models trained on its clicks.

    Args:
        folder: gets logs/ and deployed_model/.
        platform: a platform before its first day; at the end of `days` afterwards.
        run: the settings.
        days: how many, at least the warm-up day and the training day.
        seconds: gets the wall time by part.

    Returns:
        The ids of the searches and the needs behind them, per day.
    """
    texts = document_texts(platform)
    ids = np.arange(1, len(texts) + 1)
    routes: dict[str, Retriever] = {"bm25": load_retriever(BM25, ids, texts)}
    searches: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for day in range(days):
        with timed(seconds, f"day {day_name(day)}"), _one_thread():
            logs = simulate_day(platform, day, sessions_per_day(run), routes)
            write_day(folder / "logs", day, logs)
            searches.append((logs.search_ids, logs.search_needs))
        if day == WARM_UP:
            with timed(seconds, "train the deployed models"), _one_thread():
                deployed = _train_deployed(folder, platform, run)
                routes["dense"] = load_retriever(deployed, ids, texts, folder / "logs")
                routes["sparse"] = IdRetriever(fit_id_model(platform.memory, run.seed))
        if day == TRAIN:
            write_items(folder / "logs", platform)
    return searches


def sessions_per_day(run: RunConfig) -> int:
    """Return the search sessions of a day: the setting, or what the size has."""
    return run.platform.sessions or SIZES[run.platform.size].sessions


def _write_rejects(folder: Path, platform: Platform) -> None:
    """Keep the rows of a judged collection that could not be used, with the reason."""
    if isinstance(platform.world, JudgedWorld) and (count := len(platform.world.rejected)):
        (folder / "rejects").mkdir()
        pq.write_table(platform.world.rejected, folder / "rejects" / "judged.parquet")
        console.print(f"{count:,} rows of the collection were left out: rejects/judged.parquet says why")


def document_texts(platform: Platform) -> list[str]:
    """Return the document text of every item of the catalogue."""
    corpus = platform.world.corpus
    rows = zip(corpus.title, corpus.caption, corpus.tags, strict=True)
    return [document_text(dict(zip(DOCUMENT_FIELDS, row, strict=True))) for row in rows]


def _train_deployed(folder: Path, platform: Platform, run: RunConfig) -> Path:
    """Train the platform's own retriever on the first day's clicks, as the self-reinforcing loop does."""
    from crops.encoders import rendering_for  # torch takes seconds to import: not for --help
    from crops.training import load_samples, train

    write_items(folder / "logs", platform)
    settings = TrainingConfig(**{**run.training.model_dump(), "loss": "infonce_binary"})
    with tempfile.TemporaryDirectory() as scratch:
        mined = Path(scratch) / "clicks"
        engine = EngineConfig(days=(day_name(WARM_UP),), sources=("search",), memory=run.engine.memory)
        mine(open_logs(folder / "logs"), mined, engine, relevance=None, similarity=None, seed=run.seed)
        data = load_samples(mined, keep=Source.CLICKED, rendering=rendering_for(settings))
        train(data, folder / "deployed_model", settings, seed=run.seed, cache=cache_folder())
    return folder / "deployed_model"


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

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return item ids and scores; a query without a known term finds nothing."""
        vectors = self._model.encode(list(queries))
        ids, scores = self._index.nearest(vectors, k)
        unknown = ~vectors.any(axis=1)
        ids[unknown], scores[unknown] = -1, -np.inf
        return ids, scores
