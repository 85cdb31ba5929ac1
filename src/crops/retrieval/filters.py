"""Which items a search may find, by their columns."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crops.schema import ARROW_TYPES, ITEMS

ITEM_SCHEMA = pa.schema(
    [(column.name, ARROW_TYPES[column.type]) for column in ITEMS.columns if column.name != "click_query"]
)
"""The columns of `items` that an index keeps; `click_query` holds what people typed and stays out."""
SCAN_BELOW = 0.1
"""A filter that lets less than this share through is searched exactly, and so is a search for more than this
share: there structures lose recall, and graphs do not reach every item."""

_COMPARE: dict[str, Callable[..., Any]] = {"==": pc.equal, ">=": pc.greater_equal, "<": pc.less}


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


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
"""What Milvus reads inside quotes; it knows no code points: all other letters stand for themselves."""


def _literal(value: int | str) -> str:
    return str(value) if isinstance(value, int) else f'"{value.translate(_ESCAPES)}"'


def item_rows(table: pa.Table) -> pa.Table:
    """Return a table of items in the columns of `ITEM_SCHEMA`, ascending by id; absent columns are null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in ITEM_SCHEMA
    ]
    return pa.table(columns, schema=ITEM_SCHEMA).sort_by("item_id").combine_chunks()
