"""`crops simulate`: days of behaviour on a platform whose own retriever learns from its own clicks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from crops.cli.models import BM25, load_retriever
from crops.cli.options import DEFAULTS, ConfigOption, SeedOption
from crops.config import EngineConfig, RunConfig, TrainingConfig, load_config
from crops.engine import mine
from crops.labels import Source
from crops.logs import open_logs
from crops.outputs import cache_folder, console, publish, timed, write_manifest
from crops.platform import (
    ROUTES,
    SIZES,
    DayLogs,
    Platform,
    build_platform,
    day_name,
    simulate_day,
    write_day,
    write_items,
    write_truth,
)
from crops.protocols import Retriever
from crops.text import DOCUMENT_FIELDS, document_text

WARM_UP, TRAIN = 0, 1
"""Day numbers; the last day is the test day, and the days between are the gap."""


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
) -> Path:
    """Simulate a short-video platform: search and feed logs, and the truth beside them.

    On the first day the search finds items by words and popularity only. The platform then trains its own
    dense retriever on that day's clicks and deploys it: from there on it learns from what it showed.
    """
    run = load_config(config, seed=seed, platform__size=size, platform__days=days)
    seconds: dict[str, float] = {}
    extent, last = SIZES[run.platform.size], run.platform.days - 1
    with publish(out, "simulate") as folder:
        with timed(seconds, "platform"):
            platform = build_platform(extent, run.platform.days, run.seed)
            texts = _document_texts(platform)
            ids = np.arange(1, len(texts) + 1)
            routes: dict[str, Retriever] = {"bm25": load_retriever(BM25, ids, texts)}
        done: list[DayLogs] = []
        for day in range(run.platform.days):
            with timed(seconds, f"day {day_name(day)}"):
                done.append(simulate_day(platform, day, extent.sessions, routes))
                write_day(folder / "logs", day, done[-1])
            if day == WARM_UP:
                with timed(seconds, "train the deployed model"):
                    routes["dense"] = load_retriever(_train_deployed(folder, platform, run), ids, texts)
            if day == TRAIN:
                write_items(folder / "logs", platform)
        write_truth(folder / "truth", platform, done)
        named = {"warm_up": day_name(WARM_UP), "train": day_name(TRAIN), "test": day_name(last)}
        write_manifest(folder, "simulate", config=run.dump(), seconds=seconds, days=named, routes=ROUTES)
    console.print(f"platform in [bold]{out}[/bold]; next: crops check {out / 'logs'} {out / 'checked'}")
    return out


def _document_texts(platform: Platform) -> list[str]:
    corpus = platform.corpus
    rows = zip(corpus.title, corpus.caption, corpus.tags, strict=True)
    return [document_text(dict(zip(DOCUMENT_FIELDS, row, strict=True))) for row in rows]


def _train_deployed(folder: Path, platform: Platform, run: RunConfig) -> Path:
    """Train the platform's own retriever on the first day's clicks, as the self-reinforcing loop does."""
    from crops.training import load_samples, train  # torch takes seconds to import: not for --help

    write_items(folder / "logs", platform)
    settings = TrainingConfig(**{**run.training.model_dump(), "loss": "infonce_binary"})
    with tempfile.TemporaryDirectory() as scratch:
        mined = Path(scratch) / "clicks"
        engine = EngineConfig(days=(day_name(WARM_UP),), sources=("search",), memory=run.engine.memory)
        mine(open_logs(folder / "logs"), mined, engine, relevance=None, similarity=None, seed=run.seed)
        data = load_samples(mined, keep=Source.CLICKED)
        train(data, folder / "deployed_model", settings, seed=run.seed, cache=cache_folder())
    return folder / "deployed_model"
