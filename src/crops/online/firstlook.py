"""A first look before an experiment: for a day, one route brings everybody the drafts of two models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.online.board import same_for_all
from crops.online.day import online_day
from crops.online.experiment import Start
from crops.online.interleave import NOBODY, A, B, Preference, preference, team_draft
from crops.online.routing import Routes
from crops.outputs import console
from crops.protocols import Retriever
from crops.text import content_id

Ints = NDArray[np.int64]
FIRST_LOOK = "interleaved"


class Drafted:
    """Two retrievers as one: their lists are merged by team draft, and it remembers whose each result is."""

    def __init__(self, a: Retriever, b: Retriever, seed: int) -> None:
        """Merge `a` and `b`; the captains of a query are drawn from the seed and its text."""
        self._retrievers, self._seed = (a, b), seed
        self._team: dict[str, dict[int, int]] = {}

    def search(self, queries: Sequence[str], k: int) -> tuple[Ints, NDArray[np.float32]]:
        """Return merged item ids [queries, k]; scores are the places from the end (see `Retriever`)."""
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        lists = [retriever.search(queries, k)[0] for retriever in self._retrievers]
        for row, (query, a, b) in enumerate(zip(queries, *lists, strict=True)):
            random = np.random.default_rng([self._seed, content_id(query) % 2**63])
            merged = team_draft(a[a >= 0].tolist(), b[b >= 0].tolist(), k, random)
            ids[row, : len(merged.items)] = merged.items
            self._team[query] = dict(zip(merged.items.tolist(), merged.team.tolist(), strict=True))
        return ids, np.where(ids >= 0, np.arange(k, 0, -1), -np.inf).astype(np.float32)

    def team(self, query: str, item: int) -> int:
        """Return who drafted a result (`A`, `B`), `NOBODY` for both or neither."""
        return self._team.get(query, {}).get(item, NOBODY)


def look_first(folder: Path, start: Start, kind: str, arms: Mapping[str, Routes]) -> dict[str, Preference]:
    """Interleave each treatment with the control for a day that everybody lives; what is there is read.

    The clicks of the day count for the team that drafted the clicked result, whichever route else found it.

    Args:
        folder: gets `<arm>.json`.
        start: the platform before the experiment; every look starts there.
        kind: the route that the arms swap.
        arms: routes by arm, the control first.

    Returns:
        By treatment: A is the control, B the treatment. A treatment that no user preferred or rejected (for
        one, because its model is the control's) is left out, and said.
    """
    control, *treatments = arms
    for arm in treatments:
        path = folder / f"{arm}.json"
        if path.exists():
            continue
        console.print(f"[dim]·[/dim] {kind}: {control} and {arm} interleaved")
        drafted = Drafted(arms[control][kind], arms[arm][kind], start.platform.seed)
        served = same_for_all({**start.deployed, kind: drafted}, start.users)
        impressions = online_day(start.fork(), start.first_day, start.sessions, served).impressions
        try:
            seen = _judge(impressions, drafted)
        except CropsError as nothing:
            console.print(f"{kind}, {arm}: {nothing}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        staging = path.with_suffix(".tmp")
        staging.write_text(json.dumps(asdict(seen)) + "\n")
        staging.replace(path)
    return read_looks(folder)


def read_looks(folder: Path) -> dict[str, Preference]:
    """Return the looks in a folder, by treatment; none where there is no folder."""
    return {path.stem: Preference(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))}


def _judge(impressions: pa.Table, drafted: Drafted) -> Preference:
    clicked = impressions.filter(pc.fill_null(impressions["clicked"], False))
    clicks = zip(clicked["query"].to_pylist(), clicked["item_id"].to_pylist(), strict=True)
    team = np.array([drafted.team(query, item) for query, item in clicks], dtype=np.int64)
    users = clicked["user_id"].to_numpy()
    return preference(users, (team == A).astype(np.int64), (team == B).astype(np.int64))
