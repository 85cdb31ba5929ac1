"""The documents a retriever searches: read, checked and kept in the order of their ids.

Inside the retrievers a document is its position in that order: a tie broken by position is broken by id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.engine.documents import require_lag
from crops.engine.mined import require_catalogue
from crops.errors import CropsError, UnknownItemError, nearest_path
from crops.logs.files import column_faults, kind, refuse_lake_tables
from crops.logs.sources import parquet_schema
from crops.schema import ARROW_TYPES, ITEMS
from crops.text import (
    CLICK_QUERY,
    DOCUMENT_FIELDS,
    MINED_QUERY,
    PLAIN,
    Rendering,
    document_text,
    normalise_query,
    query_id,
)

if TYPE_CHECKING:
    import pyarrow.dataset as ds

NO_ITEM = -1
"""Fills the places of a result list that found too little."""
SCORE_DECIMALS = 6
"""Scores are rounded, so that the last bits of a sum decide no order."""
SCAN_BELOW = 0.1
"""A filter that lets less than this share through is searched exactly, and so is a search for more than this
share: there structures lose recall, and graphs do not reach every item."""
ITEM_SCHEMA = pa.schema(
    [*((column.name, ARROW_TYPES[column.type]) for column in ITEMS.columns), (MINED_QUERY, pa.string())]
)
"""The columns of `items` that an index keeps; click_query, which people typed, only where it was counted for
the index, and beside them the queries that were added (`crops.engine.documents`)."""
Results = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Ids and scores, each [queries, k]: best first, ties by id, padded with -1 and -inf."""
_COMPARE: dict[str, Callable[..., Any]] = {"==": pc.equal, ">=": pc.greater_equal, "<": pc.less}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
"""What Milvus reads inside quotes; it knows no code points: all other letters stand for themselves."""
SAMPLED = 5000
"""Items, and queries, that tell in which language people write."""
_ROWS_SEEN = 500_000
"""Rows that these queries are taken from."""
_QUERY_TABLES = ("queries.parquet", "search_impressions")
"""Where a folder has queries: mined samples, logs."""


