"""What the training data says about a query, for people who are not its owner: nothing that few users did."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.engine.backend import DuckDBBackend, id_sql
from crops.engine.events import load_events
from crops.engine.evidence import Trail, tell_trails, told_queries_sql
from crops.engine.mined import Mined, read_mined
from crops.errors import CropsError, UnknownItemError
from crops.labels import POSITIVE_LABEL, Source
from crops.logs.tables import path_literal
from crops.outputs import read_manifest, recorded
from crops.retrieval import FlatIndex
from crops.retrieval.encoding import narrowed
from crops.serving.searcher import Document, Searcher, document_of
from crops.text import DOCUMENT_FIELDS, PLAIN, query_id

_POSITIVES = 60

"""Positives of a training query that are looked at: of the highest labels and weights."""

_REWORDINGS = 3

_GROUP = 400

"""Documents of a training group that are shown."""


@dataclass(frozen=True)
class SourceTotal:
    """What a source says about a training query, over its told trails; None where there is none."""

    source: Source
    items: int | None
    events: int | None
    users: int | None


@dataclass(frozen=True)
class TrainingQuery:
    """A training query of at least k users."""

    query_id: int
    text: str
    searches: int
    users: int
    totals: tuple[SourceTotal, ...] = ()
    rewordings: tuple[str, ...] = ()
    """Later queries of its told trails (P1), most frequent first."""


@dataclass(frozen=True)
class Pair:
    """A query with one of its training documents."""

    query_id: int
    item_id: int
    label: int
    sources: Source
    document: Document
    model: str | None
    """The language model that wrote the document; None for what people made."""
    trails: tuple[Trail, ...] = ()


class Evidence:
    """The evidence of a mining, for the training queries of at least k users."""

    def __init__(
        self, samples: Path, logs: Path | None = None, *, k: int | None = None, limit: int = 20_000
    ) -> None:
        """Read a mined folder and its logs once.

        Args:
            samples: folder of a mining, or of a daily build.
            logs: the accepted logs, where they are not where the mining found them.
            k: users behind whatever is shown; `engine.k` of the mining when None.
            limit: training queries to know, the most searched ones.

        Raises:
            CropsError: there is no mining, its logs are gone, or its groups are single events.
        """
        mined = read_mined(samples)
        if mined.by_event:
            raise CropsError(
                f"{samples}: mined with group_by = 'event'; evidence is shown for whole queries only"
            )
        self.k = k or mined.config.k
        self._lock = threading.Lock()
        self._backend = DuckDBBackend(mined.config.memory)
        _read_logs(self._backend, mined, logs)
        _read_samples(self._backend, mined, self.k, limit)
        self.queries = _training_queries(self._backend)
        self._by_id = {query.query_id: query for query in self.queries}
        self._positives = _positives(self._backend)

    def close(self) -> None:
        """Close the database."""
        self._backend.__exit__(None, None, None)

    def query(self, query_id: int) -> TrainingQuery | None:
        """Return a training query of at least k users with what each source says about it."""
        return self._by_id.get(query_id)

    def positives(self, query_id: int) -> NDArray[np.int64]:
        """Return the items [n] that are the most telling positives of a training query."""
        return self._positives.get(query_id, np.empty(0, dtype=np.int64))

    def pairs(self, wanted: Collection[tuple[int, int]]) -> dict[tuple[int, int], Pair]:
        """Return pairs of training queries and their items, with their trails."""
        if not wanted:
            return {}
        queries, items = ({pair[place] for pair in wanted} for place in (0, 1))
        found = self._pairs(f"query_id in ({_listed(queries)}) and item_id in ({_listed(items)})")
        pairs = {(pair.query_id, pair.item_id): pair for pair in found}
        return {pair: pairs[pair] for pair in wanted}

    def written(self, items: Collection[int]) -> dict[int, Document]:
        """Return generated documents."""
        if not items:
            return {}
        rows = self._rows(f"select * from written where item_id in ({_listed(items)})")
        return {row["item_id"]: document_of(row) for row in rows}

    def group(self, query_id: int) -> list[Pair]:
        """Return the training group of a query, highest label first."""
        return self._pairs(f"query_id = {id_sql(query_id)}", f"and place <= {_GROUP}")

    def stages(self, query_id: int) -> dict[int, Source] | None:
        """Return how far the old system let each item come; None for a query of fewer than k users."""
        if query_id not in self._by_id:
            return None
        rows = self._rows(f"select item_id, source from stages where query_id = {id_sql(query_id)}")
        return {row["item_id"]: Source(row["source"]) for row in rows}

    def _pairs(self, wanted: str, more: str = "") -> list[Pair]:
        """Return the pairs that meet conditions, the second of them on the place in the group."""
        rows = self._rows(f"select * from members where {wanted} {more}")
        trails: dict[tuple[int, int], list[Trail]] = {}
        for row in sorted(self._rows(f"select * from trails where {wanted}"), key=_telling):
            trails.setdefault((row["query_id"], row["item_id"]), []).append(Trail.of(row))
        rows.sort(key=lambda row: (row["query_id"], row["place"]))
        return [_pair(row, trails.get((row["query_id"], row["item_id"]), ())) for row in rows]

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        with self._lock:
            return self._backend.rows(sql)


def _listed(ids: Collection[int]) -> str:
    return ", ".join(id_sql(one) for one in sorted(ids))


def _telling(trail: dict[str, Any]) -> tuple[int, int, str]:
    """Return what trails are sorted by: the highest source first, then the most people."""
    return -trail["source"], -(trail["users"] or 0), trail["via"] or ""


def _pair(row: dict[str, Any], trails: Sequence[Trail]) -> Pair:
    generated = row["item_id"] < 0
    return Pair(
        row["query_id"],
        row["item_id"],
        row["label"],
        Source(row["sources"]),
        document_of(row),
        (row["model"] or "a language model") if generated else None,
        tuple(trails),
    )


def _training_queries(backend: DuckDBBackend) -> tuple[TrainingQuery, ...]:
    """Return the queries of `asked` with what is told of each, the most searched first."""
    totals: dict[int, list[SourceTotal]] = {}
    for row in backend.rows("select * from totals order by source desc"):
        total = SourceTotal(Source(row["source"]), row["items"], row["events"], row["users"])
        totals.setdefault(row["query_id"], []).append(total)
    later: dict[int, list[str]] = {}
    for row in backend.rows(_LATER):
        later.setdefault(row["query_id"], []).append(row["via"])
    return tuple(
        TrainingQuery(
            row["query_id"],
            row["query"],
            row["searches"],
            row["users"],
            tuple(totals.get(row["query_id"], ())),
            tuple(later.get(row["query_id"], ())),
        )
        for row in backend.rows("select * from asked order by searches desc, query")
    )


_LATER = f"""
select query_id, via from (
    select query_id, via,
        row_number() over (partition by query_id order by sum(events) desc, via) as place
    from trails where via is not null group by query_id, via
) t where place <= {_REWORDINGS} order by query_id, place
"""


def _positives(backend: DuckDBBackend) -> dict[int, NDArray[np.int64]]:
    """Return the first positives of each training query."""
    rows = backend.arrow(
        f"select query_id, item_id from members where label >= {POSITIVE_LABEL} and place <= {_POSITIVES} "
        "order by query_id, place"
    )
    queries, starts = np.unique(rows["query_id"].to_numpy(), return_index=True)
    items = np.split(rows["item_id"].to_numpy(), starts[1:])
    return dict(zip(queries.tolist(), items, strict=False))


def _read_logs(backend: DuckDBBackend, mined: Mined, logs: Path | None) -> None:
    """Make `searchers(search_id, day, user_id)` and `seen(query_id, item_id, source)` of the days mined."""
    for source, days in mined.open_logs(logs):
        load_events(backend, source, days, mined.config.bots, keep=False)
        backend.append("searchers", "select search_id, day, user_id from searches")
        backend.append(
            "seen",
            "select group_id as query_id, item_id, max(source) as source from impressions group by all",
        )
        backend.drop_tables("queries")  # the mining has its own


def _read_samples(backend: DuckDBBackend, mined: Mined, k: int, limit: int) -> None:
    """Make the tables that are looked up, and drop what they were made of."""
    mined.open(backend)
    backend.table("asked", f"{told_queries_sql(k)} order by searches desc, query limit {limit}")
    backend.table("own", "select e.* from evidence e join asked a on a.query_id = e.query_id")
    tell_trails(backend, mined, k)
    backend.table(
        "stages",
        "select s.query_id, item_id, max(source) as source from seen s "
        "join asked a on a.query_id = s.query_id group by s.query_id, item_id order by s.query_id",
    )
    _name_writers(backend, mined)
    backend.table("members", f"{_MEMBERS} order by s.query_id")  # so that a look-up skips the other queries
    backend.table("trails", "select * from trails order by query_id")
    backend.drop_tables("searchers", "seen", "own", "counted")
    backend.table(
        "written",
        f"select item_id, {', '.join(DOCUMENT_FIELDS)} from synthetic_items "
        "where item_id in (select item_id from members)",
    )


_TEXTS = ", ".join(f"coalesce(i.{field}, g.{field}) as {field}" for field in DOCUMENT_FIELDS)

_MEMBERS = f"""
select s.query_id, s.item_id, s.label, s.sources, {_TEXTS}, i.category, w.model,
    row_number() over (
        partition by s.query_id order by s.label desc, s.sources desc, s.weight desc, s.item_id
    ) as place
