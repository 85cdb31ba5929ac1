"""A simulated world on disk: simulate and check it, and the platform as it is on a later morning.

An experiment begins in the middle of a world: `days_before` returns the platform on that morning.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from crops.config import EngineConfig, RunConfig, TrainingConfig, with_recipe
from crops.engine import mine
from crops.errors import CropsError
from crops.labels import Source
from crops.logs import check, open_logs
from crops.outputs import (
    MANIFEST,
    console,
    is_done,
    publish,
    quietly,
    read_manifest,
    timed,
    to_json,
    write_manifest,
)
from crops.pipeline import load_retriever, train_model
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
from crops.pretrained import with_readable_encoder
from crops.protocols import Retriever
from crops.retrieval import BM25Retriever, FlatIndex
from crops.retrieval.catalogue import sample_texts

Ids = NDArray[np.int64]
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
        if (made["platform"], made["settings"]) != (platform_version(run.platform.edition), _deciding(run)):
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
