"""Opens a logs folder: its tables, their files and their days."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crops.errors import CropsError, nearest_path
from crops.logs.files import FileFault, TableFiles, describe, inspect, inspect_source
from crops.logs.lake import is_uri, table_uris
from crops.logs.sql import select_sql, table_days
from crops.outputs import MANIFEST, check_local
from crops.schema import ITEMS, LOG_TABLES, SEARCHES, Table

PLAIN = "plain"
"""Texts are words."""


@dataclass(frozen=True)
class Logs:
    """An opened logs folder whose files have the columns and types of the contract."""

    path: Path | str
    """Absolute, as are the paths of the files; or the URI as it was given."""
    tables: Mapping[str, TableFiles]
    """By table name; an absent feed has no files."""
    search_days: tuple[str, ...]
    """Days with search impressions, YYYY-MM-DD, sorted."""
    feed_days: tuple[str, ...]
    """Days with feed events, YYYY-MM-DD, sorted; empty without a feed."""

    def absent(self) -> dict[str, tuple[str, ...]]:
        """Return the optional columns that no file has, by table, leaving out absent tables."""
        return {name: files.absent() for name, files in self.tables.items() if files.files}

    def snapshots(self) -> dict[str, dict[str, str]]:
        """Return what was read of each table that is named by a URI: its source, and a hash of its files."""
        return {
            name: {"source": files.source, "files": files.version()}
            for name, files in self.tables.items()
            if files.source and files.files
        }

    def inputs(self, day: str) -> dict[str, int | str]:
        """Return what changes with each file that holds nothing but the day's rows, by its name."""
        found: dict[str, int | str] = {}
        for files in self.tables.values():
            if files.table.partitioned and files.partitioned:
                found |= self._stamps(files.on([day]))
        return found

    def catalogue(self) -> dict[str, int | str]:
        """Return the version of the catalogue: what changes with each of its files, by name."""
        return self._stamps(self.tables[ITEMS.name])

    def _stamps(self, files: TableFiles) -> dict[str, int | str]:
        found: dict[str, int | str] = {}
        for file, stamp in zip(files.files, files.stamps or [""] * len(files.files), strict=True):
            inside = isinstance(file, Path) and file.is_relative_to(self.path)
            name = os.path.relpath(file, self.path) if inside else str(file)
            found[name] = file.stat().st_size if isinstance(file, Path) and inside else stamp
        return found

    def sql(self, table: str, days: Collection[str] | None = None) -> str:
        """Return a DuckDB SELECT of the table's columns in order, partitioned ones with `day` VARCHAR.

        Optional columns that are absent read as typed NULLs and an absent feed reads as no rows. The SELECT
        fails on values that do not fit their type, such as a play time of NaN: `crops check` takes them out.

        Args:
            table: name of a table of the logs.
            days: the days wanted, YYYY-MM-DD; all when None. Without meaning for `items`.

        Raises:
            CropsError: no search impressions on any of the days.
        """
        if table == "search_impressions" and days is not None and not set(days) & set(self.search_days):
            raise CropsError(
                f"{self.path}: no search_impressions on {', '.join(sorted(days)) or 'an empty list of days'};"
                f" the days there are: {', '.join(self.search_days)}"
            )
        return select_sql(self.tables[table], days)


def open_logs(path: str | Path) -> Logs:
    """Open a logs folder, or logs by URI (`crops.logs.lake`), looking at the footers of its Parquet files.

    Raises:
        CropsError: the folder is missing, or any of its files is missing, unreadable, or has a missing or
            wrongly typed column; all such faults are named together, with remedies. Or a store, a catalogue
            or a snapshot of a URI cannot be read.
    """
    if holds_searches_only(path):
        raise CropsError(
            f"{path} holds searches and nothing of their results: crops check counts what was reworded; for"
            " the rest, import items and which of them each search showed"
        )
    return _opened(path, LOG_TABLES)


def open_searches(path: str | Path) -> Logs:
    """Open a folder of searches without results, as `open_logs` does."""
    return _opened(path, (SEARCHES,))


def holds_searches_only(path: str | Path) -> bool:
    """Return whether a logs folder holds searches and nothing of their results."""
    if is_uri(path):
        known = table_uris(str(path)) if str(path).endswith(".toml") else {}
        return SEARCHES.name in known and not known.keys() & {"items", "search_impressions"}
    names = {file.stem for file in Path(path).iterdir()} if Path(path).is_dir() else set()
    return SEARCHES.name in names and not names & {"items", "search_impressions"}


def _opened(logs: str | Path, wanted: Sequence[Table]) -> Logs:
    tables: dict[str, TableFiles] = {}
    faults: list[FileFault] = []
    if not is_uri(logs):
        check_local(Path(logs))
    path = str(logs) if is_uri(logs) else Path(logs).absolute()
    uris = table_uris(path) if isinstance(path, str) else {}
    if isinstance(path, Path) and not path.is_dir():
        wrong = "is not a folder" if path.exists() else "does not exist"
        raise CropsError(f"{path} {wrong}; name the folder that holds items.parquet{nearest_path(path)}")
    for table in wanted:
        if isinstance(path, str):
            tables[table.name], found = inspect_source(path, uris.get(table.name), table)
        else:
            tables[table.name], found = inspect(path, table)
        faults += found
    if faults:
        inside = (name for name in ("logs", "accepted") if isinstance(path, Path) and (path / name).is_dir())
        hints = [f"did you mean {path}/{name}?" for name in inside][:1]
        raise CropsError("\n  ".join([f"{path}: the logs cannot be read:", *describe(faults), *hints]))
    days = {name: table_days(files) for name, files in tables.items() if files.table.partitioned}
    searched = days.get("search_impressions", days.get(SEARCHES.name, ()))
    return Logs(path, tables, searched, days.get("feed_events", ()))


def text_kind(logs: str | Path) -> str:
    """Return what the texts of a logs folder are, as its import or check noted: `plain` when nobody did."""
    if is_uri(logs):
        return PLAIN
    logs = Path(logs)
    for folder in (logs, logs.parent) if logs.name == "accepted" else (logs,):
        if (folder / MANIFEST).exists():
            return str(json.loads((folder / MANIFEST).read_text()).get("text", PLAIN))
    return PLAIN
