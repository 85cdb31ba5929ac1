"""Text vectors kept on disk: Parquet parts, one folder per model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.outputs import unique


def text_key(text: str) -> bytes:
    """Return the first 16 bytes of the SHA-256 of `text`: the key of its vector."""
    return hashlib.sha256(text.encode()).digest()[:16]


class VectorStore:
    """Vectors of texts by key, in the folder of one model.

    The folder holds `part-*.parquet` with columns `key` (16 bytes) and `vector` (fixed-size list of float32).
    A part appears whole or not at all and is never changed; processes may share the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> tuple[list[bytes], NDArray[np.float32]]:
        """Return all keys and their vectors [n, dim]; [0, 0] when nothing is stored.

        Raises:
            CropsError: a part cannot be read; it names the file, which may be deleted.
        """
        keys: list[bytes] = []
        blocks: list[NDArray[np.float32]] = []
        for part in sorted(self.folder.glob("part-*.parquet")):
            try:
                table = pq.read_table(part, columns=["key", "vector"]).combine_chunks()
                column = table.column("vector").combine_chunks()
                blocks.append(column.flatten().to_numpy().reshape(table.num_rows, column.type.list_size))
            except (OSError, pa.ArrowException, AttributeError, ValueError) as error:
                raise CropsError(
                    f"{part}: not a readable vector cache ({error}). Delete it: it is made again."
                ) from error
            keys += table.column("key").to_pylist()
        if len({block.shape[1] for block in blocks}) > 1:
            raise CropsError(
                f"{self.folder}: vectors of several lengths in one cache. Delete it: it is made again."
            )
        return keys, np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)

    def append(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Write one more part: `keys` and their vectors [n, dim]."""
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        staging = unique(self.folder / name, "tmp")
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        table = pa.table(
            {
                "key": pa.array(keys, pa.binary(16)),
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )
        try:
            pq.write_table(table, staging, compression="none")
            staging.replace(self.folder / f"part-{name}.parquet")
        finally:
            staging.unlink(missing_ok=True)
