"""Qilin: search and recommendation logs of Xiaohongshu notes, in readable Chinese.

Source: the authors' code, github.com/RED-Search/Qilin, and the hub's dataset THUIR/Qilin. `user_feat` (sex,
age, place) is never opened; the question-answering part (`dqa`) is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from crops.database import quoted
from crops.errors import CropsError, nearest
from crops.logs.mapping import Dataset, Importer, MappedTable, MappingFile
from crops.logs.sources import find_files, parquet_schema, read_sql
from crops.logs.tables import rows_of
from crops.logs.values import Value, duration, flag, integer, integer_identifier, text, time
from crops.schema import FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS

_SEARCH_FIELDS = ("note_idx", "position", "click", "like", "page_time", "search_timestamp")
_SEARCH_LIST = "search_result_details_with_idx"
_FEED_LIST = "rec_result_details_with_idx"
_FEED_FIELDS = ("note_idx", "click", "like", "page_time", "request_timestamp")


def qilin(folder: Path, _: MappingFile, scratch: Path) -> Dataset:
    """Return the mapping of a folder with the Parquet configurations of the hub.

    `search_train`, `search_test`, `recommendation_train`, `recommendation_test` and `notes`, each a folder of
    Parquet files or a part of the file's name.

    Raises:
        CropsError: a configuration is missing.
    """
    files = find_files(folder, "**/search_t*")
    shown = _exploded(files, ("search_idx", "user_idx", "query"), _SEARCH_LIST, _SEARCH_FIELDS)
    first = f"select min(try_cast(position as BIGINT)) as position from ({shown}) where position >= '0'"
    return Dataset(
        (_items(folder, scratch), _searches(shown), _feed(folder)),
        setup=(f"create temp table first_position as {first}",),
        notes=(
            "page_time is taken for seconds: its unit is not stated",
            "positions are shifted so that the first is 1: their base is not stated",
            "video lengths are left out: their unit is not stated; a long play is 18 s",
        ),
    )


def _searches(shown: str) -> MappedTable:
    rank = f"{integer('position').sql} - (select position from first_position) + 1"
    return MappedTable(
        SEARCH_IMPRESSIONS,
        shown,
        {
            "user_id": integer_identifier("user_idx"),
            "search_id": integer_identifier("search_idx"),
            "query": text("query"),
            "searched_at": time("search_timestamp", "s"),
            "item_id": integer_identifier("note_idx"),
            "stage": Value("'exposed'"),
            "rank": Value(f"try_cast({rank} as INTEGER)", "position"),
            "clicked": flag("click"),
            "liked": flag('"like"'),
            "play_ms": duration("page_time", "s"),
        },
    )


def _feed(folder: Path) -> MappedTable:
    files = find_files(folder, "**/recommendation_t*")
    return MappedTable(
        FEED_EVENTS,
        _exploded(files, ("user_idx",), _FEED_LIST, _FEED_FIELDS),
        {
            "user_id": integer_identifier("user_idx"),
            "item_id": integer_identifier("note_idx"),
            "watched_at": time("request_timestamp", "s"),
            "play_ms": duration("page_time", "s"),
            "liked": flag('"like"'),
            "clicked": flag("click"),
        },
    )


def _items(folder: Path, scratch: Path) -> MappedTable:
    names = ("note_idx", "note_title", "note_content", "taxonomy1_id", "taxonomy2_id", "taxonomy3_id")
    counts = ("click_num", "like_num", "full_view_times")
    columns = {name: name for name in (*names, *counts)}
    rows = read_sql(find_files(folder, "**/notes*"), columns, scratch, (*names[3:], *counts))
    levels = ", ".join(text(name).sql for name in names[3:])
    return MappedTable(
        ITEMS,
        rows,
        {
            "item_id": integer_identifier("note_idx"),
            "ocr_cover": text("note_title"),
            "photo_caption": text("note_content"),
            "keyword": Value(f"nullif(concat_ws(' ', {levels}), '')"),
            "play_cnt": integer("click_num"),
            "like_cnt": integer("like_num"),
            "long_view_cnt": integer("full_view_times"),
            "category": text("taxonomy1_id"),
        },
    )


def _exploded(files: Sequence[Path], columns: Sequence[str], listed: str, fields: Sequence[str]) -> str:
    """Return the SELECT of one row per shown note: columns of the event, and fields of the list's structs.

    Raises:
        CropsError: the files are no Parquet with these columns.
    """
    for file in files:
        schema = parquet_schema(file)
        for column in (*columns, listed):
            if column not in schema.names:
                raise CropsError(f"{file}: column {column} is missing.{nearest(column, schema.names)}")
        notes = schema.field(listed).type
        struct = notes.value_type if pa.types.is_list(notes) or pa.types.is_large_list(notes) else notes
        known = [field.name for field in struct] if pa.types.is_struct(struct) else []
        for name in fields:
            if name not in known:
                raise CropsError(
                    f"{file}: {listed} holds no field {name} (it is {notes}).{nearest(name, known)}"
                )
    read = {name: name for name in (*columns, listed)}
    events = ", ".join(f"cast({quoted(name)} as VARCHAR) as {quoted(name)}" for name in columns)
    note = ", ".join(f"cast(note.{quoted(name)} as VARCHAR) as {quoted(name)}" for name in fields)
    one = f"select {events}, unnest({quoted(listed)}) as note, _file, _row"
    one += f" from {rows_of(files, [parquet_schema(file) for file in files], read)}"
    return f"select {', '.join(map(quoted, columns))}, {note}, _file, _row from ({one})"


QILIN = Importer("qilin", qilin)
