"""KuaiSAR and KuaiSAR-small: search and recommendation logs of Kuaishou, texts as token ids.

Source: the authors' description, github.com/Ethan00Si/KuaiSAR (pages/decriptions.md). Neither
`user_features.csv` nor `social_network.csv` is opened.
"""

from __future__ import annotations

from pathlib import Path

from crops.logs.mapping import TOKENS, Dataset, Importer, MappedTable, MappingFile
from crops.logs.sources import find_files, read_sql
from crops.logs.values import Value, duration, flag, integer, integer_identifier, text, time, tokens
from crops.schema import FEED_EVENTS, ITEMS, SEARCH_IMPRESSIONS

BEIJING_MINUTES = 480
_KINDS = ("VIDEO", "IMAGE_ATLAS")
_LEVELS = ("first", "second", "third", "fourth")


def kuaisar(folder: Path, _: MappingFile, scratch: Path) -> Dataset:
    """Return the mapping of a folder with `src_inter.csv`, `rec_inter.csv` and `item_features.csv`.

    Raises:
        CropsError: a file or column is missing.
    """
    return Dataset(
        (_items(folder, scratch), _searches(folder, scratch), _feed(folder, scratch)),
        text=TOKENS,
        notes=(
            "texts are token ids: theta is `none`, or an encoder trained on these logs",
            "positions, likes and play times of searches are not logged: a click is the only signal there",
            "the earliest item of a search plays by itself: some searches without a click were satisfied",
        ),
    )


def _searches(folder: Path, scratch: Path) -> MappedTable:
    columns = (
        "user_id",
        "search_session_id",
        "search_session_timestamp",
        "keyword",
        "item_id",
        "click_cnt",
        "item_type",
    )
    rows = read_sql(find_files(folder, "src_inter.csv*"), {name: name for name in columns}, scratch)
    return MappedTable(
        SEARCH_IMPRESSIONS,
        rows,
        {
            "user_id": integer_identifier("user_id"),
            # What KuaiSAR calls a session is one query with its results.
            "search_id": integer_identifier("search_session_id"),
            "query": tokens("keyword"),
            "searched_at": time("search_session_timestamp", "ms"),
            "item_id": integer_identifier("item_id"),
            "stage": Value("'exposed'"),
            "clicked": flag("click_cnt"),
        },
        {"other_item_type": _other_kind()},
    )


def _feed(folder: Path, scratch: Path) -> MappedTable:
    columns = ("user_id", "item_id", "playing_time", "duration_ms", "timestamp", "click", "like")
    rows = read_sql(find_files(folder, "rec_inter.csv*"), {name: name for name in columns}, scratch)
    return MappedTable(
        FEED_EVENTS,
        rows,
        {
            "user_id": integer_identifier("user_id"),
            "item_id": integer_identifier("item_id"),
            # When the system sent the item: a batch shares one time, so ties are normal.
            "watched_at": time("timestamp", "ms"),
            "play_ms": duration("playing_time", "ms"),
            "duration_ms": duration("duration_ms", "ms"),
            "liked": flag('"like"'),
            "clicked": flag("click"),
        },
    )


def _items(folder: Path, scratch: Path) -> MappedTable:
    names = [f"{level}_level_category_name" for level in _LEVELS]
    names += [f"{name}_en" for name in names]
    columns = {name: name for name in ("item_id", "caption", "author_id", "item_type", "upload_time", *names)}
    files = find_files(folder, "item_features.csv*")
    rows = read_sql(files, columns, scratch, optional=("author_id", "upload_time", *names))
    levels = [f"coalesce({text(f'{name}_en').sql}, {text(name).sql})" for name in names[: len(_LEVELS)]]
    return MappedTable(
        ITEMS,
        rows,
        {
            "item_id": integer_identifier("item_id"),
            "ocr_cover": tokens("caption"),
            "keyword": Value(f"nullif(concat_ws(' ', {', '.join(levels)}), '')"),
            "uploaded_at": time("upload_time", "any", BEIJING_MINUTES),
            "author_id": integer("author_id"),
            "category": Value(levels[0]),
        },
        {"other_item_type": _other_kind()},
    )


def _other_kind() -> str:
    kinds = ", ".join(f"'{kind}'" for kind in _KINDS)
    return f"item_type is null or item_type not in ({kinds})"


KUAISAR = Importer("kuaisar", kuaisar)
