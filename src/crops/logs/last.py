"""`crops check` again into the same folder: what is taken over from the last check, and what is read again.

What the rules say of a row depends on the row, on whether its item is known, and on the rows of its group:
those with its `search_id`, or of the feed its key, on whatever day they are. So a day is read again where

- its files are not those of the last check, by path, bytes and time (of a lake, by what it says of them);
- an item that it holds has become known since, or is known no longer;
- it shares a group with such a day: with the rows of now, which key columns of the other days tell, or with
  those of the last check, where the group was suspect (its rows repeat or contradict each other).

Of all other days every row would be judged alike: they are taken over. Those that share a suspect group
with a day that is read are read beside it. Types and rules follow from the columns of all files of a table:
it is read whole where these have changed, and a day of each layout is read beside those that are read.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from crops.database import literal
from crops.logs.files import TableFiles
from crops.logs.lake import digest
from crops.logs.rows import RowEngine
from crops.logs.rules import KNOWN_ITEMS, WHOLE, Days, Split, Taken, rejected_columns
from crops.logs.tables import Logs
from crops.outputs import console, versions
from crops.schema import ITEMS, Table

FOLDER = "last"
"""In the output: what the next check needs of this one."""
_STATE = "state.json"
_CHANGED = "changed_items"
"""The table of items that have become known since the last check, or are known no longer."""


class Last:
    """The last check into a folder, and what this one notes for the next."""

    def __init__(self, logs: Logs, engine: str, out: Path, staging: Path) -> None:
        """Read what the last check noted, and say why nothing of it can be taken over.

        Args:
            logs: what is checked now.
            engine: what the rules run in, with its version.
            out: the output of the last check, which need not be there.
            staging: becomes `out`.
        """
        self._days = {name: _days(files) for name, files in logs.tables.items() if files.files}
        self._made_by = {"logs": str(logs.path), "engine": engine, **_code()}
        self._out, self._staging = out, staging
        self._tables: dict[str, Any] = _read(out, self._made_by)
        self._noted: dict[str, Any] = {}
        self._new_items = False

    @property
    def key(self) -> str:
        """Return what changes with what can be taken over."""
        return digest(iter([(name, json.dumps(table)) for name, table in self._tables.items()]))

    def taken(self, db: RowEngine, files: TableFiles) -> Taken:
        """Return which days of a table are taken over, and what is read for the others."""
        table, now = files.table, self._days[files.table.name]
        last = self._tables.get(table.name)
        if last is None:
            return Taken(files, frozenset(now))
        if last["columns"] != _columns(files):
            console.print(
                f"[yellow]{table.name} is read whole:[/yellow] its files have other columns than before"
            )
            return Taken(files, frozenset(now))
        same = {day for day in now if last["days"].get(day) == now[day]}
        changed, gone = now.keys() - same, last["days"].keys() - same
        if self._new_items and not files.partitioned:
            changed |= same
        elif self._new_items and same:
            changed |= _holding(db, files, same, "item_id", f"select item_id as wanted from {_CHANGED}")
        read = changed | _linked(last, gone | changed) & same
        if changed and (rest := same - read):
            group, known = _group(db, table)
            of_changed = db.relation(_on(files, changed))
            wanted = f"select distinct {group} as wanted from {of_changed} r where {known}"
            read |= _holding(db, files, rest, group, wanted)
        beside = _linked(last, read) & same - read
        beside |= _other_layouts(files, read | beside) if read else set()
        kept = same - read
        rejected = ""
        if kept and last["rejected"]:
            rejected = f"last_rejected_{table.name}"
            db.kept(f"all_{rejected}", self._out / FOLDER / _rejected(table))
            where = f" where _day in ({', '.join(map(literal, sorted(kept)))})" if files.partitioned else ""
            db.view(rejected, f"select * from all_{rejected}{where}")
        split = Split(
            {},
            _of_days(last["merged"], files, kept),
            {column: _of_days(days, files, kept) for column, days in last["spaced"].items()},
        )
        return Taken(
            _on(files, read | beside),
            frozenset(read),
            frozenset(kept),
            frozenset(beside),
            self._out / "accepted",
            rejected,
            split,
        )

    def compare_items(self, db: RowEngine, taken: Taken) -> None:
        """Find the items that have become known since the last check, or are known no longer."""
        db.keep(f"select known_id from {KNOWN_ITEMS} order by known_id", self._staging / FOLDER / KNOWN_ITEMS)
        if taken.kept or ITEMS.name not in self._tables:
            return
        db.kept("last_items", self._out / FOLDER / KNOWN_ITEMS)
        db.table(
            _CHANGED,
            f"select coalesce(n.known_id, l.known_id) as item_id from {KNOWN_ITEMS} n full join last_items l"
            " on n.known_id = l.known_id where n.known_id is null or l.known_id is null",
        )
        self._new_items = db.count(_CHANGED) > 0

    def note(self, db: RowEngine, files: TableFiles, taken: Taken, found: Split) -> None:
        """Keep for the next check what this one found of a table."""
        table = files.table
        rejected = sum(found.rejected.values()) > 0
        if rejected:
            columns = ", ".join(rejected_columns(files))
            folder = self._staging / FOLDER / _rejected(table)
            db.keep(f"select {columns} from rejected_{table.name} order by _file, _row", folder)
        linked = {
            (one, other)
            for one, other in self._tables.get(table.name, {}).get("linked", ())
            if {one, other} <= taken.kept
        }
        if files.partitioned and taken.read:
            linked |= _links(db, table, taken.read)
        self._noted[table.name] = {
            "columns": _columns(files),
            "days": self._days[table.name],
            "linked": sorted(linked),
            "rejected": rejected,
            "merged": _to_json(found.merged),
            "spaced": {column: _to_json(days) for column, days in found.spaced.items()},
        }

    def write(self) -> None:
        """Write what was noted, when all else is written."""
        state = {"made_by": self._made_by, "tables": self._noted, "files": _stamps(self._staging)}
        folder = self._staging / FOLDER
        folder.mkdir(exist_ok=True)  # logs of searches alone have no table here
        (folder / _STATE).write_text(json.dumps({"digest": _digest(state), **state}) + "\n")


def _read(out: Path, made_by: Mapping[str, str]) -> dict[str, Any]:
    """Return what the last check noted of each table; nothing where it cannot be relied on."""
    file = out / FOLDER / _STATE
    if not file.exists():
        return {}
    why = f"{out} was changed since it was written"
    try:
        state = json.loads(file.read_text())
        if state.pop("digest") == _digest(state) and state["files"] == _stamps(out):
            tables: dict[str, Any] = state["tables"]
            was = state["made_by"]
            others = [name for name in made_by if made_by[name] != was.get(name)]
            if not others:
                return tables
            why = f"the last check into {out} had other {', '.join(others)}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    console.print(f"[yellow]all days are read:[/yellow] {escape(why)}", soft_wrap=True)
    return {}


def _digest(state: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _stamps(out: Path) -> dict[str, str]:
    """Return bytes and time of each file of an output that the next check may rely on, by its path there."""
    return {
        str(file.relative_to(out)): _stamp(file)
        for folder in ("accepted", FOLDER)
        for file in sorted((out / folder).rglob("*"))
        if file.is_file() and file.name != _STATE
    }


def _stamp(file: Path) -> str:
    return f"{(found := file.stat()).st_size} {found.st_mtime_ns}"


def _code() -> dict[str, str]:
    """Return the versions and a hash of the code that decide what a check writes."""
    root = Path(__file__).parents[1]
    code = digest((str(file.relative_to(root)), file.read_text()) for file in root.rglob("*.py"))
    found = {name: versions()[name] for name in ("duckdb", "pyarrow")}
    return {"code of crops": code, **found, "Python": platform.python_version()}


def _days(files: TableFiles) -> dict[str, str]:
    """Return a hash of the files of each day."""
    found: dict[str, list[tuple[str, str]]] = {}
    stamps = files.stamps or [_stamp(Path(file)) for file in files.files]
    for file, day, stamp in zip(files.files, files.days, stamps, strict=True):
        found.setdefault(day or WHOLE, []).append((str(file), stamp))
    return {day: digest(iter(rows)) for day, rows in found.items()}


def _columns(files: TableFiles) -> str:
    """Return a hash of what types, rules and the columns of rejects follow from."""
    facts = repr((files.extra, files.partitioned, files.renamed, bool(files.source)))
    return digest(iter([("", facts), *(("", repr(one)) for one in {_layout(one) for one in files.footers})]))


def _layout(footer: Any) -> tuple[tuple[str, str], ...]:  # noqa: ANN401 (a schema of Arrow)
    return tuple((column.name, str(column.type)) for column in footer)


def _other_layouts(files: TableFiles, days: Collection[str]) -> set[str]:
    """Return days that hold, with these, a file of each layout of the table."""
    found: set[str] = set()
    seen = {_layout(footer) for footer in _on(files, days).footers}
    for day, footer in zip(files.days, files.footers, strict=True):
        if _layout(footer) not in seen:
            found.add(day or WHOLE)
            seen |= {_layout(one) for one in _on(files, found).footers}
    return found


def _on(files: TableFiles, days: Collection[str]) -> TableFiles:
    """Return the files of some days; columns that the contract does not know keep their numbers."""
    if not files.partitioned:
        return files if days else replace(files, files=(), days=(), footers=(), counts=(), stamps=())
    return replace(files.on(days), extra=files.extra)


def _linked(last: Mapping[str, Any], days: Collection[str]) -> set[str]:
    """Return the days that shared a suspect group with one of these."""
    return {other for one, other in last["linked"] if one in days}


def _group(db: RowEngine, table: Table) -> tuple[str, str]:
    """Return the SQL of what the rows of a group share, and of whether a row is in one."""
    key = (table.agreement.key,) if table.agreement else table.key
    types = {column.name: column.sql for column in table.columns}
    # Spark hashes a number by its width, and days may have others.
    hashed = ", ".join(f"cast({one} as {types[one]})" for one in key)
    group = key[0] if table.agreement else f"{db.hash}({hashed})"
    return group, " and ".join(f"{column} is not null" for column in key)


def _holding(db: RowEngine, files: TableFiles, days: Collection[str], value: str, wanted: str) -> set[str]:
    """Return those of the days that hold a row whose value is in the column `wanted` of a query."""
    rows = db.relation(_on(files, days))
    found = db.rows(
        f"select distinct _day as on_day from {rows} r semi join ({wanted}) w on {value} = wanted"
    )
    return {row["on_day"] for row in found}


def _links(db: RowEngine, table: Table, days: Collection[str]) -> set[tuple[str, str]]:
    """Return which days share a suspect group with one of these, both ways."""
    group, known = _group(db, table)
    held = f"(select distinct {group} as held, _day as on_day from judged_{table.name} where {known})"
    rows = db.rows(
        f"select distinct a.on_day as one, b.on_day as other from {held} a join {held} b on a.held = b.held"
        f" where a.on_day <> b.on_day and a.on_day in ({', '.join(map(literal, sorted(days)))})"
    )
    found = {(row["one"], row["other"]) for row in rows}
    return found | {(other, one) for one, other in found}


def _rejected(table: Table) -> str:
    return f"rejected_{table.name}"


def _of_days(days: Mapping[str, int], files: TableFiles, kept: Collection[str]) -> Days:
    """Return counts that were noted, of the days that are taken over."""
    return {
        day or None: rows for day, rows in days.items() if kept and (not files.partitioned or day in kept)
    }


def _to_json(days: Days) -> dict[str, int]:
    return {day or "": rows for day, rows in days.items()}
