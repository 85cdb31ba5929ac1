"""The days before an experiment: a platform with its own models deployed, and the samples mined from it."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import numpy as np

from crops.cli.mine import accepted_logs, mine_logs
from crops.cli.models import BM25, load_retriever
from crops.cli.simulate import (
    TRAIN,
    WARM_UP,
    IdRetriever,
    document_texts,
    sessions_per_day,
    simulate_days,
)
from crops.config import RunConfig
from crops.engine.job import REPORT
from crops.errors import CropsError
from crops.online.experiment import Start
from crops.online.store import replay_day
from crops.outputs import MANIFEST, publish, read_manifest, write_manifest
from crops.platform import (
    ROUTES,
    Platform,
    build_platform,
    day_name,
    fit_id_model,
    platform_version,
    write_truth,
)
from crops.protocols import Retriever

FIRST_DAY = TRAIN + 1
"""Day number of the first day of an experiment."""
LEAST_DAYS = 4
"""Days that a simulated world has at least."""


def with_days(run: RunConfig, days: int) -> RunConfig:
    """Return the settings of a world that lasts for the days before and `days` of an experiment.

    Raises:
        CropsError: that is more than a world lasts.
    """
    field = type(run.platform).model_fields["days"]
    longest = next(one.le for one in field.metadata if hasattr(one, "le"))
    if not 1 <= days <= longest - FIRST_DAY:
        raise CropsError(f"--days {days}: an experiment lasts from 1 to {longest - FIRST_DAY} days")
    platform = run.platform.model_copy(update={"days": max(LEAST_DAYS, FIRST_DAY + days)})
    return run.model_copy(update={"platform": platform})


def warm_start(world: Path, run: RunConfig) -> Start:
    """Return the platform after its training day; simulate the days up to it unless `world` has them.

    Args:
        world: gets logs/, truth/ and deployed_model/, as of `crops simulate`.
        run: the settings; `platform.days` covers the experiment.

    Raises:
        CropsError: `world` was made with other settings or by another version of the platform.
    """
    if not (world / MANIFEST).exists():
        _simulate(world, run)
    made = read_manifest(world, "simulate")
    if (made["platform"], made["settings"]) != (platform_version(), _settings(run)):
        raise CropsError(
            f"{world} was simulated with other settings or another platform; name another folder"
        )
    platform = build_platform(run.platform, run.seed)
    routes = _deployed(world, platform, run)
    return Start(platform, routes, FIRST_DAY, sessions_per_day(run))


def mined_samples(out: Path, world: Path, run: RunConfig, generated: Path | None) -> Path:
    """Mine the training day with all sources into OUT/samples, unless that is done; return the folder.

    Args:
        out: folder of the experiment.
        world: the days before.
        run: the settings.
        generated: documents of an LLM; those packaged for the demo's queries if None.
    """
    samples = out / "samples"
    if not (samples / REPORT).exists():
        logs = accepted_logs(world / "logs", out / "checked", run)
        engine = run.engine.model_copy(update={"days": (day_name(TRAIN),)})
        mine_logs(logs, samples, run.model_copy(update={"engine": engine}), generated or packaged_documents())
    return samples


def packaged_documents() -> Path:
    """Return the documents that an LLM wrote for the demo's queries, generated once and shipped."""
    return Path(str(importlib.resources.files("crops.llm") / "data" / "documents.jsonl"))


def _settings(run: RunConfig) -> dict[str, Any]:
    """Return what decides the days before: the platform, the seed and how its own model is trained."""
    kept = run.model_dump(mode="json", include={"seed", "platform", "training"})
    return dict(kept)


def _simulate(world: Path, run: RunConfig) -> None:
    seconds: dict[str, float] = {}
    platform = build_platform(run.platform, run.seed)
    with publish(world, "simulate") as folder:
        searches = simulate_days(folder, platform, run, FIRST_DAY, seconds)
        write_truth(folder / "truth", platform, searches)
        write_manifest(
            folder,
            "simulate",
            config=run.dump(),
            seconds=seconds,
            days={"warm_up": day_name(WARM_UP), "train": day_name(TRAIN)},
            routes=ROUTES,
            platform=platform_version(),
            settings=_settings(run),
        )


def _deployed(world: Path, platform: Platform, run: RunConfig) -> dict[str, Retriever]:
    """Replay the days of a world on a new platform; return the routes that were deployed after the first."""
    texts = document_texts(platform)
    ids = np.arange(1, len(texts) + 1)
    replay_day(world, platform, WARM_UP)
    sparse = IdRetriever(fit_id_model(platform.memory, run.seed))
    for day in range(WARM_UP + 1, FIRST_DAY):
        replay_day(world, platform, day)
    return {
        "bm25": load_retriever(BM25, ids, texts),
        "dense": load_retriever(world / "deployed_model", ids, texts, world / "logs"),
        "sparse": sparse,
    }