def load_items(
    path: str | Path,
    keep: NDArray[np.int64] | None = None,
    rendering: Rendering = PLAIN,
    queries: pa.Table | None = None,
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the ids [n], ascending, and the n document texts of `items`.

    Args:
        path: `items.parquet`, a folder of its parts, or a folder that holds either (logs, mined samples).
        keep: the ids to load; all when None.
        rendering: what stands for a document; what the encoder reads (`crops.encoders.rendering_of`).
        queries: columns by item_id in place of the table's own: the click queries that were counted for this
            catalogue (`crops.engine.documents`).

    Raises:
        CropsError: there is no item table, or that of a day of a daily build, which lacks most items, a
            needed column is missing, an id is null, repeated or negative, or an id of `keep` is not in the
            table; or click queries are wanted, and those of the table are not older than its samples.
    """
    path = Path(path)
    require_catalogue(path)
    if CLICK_QUERY in rendering.columns and queries is None:
        require_lag(path)
    read = _read_items(path, rendering, queries)
    ids, texts = sorted_catalogue(*read, lambda number: own_ids(path).get(number, str(number)))
    if MINED_QUERY in rendering.columns and queries is not None:
        added = queries.filter(queries[MINED_QUERY].is_valid())["item_id"].to_numpy()
        if 2 * (unknown := np.setdiff1d(added, ids)).size > len(added):
            raise CropsError(
                f"{path} lacks {unknown.size} of the {len(added)} items that the expansion adds to, e.g. "
                f"item_id {unknown[0]}: it is of another mining; expand one of these items"
            )
    if keep is None:
        return ids, texts
    wanted = np.unique(keep)
    positions = positions_of(ids, wanted, where=str(path))
    return wanted, [texts[position] for position in positions]


def _read_items(
    path: Path, rendering: Rendering, queries: pa.Table | None
) -> tuple[NDArray[np.int64], list[str]]:
    ids: list[NDArray[np.int64]] = []
    texts: list[str] = []
    for file in item_files(path):
        table = with_queries(read_item_columns(file, rendering.columns), queries)
        if table.num_columns == 1:
            raise CropsError(f"{file}: needs item_id and at least one of {', '.join(rendering.columns)}")
        ids.append(table["item_id"].to_numpy())
        texts.extend(rendering.document(row) for row in table.to_pylist())
    return np.concatenate(ids), texts


def own_ids(path: str | Path) -> dict[int, str]:
    """Return the source's own ids of the items of a table by number, of those that have one."""
    found: dict[int, str] = {}
    for file in item_files(Path(path)):
        table = read_item_columns(file, ("source_id",))
        if "source_id" in table.column_names:
            named = table.filter(pc.is_valid(table["source_id"])).to_pydict()
            found.update(zip(named["item_id"], named["source_id"], strict=True))
    return found


def load_item_rows(path: str | Path, queries: pa.Table | None = None) -> pa.Table:
    """Return the rows of `items` with the columns that an index keeps, ascending by id.

    Args:
        path: as `crops.retrieval.load_items`, which checks the ids.
        queries: as there.
    """
    path = Path(path)
    columns = [name for name in ITEM_SCHEMA.names if name != CLICK_QUERY]
    tables = [item_rows(with_queries(read_item_columns(file, columns), queries)) for file in item_files(path)]
    return pa.concat_tables(tables).sort_by("item_id").combine_chunks()


def with_queries(items: pa.Table, queries: pa.Table | None) -> pa.Table:
    """Return items with the columns of `queries`, by item_id, in place of their own of these names."""
    if queries is None:
        return items
    place = pc.index_in(items["item_id"], queries["item_id"].combine_chunks())
    for name in queries.column_names[1:]:
        column = queries[name].take(place)
        at = items.schema.get_field_index(name)
        items = items.append_column(name, column) if at < 0 else items.set_column(at, name, column)
    return items


def item_rows(table: pa.Table) -> pa.Table:
    """Return a table of items in the columns of `ITEM_SCHEMA`, ascending by id; absent columns are null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in ITEM_SCHEMA
    ]
    return pa.table(columns, schema=ITEM_SCHEMA).sort_by("item_id").combine_chunks()


def read_item_columns(file: Path, names: Collection[str]) -> pa.Table:
    """Return `item_id` and those of the named columns of items that a file has, in the contract's types.

    Raises:
        CropsError: the file is not readable, a column is missing or of another type, or a value does not fit.
    """
    schema = parquet_schema(file)
    wanted = replace(ITEMS, columns=tuple(one for one in ITEMS.columns if one.name in {"item_id", *names}))
    for problem, remedy in column_faults(wanted, schema):
        raise CropsError(f"{file}: {problem}; {remedy}")
    present = [column for column in wanted.columns if column.name in schema.names]
    table = pq.read_table(file, columns=[column.name for column in present], partitioning=None)
    if missing := table["item_id"].null_count:
        raise CropsError(f"{file}: {missing} rows have no item_id; run `crops check` first")
    columns = {}
    for column in present:
        try:
            columns[column.name] = table[column.name].cast(ARROW_TYPES[column.type])
        except pa.ArrowInvalid as error:
            raise CropsError(f"{file}: column {column.name}: {error}; run `crops check` first") from error
    return pa.table(columns)


def item_files(path: Path) -> list[Path]:
    """Return the Parquet files of `items`; see `load_items`.

    Raises:
        CropsError: there is none.
    """
    refuse_lake_tables([path, path / "items", path / "items.parquet"])
    if path.is_file():
        return [path]
    if (path / "items.parquet").is_file():
        return [path / "items.parquet"]
    parts = next((parts for name in ("items.parquet", "items") if (parts := path / name).is_dir()), path)
    files = sorted(parts.glob("*.parquet"))
    if not files:
        raise CropsError(
            f"{path}: no items.parquet and no folder items/ with Parquet files in it{_hint(path)}"
        )
    return files


def _hint(path: Path) -> str:
    """Return what was perhaps meant: the accepted rows in the folder of a check, or a name nearby."""
    if (path / "accepted").is_dir():
        return f"; did you mean {path / 'accepted'}?"
    return nearest_path(path, files=True)


def load_queries(path: str | Path) -> tuple[NDArray[np.int64], list[str]]:
    """Return the distinct normalised queries of a table: ascending ids [n] (`query_id`), and texts.

    `path` is Parquet with a column `query`, or a folder of mined samples or of logs.

    Raises:
        CropsError: there is no such table, or no query in it.
    """
    path = Path(path)
    table = _query_table(path)
    if table is None:
        raise CropsError(f"{path}: no Parquet table with a column query")
    type_ = table.schema.field("query").type
    if kind(type_) != "text":
        raise CropsError(f"{path}: column query is {type_}; write the texts of the queries")
    column = table.to_table(columns=["query"])["query"]
    texts = {normalise_query(text) for text in column.unique().to_pylist() if text}
    by_id = sorted((query_id(text), text) for text in texts if text)
    if not by_id:
        raise CropsError(f"{path}: not one query in it")
    return np.array([one for one, _ in by_id], dtype=np.int64), [text for _, text in by_id]


def _query_table(path: Path) -> ds.Dataset | None:
    import pyarrow.dataset as ds  # brings pandas where that is installed, which takes half a second

    tables = [path / name for name in _QUERY_TABLES if (path / name).exists()]
    if path.is_file() or (path.is_dir() and path.suffix == ".parquet" and not tables):
        tables = [path]  # a file, or a folder of its parts
    refuse_lake_tables(tables)
    try:
        found = (ds.dataset(table, format="parquet") for table in tables)
        return next((table for table in found if "query" in table.schema.names), None)
    except (pa.ArrowException, OSError) as error:
        raise CropsError(f"{path} is not readable as Parquet ({error}); write it again") from error


def sample_texts(path: str | Path) -> list[str]:
    """Return the texts of the first items and distinct queries of a folder or table, 5,000 of each at most.

    Args:
        path: as of `load_items` or `load_queries`; what is not there is left out.
    """
    path = Path(path)
    texts: list[str] = []
    if path.is_file() or any((path / name).exists() for name in ("items", "items.parquet")):
        for file in item_files(path):
            rows = read_item_columns(file, DOCUMENT_FIELDS).slice(0, SAMPLED - len(texts))
            texts += [document_text(row) for row in rows.to_pylist()]
    queries = _query_table(path)
    if queries is not None and kind(queries.schema.field("query").type) == "text":
        asked = queries.head(_ROWS_SEEN, columns=["query"])["query"].unique().drop_null()
        texts += asked.slice(0, SAMPLED).to_pylist()
    return texts


class Filter(NamedTuple):
    """Conditions on items, all of which must hold; an item whose value is missing meets none."""

    item_ids: NDArray[np.int64] | None = None
    author_id: int | None = None
    category: str | None = None
    uploaded_since: int | None = None
    """Microseconds UTC, inclusive."""
    uploaded_before: int | None = None
    """Microseconds UTC, exclusive."""

    def key(self) -> Hashable:
        """Return what two filters share if and only if they ask for the same."""
        ids = None if self.item_ids is None else np.asarray(self.item_ids, dtype=np.int64).tobytes()
        return ids, *self[1:]

    def mask(self, items: pa.Table) -> NDArray[np.bool_]:
        """Return which rows of `items`, with the columns of `ITEM_SCHEMA`, meet the conditions: [n]."""
        mask: NDArray[np.bool_] = np.ones(items.num_rows, dtype=np.bool_)
        if self.item_ids is not None:
            mask &= np.isin(items["item_id"].to_numpy(), self.item_ids)
        for column, relation, value in self._comparisons():
            met = pc.fill_null(_COMPARE[relation](items[column], value), False)
            mask &= met.to_numpy()
        return mask

    def expression(self) -> str:
        """Return the conditions in the language of Milvus, empty when there are none."""
        parts = [f"{name} {relation} {_literal(value)}" for name, relation, value in self._comparisons()]
        if self.item_ids is not None:
            parts.append(f"item_id in {self.item_ids.tolist()}")
        return " and ".join(parts)

    def _comparisons(self) -> list[tuple[str, str, int | str]]:
        wanted: list[tuple[str, str, int | str | None]] = [
            ("author_id", "==", self.author_id),
            ("category", "==", self.category),
            ("uploaded_at", ">=", self.uploaded_since),
            ("uploaded_at", "<", self.uploaded_before),
        ]
        return [(column, relation, value) for column, relation, value in wanted if value is not None]


def _literal(value: int | str) -> str:
    return str(value) if isinstance(value, int) else f'"{value.translate(_ESCAPES)}"'


def sorted_catalogue(
    item_ids: NDArray[np.int64] | Sequence[int],
    texts: Sequence[str],
    own_id: Callable[[int], str] = str,
) -> tuple[NDArray[np.int64], list[str]]:
    """Return a catalogue in the order of its ids.

    Args:
        item_ids: [n].
        texts: n.
        own_id: the source's own id of an item, for a message.

    Raises:
        CropsError: it is empty, ids and texts differ in number, or an id is repeated or negative
            (generated documents are for training only and never indexed).
    """
    ids = np.asarray(item_ids, dtype=np.int64)
    if ids.size == 0:
        raise CropsError("the catalogue is empty: there is nothing to search")
    if len(ids) != len(texts):
        raise CropsError(f"{len(ids)} item ids came with {len(texts)} texts; give one text for each id")
    if (ids < 0).any():
        raise CropsError(
            f"item_id {ids.min()} is negative: generated documents train the model and are never indexed; "
            "pass only the rows of items, not of synthetic_items"
        )
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    if (repeated := ids[1:][ids[1:] == ids[:-1]]).size:
        named = own_id(int(repeated[0]))
        raise CropsError(f"item_id {named} is in the catalogue more than once; run `crops check` first")
    return ids, [texts[position] for position in order]


def positions_of(ids: NDArray[np.int64], wanted: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """Return the positions of `wanted` (any shape) in the ascending `ids`.

    Raises:
        UnknownItemError: a wanted id is not there; `where` names the collection.
    """
    positions = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    unknown = ids[positions] != wanted
    if unknown.any():
        raise UnknownItemError(int(wanted[unknown].flat[0]), where, int(unknown.sum()))
    return positions


def padded_positions_of(ids: NDArray[np.int64], padded: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """Return the positions of padded result lists: `NO_ITEM` stays `NO_ITEM`; see `positions_of`."""
    positions = np.full(padded.shape, NO_ITEM, dtype=np.int64)
    present = padded != NO_ITEM
    positions[present] = positions_of(ids, padded[present], where)
    return positions


def best_positions(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the positions of the k best of `scores` [n], best first, ties by position."""
    kept = np.arange(len(scores))
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= threshold)
    return kept[np.argsort(-scores[kept], kind="stable")[:k]]


