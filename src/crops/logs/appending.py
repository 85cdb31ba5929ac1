"""`crops import --append`: the days of an import join those of the imports before it, in one logs folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crops.database import Connection, parquet, quoted, write_parquet
from crops.errors import CropsError
from crops.logs.days import spans
from crops.outputs import MANIFEST, link_file, read_manifest
from crops.schema import ITEMS, LOG_TABLES, SEARCHES, Table

_ENTRY = ("created_at", "source", "rows", "malformed_lines")
"""What is remembered of an earlier import."""


def former_import(out: Path, mark: str, *, append: bool) -> dict[str, Any]:
    """Return the manifest of the import to append to, empty where there is none.

    Args:
        out: the logs folder.
        mark: of the salt (`crops.ids.salt_mark`) with which users are numbered now.
        append: whether to append; otherwise the folder will be replaced.

    Raises:
        CropsError: its users were numbered with another salt, or its days would be lost.
    """
    if not (out / MANIFEST).exists():
        return {}
    former = read_manifest(out, "import")
    if not append:
        if former.get("earlier"):
            raise CropsError(
                f"{out} holds the days of {1 + len(former['earlier'])} imports, which would be lost; add to "
                "them with --append, or name another folder"
            )
        return {}
    if "salt" not in former:
        raise CropsError(
            f"{out} was not imported by this release, so its ids are other numbers; import its days again"
        )
    if former["salt"] != mark:
        raise CropsError(
            f"{out}: its users were numbered with another salt; name that one with --salt, or import all days"
            " again into another folder"
        )
    return former


def earlier_imports(former: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a manifest remembers of the imports before, the oldest first."""
    return [*former.get("earlier", ()), {name: former[name] for name in _ENTRY}] if former else []


def join_former(db: Connection, former: Path, fresh: Path, *, replace_days: bool) -> list[str]:
    """Put the tables and rejects of an earlier import beside those of a new one, and merge the items.

    A day that both have is refused unless all rows of the one are before all rows of the other, as where the
    days of the source are not those of UTC. Of an item that both have the rows with the higher counters stay,
    as in `crops check`, else the new ones.

    Args:
        db: a connection.
        former: the logs folder as it is; its files are linked and not changed.
        fresh: the logs folder of the new import alone; it becomes the whole.
        replace_days: take the new rows of a day in place of the earlier ones; refused where more than a tenth
            of these are of hours that the new ones do not cover.

    Returns:
        What was done, in sentences.

    Raises:
        CropsError: a day is there already, rows would be lost, or two ids of items have one number.
    """
    said = []
    for table in (one for one in (*LOG_TABLES, SEARCHES) if one.partitioned):
        said += _join_days(db, table, former, fresh, replace_days=replace_days)
    catalogues = [(folder / f"{ITEMS.name}.parquet").exists() for folder in (former, fresh)]
    if len(set(catalogues)) > 1:
        raise CropsError(f"of {former} and this import only one says what the results were; keep them apart")
    if all(catalogues):
        said.append(_merge_items(db, former, fresh))
    for file in sorted((former / "rejects").glob("*.parquet")):
        stem = file.stem.partition("-")[0]
        new = fresh / "rejects" / f"{stem}.parquet"
        if new.exists():
            new.rename(new.with_name(f"{stem}-{1 + len(list(file.parent.glob(f'{stem}*.parquet')))}.parquet"))
        link_file(file, fresh / "rejects" / file.name)
    return said


def _join_days(db: Connection, table: Table, former: Path, fresh: Path, *, replace_days: bool) -> list[str]:
    there, replaced, joined = [], [], []
    for folder in sorted((former / table.name).glob("day=*")):
        files, target, day = (
            sorted(folder.glob("*.parquet")),
            fresh / table.name / folder.name,
            folder.name[4:],
        )
        if target.exists():
            first, last, new = _span(db, table, target)
            ((old, within),) = db.execute(
                f"select count(*), count(*) filter (where {table.time} between {first} and {last})"
                f" from {parquet(*files)}"
            ).fetchall()
            if replace_days:
                _demand_same_hours(former, table, day, old, within)
                replaced.append(f"{day} ({new:,} rows in place of {old:,})")
                continue
            earliest, latest, _ = _span(db, table, folder)
            if earliest <= last and first <= latest:
                there.append(day)
                continue
            joined.append(f"{day} ({new:,} rows beside {old:,})")
            (target / "part-0.parquet").rename(target / f"part-{len(files)}.parquet")
        for file in files:
            link_file(file, target / file.name)
    if there:
        raise CropsError(
            f"{former} holds {table.name} of {spans(there)} already; import other days, or put the new rows "
            "in their place with --replace-days"
        )
    done = {"replaced": replaced, "added to days of earlier imports": joined}
    return [f"{table.name}: {what} {', '.join(days)}" for what, days in done.items() if days]


def _demand_same_hours(former: Path, table: Table, day: str, old: int, within: int) -> None:
    """Refuse to replace a day where many of its rows are of hours that the new ones do not cover."""
    if old - within > old / 10:
        raise CropsError(
            f"{former}: {old - within:,} of {old:,} rows of {table.name} on {day} (UTC) are before or after"
            " all new ones, and would be lost; import the dumps of whole days at once, or all of them again"
            " into another folder"
        )


def _span(db: Connection, table: Table, folder: Path) -> tuple[int, int, int]:
    """Return the first time, the last time and the number of rows of a day."""
    query = f"select min({table.time}), max({table.time}), count(*) from {parquet(*folder.glob('*.parquet'))}"
    (found,) = db.execute(query).fetchall()
    return found[0], found[1], found[2]


def _merge_items(db: Connection, former: Path, fresh: Path) -> str:
    file = fresh / f"{ITEMS.name}.parquet"
    db.execute(
        f"create temp table both_items as select *, 1 as _new from {parquet(file)}"
        f" union all by name select *, 0 as _new from {parquet(former / file.name)}"
    )
    found = {name for (name,) in db.execute("select column_name from (describe both_items)").fetchall()}
    columns = ", ".join(quoted(name) for name in ITEMS.names() if name in found)
    order = "".join(f"{name} desc nulls last, " for name in ITEMS.latest_by if name in found)
    if "source_id" in found:
        for number, first, second in db.execute(
            "select item_id, min(coalesce(source_id, '')), max(coalesce(source_id, '')) from both_items"
            " group by item_id having min(coalesce(source_id, '')) <> max(coalesce(source_id, '')) limit 1"
        ).fetchall():
            raise CropsError(
                f"item_id: {first or str(number)!r} and {second!r} get one number, {number}; write one of "
                "them otherwise in the source"
            )
    newest = f"first_value(_new) over (partition by item_id order by {order}_new desc)"
    db.execute(f"create temp table kept_items as select *, {newest} as _newest from both_items")
    ((new, changed, older),) = db.execute("""
        select count(*) filter (where first = 1),
            count(*) filter (where first = 0 and last = 1 and newest = 1),
            count(*) filter (where first = 0 and last = 1 and newest = 0)
        from (select min(_new) as first, max(_new) as last, min(_newest) as newest
              from kept_items group by item_id)""").fetchall()
    merged = file.with_suffix(".merged")
    write_parquet(db, f"select {columns} from kept_items where _new = _newest order by all", merged)
    merged.replace(file)
    counts = f"{new:,} new, {changed:,} taken from this import"
    return f"items: {counts}, {older:,} kept as they were, whose counters are higher"
