"""How much a job may hold at once, and into how many parts that cuts its work."""

from __future__ import annotations

import re

from crops.errors import CropsError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}

_PROCESS = 260_000_000
"""Python, Arrow and the code of the database, beside the rows."""
_LEAST = 64_000_000
_SMALL_PART = 3_000_000
_PIECES = 4
"""By a part: its bounds follow its rows and not the pieces, and it reads those that it touches."""
MERGE_ROW = 200
"""Bytes that an impression or a candidate takes in the hash tables and sorts of merging, with room to
spare."""
SEARCH_ROW = 300
"""Bytes that a search takes in those of mining, which joins feed events and later searches to it."""


def parse_memory(text: str) -> int:
    """Return the bytes of a size such as "2GB", "512MiB" or "1.5 GB".

    Raises:
        CropsError: `text` is no size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise CropsError(f"engine.memory = '{text}': write a size such as '2GB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def duckdb_limit(memory: int) -> int:
    """Return what DuckDB may use of the memory of the whole process, in bytes."""
    return max(memory - _PROCESS, memory // 3, _LEAST)


def merge_parts(rows: int, memory: int | None) -> int:
    """Return into how many parts merging is cut so that its hash tables stay small and fit into memory."""
    return 1 if memory is None else max(shards(rows, MERGE_ROW, memory), rows // _SMALL_PART)


def pieces(rows: int, memory: int | None) -> int:
    """Return into how many pieces `rows` impressions are laid apart for parts to read (see `Backend.cut`)."""
    parts = merge_parts(rows, memory)
    return 1 if parts == 1 else parts * _PIECES


def shards(rows: int, row_bytes: int, memory: int | None) -> int:
    """Return into how many parts `rows` rows are cut so that a step on one part fits into memory."""
    if memory is None:
        return 1
    return max(1, -(-rows * row_bytes // duckdb_limit(memory)))
