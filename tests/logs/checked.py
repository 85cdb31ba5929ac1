"""All that a check writes, in a form in which two outputs can be compared: `whole`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def whole(out: Path) -> dict[str, Any]:
    """Return rows, report and manifest of an output, but for how long it took and what was read for it."""
    report = json.loads((out / "report.json").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "accepted": _rows(out / "accepted"),
        "rejects": _rows(out / "rejects"),
        "columns": {
            str(file.relative_to(out)): _columns(file) for file in (out / "rejects").rglob("*.parquet")
        },
        "listed": {file.name: file.read_text() for file in out.rglob("*.files.json")},
        "report": {name: value for name, value in report.items() if name not in ("seconds", "days")},
        "manifest": {name: manifest.get(name) for name in ("logs", "rows", "text", "snapshots")},
    }


def _rows(folder: Path) -> dict[str, list[str]]:
    """Return the rows by file, accepted ones by day, as text and sorted; what is absent reads as null."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        within = file.relative_to(folder)
        key = within.parent if folder.name == "accepted" and "day=" in str(within) else within
        for row in pq.read_table(file, partitioning=None).to_pylist():
            known = {name: value for name, value in row.items() if value is not None}
            found.setdefault(str(key), []).append(str(known))
    return {key: sorted(rows) for key, rows in found.items()}


def _columns(file: Path) -> list[tuple[str, str]]:
    return [(column.name, str(column.type)) for column in pq.read_schema(file)]