from samples s join asked a on a.query_id = s.query_id
left join items i on i.item_id = s.item_id
left join synthetic_items g on g.item_id = s.item_id
left join writers w on w.item_id = s.item_id
"""


def _name_writers(backend: DuckDBBackend, mined: Mined) -> None:
    """Make `writers(item_id, model)`: who wrote each generated document, where that is known."""
    backend.table(
        "writers", "select item_id, cast(null as VARCHAR) as model from synthetic_items where 1 = 0"
    )
    manifest = read_manifest(mined.folder, "mine")
    if manifest.get("generated") is None:
        return
    generated = recorded(manifest["generated"], mined.folder, manifest.get("made_in"))
    if not generated.is_file():
        return
    columns = ", ".join(f"{field}: 'VARCHAR'" for field in (*DOCUMENT_FIELDS, "model"))
    source = f"read_json({path_literal(generated)}, format = 'newline_delimited', columns = {{{columns}}})"
    same = " and ".join(f"coalesce(g.{field}, '') = coalesce(i.{field}, '')" for field in DOCUMENT_FIELDS)
    backend.append(
        "writers",
        "select i.item_id, min(g.model) as model "
        f"from synthetic_items i join {source} g on {same} group by i.item_id",
    )


class Senses:
    """What each item is about, as only a simulation knows."""

    def __init__(self, truth: Path) -> None:
        """Read the truth folder of `crops simulate`.

        Raises:
            CropsError: it is none.
        """
        for name in ("items", "needs"):
            if not (truth / f"{name}.parquet").is_file():
                raise CropsError(f"{truth} is no truth folder of `crops simulate` (no {name}.parquet in it)")
        needs = pq.read_table(truth / "needs.parquet", columns=["need_id", "sense"]).to_pydict()
        sense = dict(zip(needs["need_id"], needs["sense"], strict=True))
        items = pq.read_table(truth / "items.parquet", columns=["item_id", "need_id"]).to_pydict()
        self._sense = {
            item: sense[need] for item, need in zip(items["item_id"], items["need_id"], strict=True)
        }

    def of(self, item_id: int) -> str | None:
        """Return what an item is about."""
        return self._sense.get(item_id)


# ------------------------------------------------------------------------------
# Why an item is found for a query: the training pairs nearest to it.


NEAREST = 6

"""Training queries that are looked at beside the query itself."""

FAR = 0.3

"""Training queries of a smaller cosine with the query asked say nothing about it."""

PAIRS = 4

"""Training pairs that are named for an item."""

_WRITTEN = 4096

"""Generated documents whose vectors are kept."""


@dataclass(frozen=True)
class NearQuery:
    """A training query and its cosine with the query asked; 1 where it is the same."""

    query: TrainingQuery
    similarity: float


@dataclass(frozen=True)
class NearPair:
    """A training pair that speaks for an item."""

    near: NearQuery
    pair: Pair
    similarity: float
    """Cosine of its document with the item; 1 where it is the item itself."""


@dataclass(frozen=True)
class Explained:
    """What the training data says about a query and the items found for it."""

    known: bool
    """Whether the query itself is a training query of at least k users."""
    queries: tuple[NearQuery, ...]
    pairs: dict[int, tuple[NearPair, ...]]
    """By item, the nearest first."""


class Explainer:
    """Looks up evidence with the vectors of one model and the items of one version of an index."""

    def __init__(self, evidence: Evidence, searcher: Searcher) -> None:
        """Encode the training queries with the model of `searcher`."""
        self._evidence, self._searcher = evidence, searcher
        self._written: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._index: FlatIndex | None = None
        if evidence.queries and searcher.model is not None:
            vectors = searcher.encode([query.text for query in evidence.queries])
            self._index = FlatIndex(np.arange(len(vectors)), vectors)

    def on(self, searcher: Searcher) -> Explainer:
        """Return an explainer for another version of the index; the same model encodes nothing again."""
        if not self._searcher.same_model(searcher):
            return Explainer(self._evidence, searcher)
        other = copy.copy(self)
        other._searcher = searcher
        return other

    def explain(self, query: str, items: Sequence[int]) -> Explained:
        """Return what speaks for items as answers to a query.

        Pairs are ordered by cosine of the queries times cosine of the documents: both must be near.

        Args:
            query: normalised.
            items: ids of real items.

        Raises:
            UnknownItemError: an item is not in the index.
        """
        asked = np.array(items, dtype=np.int64)
        if (unknown := asked[~self._searcher.index.known(asked)]).size:
            raise UnknownItemError(int(unknown[0]), "the index", unknown.size)
        near = self._near(query)
        found = [self._evidence.positives(one.query.query_id) for one in near]
        documents = np.concatenate([*found, np.empty(0, dtype=np.int64)])
        owner = np.repeat(np.arange(len(near)), [len(one) for one in found])
        own = np.array([one.similarity for one in near], dtype=np.float32)[owner]
        similar = self._similarities(asked, documents)
        weights = own * similar
        best = np.argsort(weights, axis=1, kind="stable")[:, ::-1][:, :PAIRS]
        chosen = [
            [(near[owner[column]], int(documents[column]), float(similar[row, column])) for column in columns]
            for row, columns in enumerate([some[weights[row, some] > 0] for row, some in enumerate(best)])
        ]
        pairs = self._evidence.pairs({(one.query.query_id, item) for some in chosen for one, item, _ in some})
        named = {
            item: tuple(
                NearPair(one, pairs[one.query.query_id, document], cosine) for one, document, cosine in some
            )
            for item, some in zip(items, chosen, strict=True)
        }
        known = bool(near) and near[0].query.query_id == query_id(query)
        return Explained(known, tuple(near), named)

    def _near(self, query: str) -> list[NearQuery]:
        """Return the query itself, if it is a training query, and the nearest others."""
        same = self._evidence.query(query_id(query))
        near = [] if same is None else [NearQuery(same, 1.0)]
        if self._index is None:
            return near
        rows, scores = self._index.nearest(self._searcher.encode([query]), NEAREST + len(near))
        for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True):
            if row < 0 or self._evidence.queries[row].query_id == query_id(query) or score < FAR:
                continue
            found = self._evidence.query(self._evidence.queries[row].query_id)
            if found is not None and len(near) < NEAREST:
                near.append(NearQuery(found, score))
        return near

    def _similarities(self, items: NDArray[np.int64], documents: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the cosines [items, documents] of items with documents; 0 for one that is unknown."""
        same: NDArray[np.float32] = np.equal.outer(items, documents).astype(np.float32)
        if self._index is None or not same.size:
            return same
        vectors = self._searcher.index.vectors(items)
        others = np.zeros((len(documents), vectors.shape[1]), dtype=np.float32)
        known = self._searcher.index.known(documents)  # the others have left the index, or are generated
        others[known] = self._searcher.index.vectors(documents[known])
        if self._reads_texts():
            written = documents < 0
            others[written] = self._written_vectors(documents[written].tolist(), vectors.shape[1])
        near: NDArray[np.float32] = np.where(same == 1, np.float32(1), vectors @ others.T)
        return near

    def _reads_texts(self) -> bool:
        """Return whether the model reads texts, and not ids, which what is written has none of."""
        return self._searcher.model is not None and self._searcher.model.rendering is PLAIN

    def _written_vectors(self, items: Sequence[int], width: int) -> NDArray[np.float32]:
        """Return the vectors [n, width] of generated documents, encoded when they are first asked for."""
        missing = self._evidence.written({item for item in items if item not in self._written})
        if missing:
            texts = [_text(document) for document in missing.values()]
            encoded = narrowed(self._searcher.encode(texts, role="document"), width)
            self._written.update(zip(missing, encoded, strict=True))
        found = np.array([self._written[item] for item in items], dtype=np.float32).reshape(len(items), width)
        while len(self._written) > _WRITTEN:
            self._written.popitem(last=False)
        return found


def _text(document: Document) -> str:
    return " ".join([document.title, *document.text.split(" · ")]).strip()
