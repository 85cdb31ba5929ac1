"""Parquet files in pieces, as shards and Spark tasks write them, joined to one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_ROW_GROUP = 122_880
_DISTINCT = ("item_id", "search_id", "watched_at", "theta")
"""Columns of too many values for a dictionary."""


def join_pieces(pieces: Sequence[Path], target: Path) -> None:
    """Make one Parquet file of the rows of the pieces, in their order; the pieces are gone afterwards.

    One row group is in memory at a time.
    """
    found = pq.read_schema(pieces[0])
    # Engines differ in what they call nullable, and leave notes of their own.
    schema = pa.schema([field.with_nullable(True) for field in found])
    if len(pieces) == 1 and found.equals(schema):
        pieces[0].rename(target)
        return
    repeated = [field.name for field in schema if field.name not in _DISTINCT]
    with pq.ParquetWriter(target, schema, compression="snappy", use_dictionary=repeated) as writer:
        for piece in pieces:
            with pq.ParquetFile(piece) as parquet:
                for batch in parquet.iter_batches(_ROW_GROUP):
                    writer.write_batch(batch.cast(schema))
            piece.unlink()
