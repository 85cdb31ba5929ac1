"""What a folder of tables holds, as a hash: equal rows give equal hashes, however they lie in files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops.engine.backend import DuckDBBackend
from crops.errors import CropsError
from crops.logs.tables import path_literal
from crops.outputs import MANIFEST

CONTENT = "content.json"
"""The content manifest of a folder."""


def write_content(folder: Path, memory: str) -> str:
    """Write the content manifest of a folder: per file bytes and SHA-256, per table rows and content too.

    The content of a table is a hash of its sorted rows; that of the folder, a hash of its tables'. The
    manifest of the run, which holds times, is no content.

    Args:
        folder: holds Parquet files and others.
        memory: limit of the sorting, e.g. "2GB".

    Returns:
        the content of the folder, hexadecimal.
    """
    files: dict[str, dict[str, Any]] = {}
    with DuckDBBackend(memory) as backend:
        for path in sorted(folder.iterdir()):
            if path.name in (MANIFEST, CONTENT):
                continue
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _file_hash(path)}
            if path.suffix == ".parquet":
                files[path.name]["rows"] = pq.read_metadata(path).num_rows
                files[path.name]["content"] = table_content(backend, path)
    tables = {name: facts["content"] for name, facts in files.items() if "content" in facts}
    content = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
    (folder / CONTENT).write_text(json.dumps({"content": content, "files": files}, indent=2) + "\n")
    return content


def read_content(folder: Path) -> str:
    """Return the content hash that `write_content` wrote.

    Raises:
        CropsError: there is none.
    """
    path = folder / CONTENT
    if not path.exists():
        raise CropsError(
            f"{folder} has no {CONTENT}: it is no part of a daily build; delete it, build it anew"
        )
    return str(json.loads(path.read_text())["content"])


def table_content(backend: DuckDBBackend, path: Path) -> str:
    """Return the SHA-256 of a Parquet file's columns, rows sorted by all of them.

    It depends on names, types and values only: not on the order of rows, row groups or compression. One
    batch of rows is in memory at a time, beside the sort.
    """
    columns = [_Column(field) for field in pq.read_schema(path)]
    source = f"read_parquet({path_literal(path)}, hive_partitioning=false)"
    for batch in backend.stream(f"select * from {source} order by all"):
        for column, values in zip(columns, batch.columns, strict=True):
            column.add(values)
    digest = hashlib.sha256()
    for column in columns:
        column.into(digest)
    return digest.hexdigest()


class _Column:
    """Running hashes of a column, one per buffer: where batches end leaves no trace."""

    def __init__(self, field: pa.Field) -> None:
        self._name = f"{field.name} {field.type}"
        self._text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        self._parts = [hashlib.sha256() for _ in range(3)]

    def add(self, values: pa.Array) -> None:
        """Hash the next values: which are there, then numbers, or lengths and bytes of texts."""
        valid, data, lengths = self._parts
        valid.update(np.asarray(values.is_valid()).tobytes())
        if self._text:
            texts = pc.fill_null(values.cast(pa.large_string()), "")
            lengths.update(np.asarray(pc.binary_length(texts)).tobytes())
            data.update("".join(texts.to_pylist()).encode())
        else:
            numbers = pc.fill_null(values, pa.scalar(0, pa.int8()).cast(values.type))
            data.update(np.asarray(numbers).tobytes())

    def into(self, digest: hashlib._Hash) -> None:
        """Add the column to the hash of its table."""
        digest.update(self._name.encode())
        for part in self._parts:
            digest.update(part.digest())


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
