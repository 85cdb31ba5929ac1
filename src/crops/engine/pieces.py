"""Parquet files in pieces, as shards and Spark tasks write them, joined to one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crops.errors import CropsError

ROW_GROUP = 122_880
_DISTINCT = ("item_id", "search_id", "watched_at", "theta")
"""Columns of too many values for a dictionary."""


def open_parquet(target: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of a table of the engine; give it batches of `ROW_GROUP` rows."""
    # Engines differ in what they call nullable, and leave notes of their own.
    fields = [field.with_nullable(True).remove_metadata() for field in schema]
    repeated = [field.name for field in fields if field.name not in _DISTINCT]
    return pq.ParquetWriter(target, pa.schema(fields), compression="snappy", use_dictionary=repeated)


def check_rows(files: Sequence[Path], counted: int, target: Path) -> None:
    """Compare the rows that files say they hold with the rows that were counted before they were written.

    Raises:
        CropsError: some are missing (or too many): what wrote the files did not see the driver's folder.
    """
    written = sum(pq.read_metadata(file).num_rows for file in files)
    if written != counted:
        raise CropsError(
            f"{target.name}: {written:,} of {counted:,} rows arrived in {target.parent}, so nothing is "
            "published; all workers must see this folder at this path, and the disk must keep what is written"
        )


def join_pieces(pieces: Sequence[Path], target: Path) -> None:
    """Make one Parquet file of the rows of the pieces, in their order; the pieces are gone afterwards.

    One row group is in memory at a time.
    """
    with open_parquet(target, pq.read_schema(pieces[0])) as writer:
        for piece in pieces:
            with pq.ParquetFile(piece) as parquet:
                for batch in parquet.iter_batches(ROW_GROUP):
                    writer.write_batch(batch.cast(writer.schema))
            piece.unlink()
