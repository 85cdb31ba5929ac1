"""Users and items that a mining leaves out, exactly as if the logs had never held them (`--without`).

Taking rows out of samples would not be exact: a removed positive makes room under a cap, a removed click
makes a negative of a pair that others were shown, a removed search changes who counts as a later search. So
their rows are left out where the logs are read, before anything is counted; scores come from the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from crops.engine.backend import Backend, DuckDBBackend
from crops.errors import CropsError
from crops.ids import numbers_of, plain_number, read_salt, user_number
from crops.logs import Logs

_KINDS = ("users", "items")
_READ = {"log_impressions": "search_impressions", "log_feed": "feed_events", "log_items": "items"}


@dataclass(frozen=True)
class Without:
    """Ids whose rows are left out."""

    users: frozenset[int] = field(default=frozenset())
    items: frozenset[int] = field(default=frozenset())

    def __bool__(self) -> bool:
        return bool(self.users or self.items)

    def digest(self) -> str:
        """Return a hash of the ids; empty where there is none."""
        return (
            hashlib.sha256(repr((sorted(self.users), sorted(self.items))).encode()).hexdigest()
            if self
            else ""
        )


def read_without(files: Iterable[Path], salt: Path | None = None) -> Without:
    """Return the ids of lists with one id a line, each named users*.txt or items*.txt.

    Items are named as their source does, and so are users where the salt of their import is given; without
    it a user is the number in the logs. A whole number may also be one of the logs.

    Raises:
        CropsError: a file is missing or has another name, a user is no number and there is no salt, or there
            is no file `salt`.
    """
    if salt is not None and not salt.exists():
        raise CropsError(f"--salt {salt}: there is no such file; name the salt that `crops import` was given")
    key = None if salt is None else read_salt(salt)[0]
    found: dict[str, set[int]] = {kind: set() for kind in _KINDS}
    for path in files:
        kind = next((kind for kind in _KINDS if path.name.startswith(kind)), None)
        if kind is None:
            raise CropsError(f"{path}: users or items? Name the list users.txt or items.txt")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CropsError(f"{path}: cannot read the ids to leave out: {error}") from error
        for number, line in enumerate(lines, 1):
            if text := line.strip():
                found[kind] |= _users(path, number, text, key) if kind == "users" else set(numbers_of(text))
    return Without(frozenset(found["users"]), frozenset(found["items"]))


def _users(path: Path, number: int, text: str, salt: bytes | None) -> set[int]:
    plain = plain_number(text)
    if salt is not None:
        return {user_number(text, salt), *([] if plain is None else [plain])}
    if plain is None:
        raise CropsError(
            f"{path}, line {number}: '{text}' is no number of a user; for the source's own ids name the salt "
            "of their import with --salt"
        )
    return {plain}


def read_logs(backend: Backend, logs: Logs, days: Sequence[str] | None, without: Without | None) -> None:
    """Make `log_impressions`, `log_feed` and `log_items`: the rows of the days but those left out."""
    if without is not None:
        _load_ids(backend, without)
    for name, table in _READ.items():
        _read(backend, name, logs, table, days, without)


def read_catalogues(backend: Backend, catalogues: Mapping[str, Logs], without: Without | None) -> None:
    """Name the catalogue of each of some logs: all rows but those left out."""
    if without is not None:
        _load_ids(backend, without)
    for name, logs in catalogues.items():
        _read(backend, name, logs, "items", None, without)


def _read(
    backend: Backend,
    name: str,
    logs: Logs,
    table: str,
    days: Sequence[str] | None,
    without: Without | None,
) -> None:
    on = days if logs.tables[table].table.partitioned else None
    if without is None:
        backend.read_logs(name, logs, table, on)
        return
    backend.read_logs(f"all_{name}", logs, table, on)
    users = "" if table == "items" else f"and not exists ({_ids('users')})"
    backend.view(name, f"select l.* from all_{name} l where not exists ({_ids('items')}) {users}")


def count_left_out(backend: Backend) -> dict[str, int]:
    """Return how many rows `read_logs` left out, by table."""
    return {table: backend.count(f"all_{name}") - backend.count(name) for name, table in _READ.items()}


def held(logs: Logs, day: str, without: Without, memory: str) -> Without:
    """Return those of the ids that the logs of a day, or the catalogue, hold.

    Args:
        logs: accepted logs that hold the day.
        day: YYYY-MM-DD.
        without: the ids.
        memory: limit of the search, e.g. "2GB".
    """
    with DuckDBBackend(memory) as backend:
        _load_ids(backend, without)
        for name, table in _READ.items():
            backend.read_logs(name, logs, table, [day] if logs.tables[table].table.partitioned else None)
        found = {}
        for kind, tables in (("users", ("log_impressions", "log_feed")), ("items", tuple(_READ))):
            rows = " union all ".join(f"select l.{kind[:-1]}_id as id from {name} l" for name in tables)
            known = backend.rows(
                f"select w.id from without_{kind} w where w.id in (select id from ({rows}) r)"
            )
            found[kind] = frozenset(row["id"] for row in known)
        return Without(**found)


def _load_ids(backend: Backend, without: Without) -> None:
    schema = pa.schema([("id", pa.int64())])
    for kind in _KINDS:
        ids = pa.array(sorted(getattr(without, kind)), pa.int64())
        backend.load(f"without_{kind}", schema, [pa.RecordBatch.from_arrays([ids], schema=schema)])


def _ids(kind: str) -> str:
    return f"select 1 from without_{kind} w where w.id = l.{kind[:-1]}_id"