def no_results(queries: int, k: int) -> Results:
    """Return the ids and scores [queries, k] of searches that found nothing: all -1 and -inf."""
    return np.full((queries, k), NO_ITEM, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32)


def search_known(
    vectors: NDArray[np.float32],
    k: int,
    search: Callable[[NDArray[np.float32]], Results],
) -> Results:
    """Search with the vectors that are not zero: a text of which the encoder knows no token finds nothing."""
    known = vectors.any(axis=1)
    if known.all():
        return search(vectors)
    ids, scores = no_results(len(vectors), k)
    if known.any():
        ids[known], scores[known] = search(vectors[known])
    return ids, scores


def best_results(ids: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Results:
    """Return the k best of candidates [q, c] as ids and rounded scores [q, k], best first, ties by id.

    A candidate is at most once in a row, or -1 for none, whatever its score; -1 and -inf pad the results.
    """
    scores = np.round(np.where(ids == NO_ITEM, -np.inf, scores), SCORE_DECIMALS).astype(np.float32)
    order = np.lexsort((ids, -scores))[:, :k]
    best_ids, best_scores = no_results(len(ids), k)
    best_ids[:, : order.shape[1]] = np.take_along_axis(ids, order, axis=1)
    best_scores[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
    return best_ids, best_scores


def check_k(k: int) -> None:
    """Raise `CropsError` unless k is a possible length of a result list."""
    if k < 1:
        raise CropsError(f"k = {k}: ask for at least one result")
