"""The closed loop: each day users search, the day's logs are mined, a model is trained on them and deployed.

Each arm is a world of its own with the same people, needs and random numbers; all begin on the same morning.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops.evaluation import recall_at_k
from crops.online.bubble import SHARES, Evidence, Measured, measure_days
from crops.online.experiment import Start, open_world
from crops.online.store import IMPRESSIONS, SEARCHES, day_file, live_through
from crops.outputs import console
from crops.platform import ROUTES, Platform, day_name, same_for_all, write_items
from crops.platform.world import Ints
from crops.protocols import Retriever

RECALL = "recall"
DEPTH = 100
"""Cut-off of true recall."""
RELEVANT = 2
"""From this grade on an item meets a need."""
_SAMPLE = 2_000
"""Searches per day that true recall is measured on; they are the same in all arms."""


class Workshop(NamedTuple):
    """How a model comes from a day's logs; each takes the folder that it writes last."""

    mine: Callable[[Path, int, Path], object]
    """Mine one day (by number) of a logs folder into a folder of samples."""
    train: Callable[[str, Path, Path], object]
    """Train the model of an arm on samples."""
    load: Callable[[Path, Path], Retriever]
    """Load a model over the catalogue of a logs folder."""


@dataclass(frozen=True)
class Loop:
    """A closed loop on disk: a folder per arm with logs/, truth/, recall.json and the model in use."""

    out: Path
    world: Path
    """The days before, with the truth of the world."""
    samples: Path
    """Mined from the last of them: what the first model learns from."""
    route: str
    """The text route that the arm's model serves."""
    workshop: Workshop


def run_loop(loop: Loop, start: Start, arms: Sequence[str], days: int, after_day: Callable[[], None]) -> None:
    """Let all arms live day by day, so that at any time they can be compared.

    What is on disk is not done again; a killed run goes on and ends as if it never stopped.

    Args:
        loop: where, and how models are made.
        start: the platform before the first day.
        arms: names that `loop.workshop.train` knows.
        days: how many.
        after_day: called when all arms are at the end of a day.
    """
    platforms = {arm: start.fork() for arm in arms}
    for arm, platform in platforms.items():
        open_world(loop.out / arm, platform)
    for day in range(start.first_day, start.first_day + days):
        for arm, platform in platforms.items():
            _one_day(loop, start, arm, platform, day)
        after_day()


def _one_day(loop: Loop, start: Start, arm: str, platform: Platform, day: int) -> None:
    folder = loop.out / arm
    if str(day) in read_recall(folder):
        live_through(folder, platform, day, start.sessions, same_for_all(start.deployed, start.users))
        return
    model = _model_of(loop, start, arm, platform, day)
    served = same_for_all({**start.deployed, loop.route: model}, start.users)
    live_through(folder, platform, day, start.sessions, served)
    known = read_recall(folder) | {str(day): _true_recall(loop, folder, platform, day, model)}
    staging = folder / ".recall.json"
    staging.write_text(json.dumps(known, indent=2) + "\n")
    staging.rename(folder / "recall.json")


def _model_of(loop: Loop, start: Start, arm: str, platform: Platform, day: int) -> Retriever:
    """Return the model trained on the logs of the day before; make it unless it is there, drop older ones."""
    folder = loop.out / arm
    first = day == start.first_day
    logs = (loop.world if first else folder) / "logs"
    model = folder / "models" / day_name(day)
    if not model.exists():
        samples = loop.samples if first else folder / "samples"
        if not first:
            write_items(logs, platform)
            loop.workshop.mine(logs, day - 1, samples)
        console.print(f"[bold]{arm}, {day_name(day)}[/bold]")
        loop.workshop.train(arm, samples, model)
    shutil.rmtree(folder / "models" / day_name(day - 1), ignore_errors=True)
    return loop.workshop.load(model, logs)


def read_recall(folder: Path) -> dict[str, dict[str, float | None]]:
    """Return the true recall of an arm's models by day number: mean (None of none) and n searches."""
    path = folder / "recall.json"
    found: dict[str, dict[str, float | None]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _true_recall(
    loop: Loop, folder: Path, platform: Platform, day: int, model: Retriever
) -> dict[str, float | None]:
    """Return the mean of |top 100 that meets the need| / min(100, |all that does|) over first searches."""
    truth = pq.read_table(day_file(folder, SEARCHES, day), partitioning=None)
    truth = truth.filter(pc.equal(truth["step"], 0))
    rows = np.random.default_rng([platform.seed, day]).permutation(len(truth))[:_SAMPLE]
    texts = _texts(folder, day, truth["search_id"].take(pa.array(rows)))
    needs = dict(zip(*(truth.take(rows)[name].to_pylist() for name in ("search_id", "need_id")), strict=True))
    live = np.flatnonzero(platform.world.corpus.uploaded_day <= day) + 1
    relevant = _relevant(loop.world / "truth", live)
    wanted = [relevant.get(needs[search], np.zeros(0, np.int64)) for search in texts]
    found, _ = model.search(list(texts.values()), DEPTH)
    recall = recall_at_k(found, wanted, DEPTH, capped=True)
    known = recall[~np.isnan(recall)]
    return {"mean": float(known.mean()) if len(known) else None, "n": len(known)}


def _texts(folder: Path, day: int, searches: pa.Array) -> dict[int, str]:
    columns = ["search_id", "query"]
    logged = pq.read_table(day_file(folder, IMPRESSIONS, day), columns=columns, partitioning=None)
    logged = (
        logged.filter(pc.is_in(logged["search_id"], searches))
        .group_by("search_id")
        .aggregate([("query", "min")])
    )
    return dict(sorted(zip(logged["search_id"].to_pylist(), logged["query_min"].to_pylist(), strict=True)))


def _relevant(truth: Path, live: Ints) -> dict[int, Ints]:
    """Return the live items that meet each need."""
    grades = pq.read_table(truth / "grades.parquet")
    grades = grades.filter(pc.greater_equal(grades["grade"], RELEVANT))
    need, item = grades["need_id"].to_numpy(), grades["item_id"].to_numpy()
    there = np.isin(item, live)
    need, item = need[there], item[there]
    order = np.argsort(need, kind="stable")
    ids, first = np.unique(need[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(item[order], first[1:]), strict=True))


def read_days(loop: Loop, start: Start, arm: str) -> dict[str, dict[str, Measured]]:
    """Return all observables of an arm's days, by day and name; `recall` is that of the day's model."""
    folder = loop.out / arm
    evidence = Evidence(
        logs=(loop.world / "logs", folder / "logs"),
        searches=(f"{loop.world}/truth/searches.parquet", f"{folder}/{SEARCHES}/*/*.parquet"),
        truth=loop.world / "truth",
        items=len(start.platform.world.corpus),
        route=ROUTES.index(loop.route),
        arm=folder,
    )
    measured = measure_days(evidence, SHARES)
    for day, recall in read_recall(folder).items():
        measured[day_name(int(day))][RECALL] = Measured(recall["mean"], int(recall["n"] or 0))
    return {day: row for day, row in measured.items() if RECALL in row}
