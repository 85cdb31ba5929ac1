"""The validation part of the training day: queries held out by their hash, to tune settings on.

Nothing of the test day is read. A validation query has two lists to find, as the test sets have: what was
clicked for it on the mined days (CT), and what was consumed after its rewordings and passed theta (QR).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.evaluation import recall_at_k
from crops.labels import Source
from crops.protocols import Retriever
from crops.retrieval import load_items
from crops.text import Rendering, has_text
from crops.training.data import Catalogue
from crops.training.samples import Samples

SHARE = 10
"""One query in so many is held out: there are as many folds."""
RECALL_K = 100

Ids = NDArray[np.int64]


def is_validation(query_id: Ids, fold: int = 0) -> NDArray[np.bool_]:
    """Return which queries [n] a fold holds out: ids are hashes, so that one in ten is by its remainder."""
    return np.asarray(np.mod(query_id, SHARE) == fold)


def load_catalogue(mined: Path, rendering: Rendering) -> Catalogue:
    """Return the items of a mined folder that were there when its last day ended and have a text.

    Raises:
        CropsError: the folder is no output of `crops mine`.
    """
    samples = Samples(mined)
    table = pa.concat_tables(
        [pq.read_table(file, columns=["item_id", "uploaded_at"]) for file in samples.files("items")]
    )
    uploaded = table["uploaded_at"].cast(pa.int64()).fill_null(0).to_numpy()
    ids, texts = load_items(mined, table["item_id"].to_numpy()[uploaded < _end_of_days(mined)], rendering)
    kept = [row for row, text in enumerate(texts) if has_text(text)]
    return Catalogue(ids[kept], [texts[row] for row in kept])


def _end_of_days(mined: Path) -> int:
    """Return when the last mined day ended, in microseconds UTC."""
    path = mined / "report.json"
    try:
        last = max(json.loads(path.read_text())["days"])
        end = datetime.fromisoformat(last).replace(tzinfo=UTC) + timedelta(days=1)
    except (OSError, ValueError, KeyError) as error:
        raise CropsError(
            f"{path}: cannot tell the mined days: {error}; make it again with `crops mine`"
        ) from error
    return int(end.timestamp()) * 1_000_000


class ValidationSets(NamedTuple):
    """What the held-out queries should find."""

    queries: list[str]
    """n normalised texts."""
    clicked: list[Ids]
    """For each query the clicked items (may be none)."""
    reworded: list[Ids]
    """For each query the items of P1."""


def validation_sets(mined: Path, catalogue: Ids, fold: int = 0) -> ValidationSets:
    """Return the queries that a fold of a mined folder holds out and that have something to find.

    Args:
        mined: a folder of `crops mine`.
        catalogue: ids of what can be found.
        fold: from 0 to `SHARE` - 1.

    Raises:
        CropsError: there is none: the mined days are too small to tune on.
    """
    samples = Samples(mined)
    pairs = _read(samples, "samples", ["query_id", "item_id", "sources"])
    query, item, sources = (pairs[name].to_numpy() for name in ("query_id", "item_id", "sources"))
    wanted = int(Source.CLICKED | Source.REFORMULATION)
    held = is_validation(query, fold) & ((sources & wanted) > 0) & np.isin(item, catalogue)
    query, item, sources = query[held], item[held], sources[held]
    if not len(query):
        raise CropsError(f"{mined}: no held-out query has a clicked item; tune on more days")
    ids = np.unique(query)
    table = _read(samples, "queries", ["query_id", "query"])
    texts = dict(zip(table["query_id"].to_pylist(), table["query"].to_pylist(), strict=True))
    lists = [
        [item[(query == one) & ((sources & int(source)) > 0)] for one in ids]
        for source in (Source.CLICKED, Source.REFORMULATION)
    ]
    return ValidationSets([texts[one] for one in ids.tolist()], *lists)


def validate(retriever: Retriever, sets: ValidationSets, k: int = RECALL_K) -> dict[str, float]:
    """Return how much of what they should find the held-out queries find.

    Args:
        retriever: over the catalogue.
        sets: the queries and their lists.
        k: cut-off.

    Returns:
        As `summarise`.
    """
    return summarise([recalls(retriever, sets, k)])


def summarise(folds: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, float]:
    """Return the means of the recalls of some folds over all their queries.

    Args:
        folds: of each fold what `recalls` returns.

    Returns:
        `recall@k/ct` and `recall@k/qr`, means over the queries that have such a list (NaN where none has),
        and `score`, the mean of those that are defined.
    """
    found = {}
    for name in folds[0]:
        values = np.concatenate([fold[name] for fold in folds])
        defined = values[~np.isnan(values)]
        found[name] = float(defined.mean()) if len(defined) else float("nan")
    return {**found, "score": float(np.nanmean(list(found.values())))}


def recalls(retriever: Retriever, sets: ValidationSets, k: int = RECALL_K) -> dict[str, NDArray[np.float64]]:
    """Return `recall@k/ct` and `recall@k/qr` of each held-out query, [n], NaN where it has no such list."""
    ranked, _ = retriever.search(sets.queries, k)
    lists = {"ct": sets.clicked, "qr": sets.reworded}
    return {f"recall@{k}/{name}": recall_at_k(ranked, relevant, k) for name, relevant in lists.items()}


def _read(samples: Samples, table: str, columns: list[str]) -> pa.Table:
    return pa.concat_tables([pq.read_table(file, columns=columns) for file in samples.files(table)])
