"""The SQL that a mapping stands for: rows that are read, chosen, joined and taken apart, and their values.

Formats that all have alike are mappings too: `crops import NAME` reads `maps/NAME.toml`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from crops.database import literal, quoted
from crops.errors import CropsError, nearest
from crops.logs.mapping import (
    FACTORS,
    ColumnMapping,
    Dataset,
    Importer,
    Kinds,
    MappedTable,
    MappingFile,
    Source,
    TableMapping,
    Value,
    duration,
    elements,
    flag,
    given,
    identifier,
    integer,
    integer_identifier,
    load_mapping,
    text,
    time,
    tokens,
)
from crops.logs.sources import LISTS, demand_fields, find_files, parquet_schema, read_sql, text_inside
from crops.schema import FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS, SEARCHES, STAGES, Column, Table

_IDS = ("user_id", "item_id", "search_id")
_KINDS = ("column", "columns", "value", "in", "found", "position", "row")
"""Where a value can come from."""
_UNSHOWN = f"({', '.join(literal(stage) for stage in STAGES if stage != 'exposed')})"


def own_tables(folder: Path, mapping: MappingFile, scratch: Path) -> Dataset:
    """Return the mapping of a team's own tables; without items and item_id, one of searches alone.

    Raises:
        CropsError: items are not mapped and search_impressions has an item_id, or it is not mapped, a file or
            column is missing, a column of the contract is unknown or lacks its unit.
    """
    searches = mapping.search_impressions
    if mapping.items is None and searches and "item_id" not in searches.columns:
        return Dataset(
            (mapped_table(SEARCHES, searches, folder, mapping, scratch),),
            text=mapping.text,
            notes=(*mapping.notes, "searches without results: crops check counts what was reworded"),
        )
    found = []
    for table in (ITEMS, SEARCH_IMPRESSIONS, FEED_EVENTS):
        if section := getattr(mapping, table.name):
            found.append(mapped_table(table, section, folder, mapping, scratch))
        elif table is not FEED_EVENTS:
            raise CropsError(f"the mapping has no [{table.name}]; name its files and columns")
    return Dataset(tuple(found), text=mapping.text, notes=mapping.notes)


MAPS = tuple(sorted(Path(__file__).with_name("maps").glob("*.toml")))
"""The formats whose mappings come with this package."""
OWN_TABLES = Importer("table", own_tables, mapping="needed")


def packaged(file: Path) -> Importer:
    """Return the importer of a format whose mapping comes with this package."""
    return Importer(file.stem, lambda source, _, scratch: own_tables(source, load_mapping(file), scratch))


def mapped_table(
    table: Table, section: TableMapping, folder: Path, mapping: MappingFile, scratch: Path
) -> MappedTable:
    """Return one table of the contract from its section.

    Raises:
        CropsError: as in `own_tables`.
    """
    plan = _planned(table, section, folder, mapping, scratch)
    setup = [_join_setup(plan, name) for name in section.join]
    rows = _rows(plan)
    reasons = ["malformed_json", "empty_list", "uneven_lists"]
    leftovers = list(_leftovers(plan))
    if leftovers:
        made = f"rows_{table.name}"
        setup.append(f"create table {made} as {rows}")
        keys = ", ".join(quoted(f"key {name}") for name in section.join)
        rows = " union all by name ".join(
            [f"select * exclude ({keys}) from {made}", *(select for _, select in leftovers)]
        )
        reasons += [reason for reason, _ in leftovers if reason]
    reasons += [f"{LISTS}{path}" for path in plan.paths]
    others = _others(plan)
    if section.distinct:
        every = f"every_{table.name}"  # read once, then counted and used
        setup.append(f"create table {every} as {rows}")
        rows = _distinct(plan, f"select * from {every}")
        repeated = " - ".join(f"(select count(*) from ({one}))" for one in (every, rows))
        others = f"select ({others or 'select 0'}) + {repeated}"
    columns = {one.name: _value(plan, one, rows) for one in table.columns if one.name in plan.how}
    if len(section.explode) > 1:  # whole lists, of rows that are rejected, say nothing of their elements
        columns = {name: _unread_elsewhere(value) for name, value in columns.items()}
    refused = {reason: f"_problem = {literal(reason)}" for reason in reasons}
    return MappedTable(table, rows, columns, refused, tuple(setup), others, _origins(plan))


def _origins(plan: _Plan) -> dict[str, tuple[tuple[Path, ...], str]]:
    """Return the columns that files must have, those of joins and conditions too."""
    section = plan.section
    wanted = [*plan.paths, *section.where]
    for name, join in section.join.items():
        wanted += [f"{name}.{path}" for path in (*join.on.values(), *join.where)]
    found = {}
    for path in dict.fromkeys(wanted):
        join_name = plan.join_of(path)
        source = section.join[join_name] if join_name else section
        inner = path.partition(".")[2] if join_name else path
        if path not in plan.optional:
            found[path] = (find_files(plan.folder, source.files), inner)
    return found


def _unread_elsewhere(value: Value) -> Value:
    unread = value.unread or f"{given(value.raw)} and {value.sql} is null" if value.raw else None
    return replace(value, unread=unread and f"_problem is null and ({unread})")


def _planned(table: Table, section: TableMapping, folder: Path, mapping: MappingFile, scratch: Path) -> _Plan:
    """Return what is to be read; refuse columns that are unknown, missing or at odds with the section."""
    # Searches without results are in the section of all.
    written = SEARCH_IMPRESSIONS.name if table is SEARCHES else table.name
    where = f"[{written}.columns]"
    known = {column.name: column for column in table.columns if not column.own_of}
    how = dict(section.columns)
    if table is SEARCH_IMPRESSIONS:
        how.setdefault("stage", ColumnMapping(value="exposed"))
    for name in how:
        if name not in known:
            raise CropsError(f"{where} {name} is no column of it.{nearest(name, known)}")
    for column in table.columns:
        if not column.optional and column.name not in how:
            several = '; it may be made of several: { columns = ["user", "session", "query"] }'
            hint = several if column.name == "search_id" else ""
            raise CropsError(f"{where} lacks {column.name}: {column.doc}{hint}")
    for name, one in how.items():
        if one.found is not None and one.found not in section.join:
            hint = nearest(one.found, section.join)
            raise CropsError(f"{where} {name}: there is no [{written}.join.{one.found}].{hint}")
        if one.position is not None and one.position not in section.explode:
            raise CropsError(f'{where} {name}: a position is one in a list: explode = "{one.position}"')
        if one.listed is not None and not ("item_id" in how and how["item_id"].column):
            raise CropsError(f"{where} {name}: `in` looks for item_id, which must be one column")
    return _Plan(table, section, how, folder, scratch, where, mapping.offset_minutes)


# Rows: columns are called by their paths and hold texts.


@dataclass(frozen=True)
class _Plan:
    table: Table
    section: TableMapping
    how: Mapping[str, ColumnMapping]
    folder: Path
    scratch: Path
    where: str
    """The section of its columns, in messages."""
    offset_minutes: int

    @property
    def optional(self) -> set[str]:
        """Paths that files may lack."""
        return {path for one in self.how.values() if one.optional for path in one.paths()}

    @property
    def paths(self) -> tuple[str, ...]:
        """What is read: of files of the table, `join.path` of a join, `list.path` of an element."""
        used = [path for one in self.how.values() for path in one.paths()]
        keys = [ours for join in self.section.join.values() for ours in join.on]
        return tuple(dict.fromkeys([*used, *keys, *self.section.explode]))

    @property
    def lists(self) -> tuple[str, ...]:
        """Lists of ids that are looked into."""
        return tuple(dict.fromkeys(one.listed for one in self.how.values() if one.listed))

    def list_of(self, path: str | None) -> str | None:
        """Return the list whose elements a path is about."""
        return next((one for one in self.section.explode if f"{path}.".startswith(f"{one}.")), None)

    def join_of(self, path: str) -> str | None:
        """Return the join that a path is about."""
        first, dot, _ = path.partition(".")
        return first if dot and first in self.section.join else None


def _rows(plan: _Plan) -> str:
    section = plan.section
    own = [path for path in plan.paths if not plan.join_of(path) and plan.list_of(path) in (None, path)]
    number = ", row_number() over () as _number" if any(one.row for one in plan.how.values()) else ""
    rows = _read(plan, section, own, number=number)
    late = [name for name, join in section.join.items() if any(map(plan.list_of, join.on))]
    for name in section.join:
        if name not in late:
            rows = _with_join(plan, rows, name)
    if plan.lists:
        ids = (
            f"{_ids(elements(quoted(one), section.separator))} as {quoted(f'in {one}')}" for one in plan.lists
        )
        rows = f"select *, {', '.join(ids)} from ({rows})"
    if section.explode:
        rows = _exploded(plan, rows)
    for name in late:
        rows = _with_join(plan, rows, name)
    return rows


def _read(plan: _Plan, source: Source, paths: Iterable[str], prefix: str = "", number: str = "") -> str:
    """Return the SELECT of columns of one table of the source, without the rows of another kind."""
    read = list(dict.fromkeys([*paths, *source.where]))
    nested = {path for path in read if prefix + path in (*plan.section.explode, *plan.lists)}
    files = find_files(plan.folder, source.files)
    if not prefix and files[0].suffix == ".parquet":
        fields = [path for path in plan.paths if plan.list_of(path) in read and path not in plan.optional]
        for file in files:
            demand_fields(file, parquet_schema(file), fields)
    absent = [path for path in read if prefix + path in plan.optional]
    rows = read_sql(files, {path: path for path in read}, plan.scratch, absent, nested, source.layout)
    fields = [quoted(path) if path in nested else f"{_said(source, path)} as {quoted(path)}" for path in read]
    rows = f"select {', '.join([*fields, '_problem', '_file', '_row'])}{number} from ({rows})"
    if not source.where:
        return rows
    return f"select * from ({rows}) where _problem is not null or ({_is_of(source.where)})"


def _said(source: Source, path: str) -> str:
    """Return the text of a column, NULL where it means nothing."""
    nulls = ", ".join(map(literal, ("", *source.null)))
    # The column stands here once: DuckDB puts its expression wherever it is named, also where it is long.
    return f"list_filter([trim({quoted(path)})], lambda said: not list_contains([{nulls}], said))[1]"


def _is_of(kinds: Kinds) -> str:
    """Return the predicate of rows that count."""
    return " and ".join(_is_one_of(quoted(path), values) for path, values in kinds.items())


def _is_one_of(raw: str, values: Iterable[bool | float | str]) -> str:
    """Return the predicate of texts that are one of the values: `7.0` is 7, `True` is `true`."""
    found = identifier(raw).sql
    words = {str(one).removesuffix(".0") for one in values if not isinstance(one, bool)}
    truths = {word.lower() for word in words} & {"true", "false"}
    parts = [f"{flag(raw).sql} = {one}" for one in values if isinstance(one, bool)]
    for text_, known in ((found, words), (f"lower({found})", truths)):
        if known:
            parts.append(f"{text_} in ({', '.join(map(literal, sorted(known)))})")
    return f"coalesce({' or '.join(parts)}, false)"


def _others(plan: _Plan) -> str:
    """Return the SQL that counts the rows of another kind; what a join reads of the same files is none."""
    section = plan.section
    if not section.where:
        return ""
    alike = [join.where for join in section.join.values() if join.files == section.files]
    kinds = [section.where, *alike]
    all_ = section.model_copy(update={"where": {}})
    rows = _read(plan, all_, [path for where in kinds for path in where])
    known = " or ".join(f"({_is_of(where)})" if where else "true" for where in kinds)
    return f"select count(*) from ({rows}) where _problem is null and not ({known})"


def _distinct(plan: _Plan, rows: str) -> str:
    """Return the rows with one per key of the table: the one that says most."""
    key = ", ".join(identifier(_raw(name, plan.how[name])).sql for name in plan.table.key)
    names = [quoted(path) for path in plan.paths]
    empty = " + ".join(f"cast({name} is null as INTEGER)" for name in names)
    turn = f"row_number() over (partition by {key} order by {empty}, {', '.join(names)}, _file, _row)"
    return f"select * from ({rows}) qualify _problem is not null or {turn} = 1"


def _key(paths: Iterable[str]) -> str:
    return " || chr(31) || ".join(identifier(quoted(path)).sql for path in paths)


def _join_table(plan: _Plan, name: str) -> str:
    return quoted(f"join_{plan.table.name}_{name}")


def _join_setup(plan: _Plan, name: str) -> str:
    """Return the statement that makes the table of a join: its columns, `_key` and `_turn` in rows of it."""
    join = plan.section.join[name]
    paths = [path.partition(".")[2] for path in plan.paths if plan.join_of(path) == name]
    paths = list(dict.fromkeys([*join.on.values(), *paths]))
    fields = ", ".join(f"{quoted(path)} as {quoted(f'{name}.{path}')}" for path in paths)
    problem = f"replace(_problem, {literal(LISTS)}, {literal(f'{LISTS}{name}.')}) as _problem"
    return f"""
        create table {_join_table(plan, name)} as
        select *, row_number() over (partition by _problem, _key order by _file, _row) as _turn
        from (select {_key(join.on.values())} as _key, {fields}, {problem}, _file, _row
            from ({_read(plan, join, paths, f"{name}.")}))"""


def _with_join(plan: _Plan, rows: str, name: str) -> str:
    key, join = quoted(f"key {name}"), _join_table(plan, name)
    return f"""
        select ours.*, theirs.* exclude (_key, _turn, _problem, _file, _row),
            theirs._key is not null as {quoted(f"found {name}")}
        from (select *, {_key(plan.section.join[name].on)} as {key} from ({rows})) ours
            left join (select * from {join} where _turn = 1 and _problem is null) theirs
            on theirs._key = ours.{key}"""


def _leftovers(plan: _Plan) -> Iterable[tuple[str, str]]:
    """Yield the rows of joins that are rejected with those of the table: their reason, if new, and SELECT.

    What cannot be read, once; rows that match none, unless the join only adds what a row can do without; and
    rows of one key behind the first, where there should be one.
    """
    read = [plan.section.files]
    required = [plan.how[one.name] for one in plan.table.columns if not one.nullable and one.name in plan.how]
    needed_joins = {plan.join_of(path) for one in required for path in one.paths()}
    for name, join in plan.section.join.items():
        table = _join_table(plan, name)
        select = f"select * exclude (_key, _turn, _problem), {{}} as _problem from {table} where {{}}"
        if join.files not in read:
            read.append(join.files)
            yield "", select.format("_problem", "_problem is not null")
        needed, found = name in needed_joins, any(one.found == name for one in plan.how.values())
        keys = f"select {quoted(f'key {name}')} from rows_{plan.table.name} where {quoted(f'found {name}')}"
        lost = f"_problem is null and (_key is null or _key not in ({keys}))"
        if needed or found:
            yield f"unmatched_{name}", select.format(literal(f"unmatched_{name}"), lost)
        if needed and not found:
            again = f"_turn > 1 and not ({lost}) and _problem is null"
            yield f"repeated_{name}", select.format(literal(f"repeated_{name}"), again)


def _ids(texts: str) -> str:
    return f"list_transform({texts}, lambda id: {identifier('id').sql})"


def _exploded(plan: _Plan, rows: str) -> str:
    """Return one row per element, with `_position`; ids that are looked for and were not shown come last.

    Lists in step that are there and differ in length stay whole, in one row.
    """
    item = plan.how["item_id"].column if "item_id" in plan.how else None
    first = plan.list_of(item) or plan.section.explode[0]
    lists = [first, *(one for one in plan.section.explode if one != first)]
    split = ", ".join(
        f"{elements(quoted(one), plan.section.separator)} as {quoted(f'all {one}')}" for one in lists
    )
    shown = quoted(f"all {first}")
    more = "[]"
    if item and plan.list_of(item) and plan.lists:
        field = item[len(first) + 1 :]
        known = _ids(f"list_transform({shown}, lambda e: {text_inside('e', field)})")
        wanted = f"list_distinct(flatten([{', '.join(quoted(f'in {one}') for one in plan.lists)}]))"
        one = "id"
        for part in reversed(field.split(".") if field else []):
            one = f"json_object({literal(part)}, {one})"
        absent = f"list_filter({wanted}, lambda id: not list_contains({known}, id))"
        more = f"list_transform({absent}, lambda id: cast({one} as VARCHAR))"
    rows = f"select *, {split} from ({rows})"
    differ = [f"{given(quoted(one))} and len({quoted(f'all {one}')}) <> len({shown})" for one in lists[1:]]
    rows = f"select *, coalesce({' or '.join(differ) or 'false'}, false) as _uneven from ({rows})"
    rows = f"select * replace (list_concat({shown}, {more}) as {shown}), len({shown}) as _shown from ({rows})"
    taken = ", ".join(quoted(name) for one in lists for name in (one, f"all {one}"))
    one_each = [f"case when len({shown}) = 0 then [null] else {shown} end"]
    one_each += [quoted(f"all {one}") for one in lists[1:]]
    if len(lists) > 1:
        one_each = [
            f"case when _uneven then [{quoted(one)}] else {each} end"
            for one, each in zip(lists, one_each, strict=True)
        ]
    parts = ", ".join(f"unnest({each}) as {quoted(one)}" for each, one in zip(one_each, lists, strict=True))
    rows = f"""
        select * exclude ({taken}, _uneven, _problem), {parts},
            generate_subscripts({one_each[0]}, 1) as _place,
            case when _problem is not null then _problem when _uneven then 'uneven_lists'
                when len({shown}) = 0 then 'empty_list' end as _problem
        from ({rows})"""
    inside = ", ".join(
        f"{text_inside(quoted(of), path[len(of) + 1 :])} as {quoted(path)}"
        for path in plan.paths
        if (of := plan.list_of(path)) and of != path
    )
    rows = f"select *{', ' * bool(inside)}{inside} from ({rows})"
    said = ", ".join(
        f"{_said(plan.section, path)} as {quoted(path)}" for path in plan.paths if plan.list_of(path)
    )
    position = "case when _place <= _shown and _problem is null then _place end as _position"
    return f"select * exclude (_place, _shown) replace ({said}), {position} from ({rows})"


# Values.


def _value(plan: _Plan, column: Column, rows: str) -> Value:
    """Return what a column becomes; a rank beside a row that was not shown is none, and counted as lost."""
    found = _plain_value(plan, column, rows)
    stage = plan.how.get("stage")
    if column.name != "rank" or stage is None or stage.value == "exposed":
        return found
    (of_stage,) = (one for one in plan.table.columns if one.name == "stage")
    unshown = f"{_plain_value(plan, of_stage, rows).sql} in {_UNSHOWN}"
    unread = f"{given(found.raw)} and {found.sql} is null" if found.raw else None
    return replace(found, sql=f"case when {unshown} then null else {found.sql} end", unread=unread)


def _plain_value(plan: _Plan, column: Column, rows: str) -> Value:
    how, where = plan.how[column.name], f"{plan.where} {column.name}"
    given = how.model_dump(include={"listed", *_KINDS}, exclude_defaults=True)
    if len(given) != 1:
        raise CropsError(f"{where}: say one of {', '.join(_KINDS)}")
    if how.value is not None:
        type_ = "VARCHAR" if column.name in _IDS else column.type
        return Value(f"cast({literal(str(how.value))} as {type_})")
    if how.found:
        return Value(f"coalesce({quoted(f'found {how.found}')}, false)")
    if how.listed:
        item = identifier(quoted(plan.how["item_id"].column or "")).sql
        return Value(f"coalesce(list_contains({quoted(f'in {how.listed}')}, {item}), false)")
    if how.position:
        return Value(f"cast(_position as {column.type})")
    if how.row:
        return Value("cast(_number as VARCHAR)", made="row")
    raw = _raw(column.name, how)
    if column.name.endswith(("_at", "_ms")):
        return _timed(where, column, how, raw, plan.offset_minutes)
    if column.name in _IDS:
        value = integer_identifier(raw) if how.integer else identifier(raw)
        return replace(value, made="columns") if how.columns else value
    if column.type == "BOOLEAN":
        return _equal(column, how, raw, rows) if how.equals else flag(raw)
    if column.type == "VARCHAR":
        found = _cut(how, raw)
        return Value(tokens(found).sql if how.tokens else text(found).sql, raw)
    if column.type == "DOUBLE":
        return Value(f"case when isfinite(try_cast({raw} as DOUBLE)) then try_cast({raw} as DOUBLE) end", raw)
    number, shift = integer(raw).sql, "0"
    if column.name == "rank" and how.base == "lowest":
        shift = f"1 - (select min(case when {number} >= 0 then {number} end) from ({rows}))"
    elif column.name == "rank":
        shift = str(1 - int(how.base))
    return Value(f"try_cast(cast({number} as HUGEINT) + {shift} as {column.type})", raw)


def _equal(column: Column, how: ColumnMapping, raw: str, rows: str) -> Value:
    """Return whether a text is one of those that mean yes; clicks must be there, likes need not."""
    is_one = _is_one_of(raw, how.equals)
    if column.name != "clicked":
        return Value(is_one)
    none = f"not exists (select 1 from ({rows}) where {is_one} limit 1)"
    words = ", ".join(f'"{word}"' if isinstance(word, str) else str(word).lower() for word in how.equals)
    return Value(is_one, raw, f"{given(raw)} and {none}", f"in some rows one of equals = [{words}]")


def _raw(column: str, how: ColumnMapping) -> str:
    """Return the SQL of the text that a value is made of."""
    if how.column is not None:
        return quoted(how.column)
    texts = []
    for part in how.columns:
        parts = [f"nullif(trim({quoted(one)}), '')" for one in part]
        texts.append(parts[0] if len(parts) == 1 else f"coalesce({', '.join(parts)})")
    if column in _IDS:
        return f"({' || chr(124) || '.join(texts)})"
    return f"nullif(concat_ws(' ', {', '.join(texts)}), '')"


def _cut(how: ColumnMapping, raw: str) -> str:
    found = raw
    if how.extract is not None:
        found = f"regexp_extract({found}, {literal(how.extract)}, 1)"
    if how.decode == "url":
        found = f"url_decode(replace({found}, '+', ' '))"
    for old, new in how.replace.items():
        found = f"replace({found}, {literal(old)}, {literal(new)})"
    return found


def _timed(where: str, column: Column, how: ColumnMapping, raw: str, offset_minutes: int) -> Value:
    unit = how.format or how.unit
    if unit is None:
        raise CropsError(f'{where}: say its unit, e.g. {{ column = {raw}, unit = "ms" }}')
    if column.name.endswith("_at"):
        since = _since(where, how, offset_minutes)
        return replace(time(_cut(how, raw), unit, offset_minutes, since), raw=raw)
    if unit not in FACTORS:
        raise CropsError(f"{where}: a duration is a number of {', '.join(FACTORS)}")
    return duration(raw, unit)


def _since(where: str, how: ColumnMapping, offset_minutes: int) -> int:
    """Return the microseconds UTC from which numbers count."""
    if how.since is None:
        if how.unit in ("min", "h", "d"):
            raise CropsError(f'{where}: say from when its {how.unit} count, e.g. since = "2016-06-01"')
        return 0
    try:
        start = datetime.fromisoformat(how.since)
    except ValueError as error:
        raise CropsError(f"{where}: since = {how.since!r}: write it as 2016-06-01") from error
    if start.tzinfo is None:
        start = start.replace(tzinfo=UTC) - timedelta(minutes=offset_minutes)
    return round((start - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
