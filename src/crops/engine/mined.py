"""A mined folder: what it holds, and reading it back with the logs it came from."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crops.config import EngineConfig
from crops.engine.backend import SQL_TYPES, Backend
from crops.errors import CropsError
from crops.logs import Logs, is_uri, open_logs
from crops.outputs import MANIFEST, RESOLVED_CONFIG, read_manifest, recorded
from crops.schema import ARROW_TYPES, EVIDENCE, ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS, Table

REPORT = "report.json"
WINDOW = "window"
"""Folder of the merged days of a daily build, beside theirs."""
BESIDE = "days_beside"
"""Where the manifest of a day of a daily build notes the days beside it that it sees, with logs and files."""
BUILD = "build"
"""Where it notes an id that no other mining of the day has."""
CATALOGUE = "catalogue"
"""Where it notes the version of the catalogue that was read; the window's notes that of each day."""
TABLES = (SAMPLES, QUERIES, EVIDENCE, ITEMS, SYNTHETIC_ITEMS)
"""Each a Parquet file of its name, or a folder of them."""


def columns_sql(table: Table, renamed: Mapping[str, str] | None = None) -> str:
    """Return the columns of a table, cast to its types, read from the alias `r`, some under other names."""
    types = {column.name: SQL_TYPES[ARROW_TYPES[column.type]] for column in table.columns}
    return ", ".join(
        f"cast(r.{(renamed or {}).get(name, name)} as {type_}) as {name}" for name, type_ in types.items()
    )


@dataclass(frozen=True)
class Mined:
    """A mined folder: a single mining, a day or the window of a daily build."""

    folder: Path
    config: EngineConfig
    report: dict[str, Any]
    logs: dict[str, list[str]]
    """Days by the logs folder they were mined from."""

    @property
    def by_event(self) -> bool:
        """Whether a group is one query event, and `query_id` a search_id."""
        return self.config.group_by == "event"

    def open(self, backend: Backend) -> None:
        """Name the tables of the folder."""
        for table in TABLES:
            backend.read_parquet(table.name, [self.folder / f"{table.name}.parquet"], table.arrow())

    def open_logs(self, logs: Path | None) -> list[tuple[Logs, list[str]]]:
        """Return the logs with their days.

        Args:
            logs: where they are now; where they were at the mining when None.

        Raises:
            CropsError: they are not there.
        """
        found = []
        for path, days in [(str(logs), self.report["days"])] if logs else self.logs.items():
            if not (is_uri(path) or Path(path).is_dir()):
                raise CropsError(f"{path}: the logs of {self.folder} are not there any more; give --logs")
            found.append((open_logs(path), days))
        return found


def read_mined(out: Path) -> Mined:
    """Return what is in the folder of a mining; of a daily build, its window.

    Raises:
        CropsError: `out` is no mining, or one of an older version.
    """
    folder = mined_folder(out)
    manifest = read_manifest(folder, "mine")
    run = tomllib.loads((folder / RESOLVED_CONFIG).read_text())
    report = json.loads((folder / REPORT).read_text())
    if "pairs" not in report:
        raise CropsError(f"{folder} was mined by an older version; mine it again")
    logs: dict[str, list[str]] = {}
    of_days = manifest.get("logs_of_days") or {day: manifest["logs"] for day in report["days"]}
    for day, path in of_days.items():
        now = path if is_uri(path) else str(recorded(path, folder, manifest.get("made_in")))
        logs.setdefault(now, []).append(day)
    return Mined(folder, EngineConfig.model_validate(run["engine"]), report, logs)


def mined_folder(out: Path) -> Path:
    """Return the folder that holds the tables: `out`, or its window if it is a daily build.

    Raises:
        CropsError: `out` is neither.
    """
    for folder in (out, out / WINDOW):
        if (folder / f"{SAMPLES.name}.parquet").exists():
            return folder
    raise CropsError(f"{out} is not an output of `crops mine` (no {SAMPLES.name}.parquet in it)")


def require_catalogue(folder: Path) -> None:
    """Refuse a day of a daily build where a whole catalogue is wanted: it holds the items that it names.

    Raises:
        CropsError: the folder is one.
    """
    manifest = json.loads((folder / MANIFEST).read_text()) if (folder / MANIFEST).exists() else {}
    if {BUILD, CATALOGUE} <= manifest.keys():
        raise CropsError(
            f"{folder} is a day of a daily build and holds only the items that it names; give its window, "
            f"{folder.parent / WINDOW}, or the logs: they hold the whole catalogue"
        )


def days_seen(folder: Path) -> list[str]:
    """Return the days that a mined folder must not be tested on: those mined, and those it sees beside."""
    days: list[str] = json.loads((folder / REPORT).read_text())["days"]
    manifest = read_manifest(folder, "mine") if (folder / MANIFEST).exists() else {}
    return sorted({*days, *manifest.get(BESIDE, {})})


def name_searchers(backend: Backend, logs: Iterable[tuple[Logs, list[str]]]) -> None:
    """Make `searchers(search_id, day, user_id, searched_at)` of the searches that evidence is credited to."""
    for number, (source, days) in enumerate(logs):
        backend.read_logs(f"log_{number}", source, "search_impressions", days)
        backend.append(
            "searchers",
            f"""
            select l.search_id, l.day, min(l.user_id) as user_id, min(l.searched_at) as searched_at
            from log_{number} l join (select distinct search_id, day from evidence) e
                on e.search_id = l.search_id and e.day = l.day
            group by l.search_id, l.day
            """,
        )
