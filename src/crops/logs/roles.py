"""Which column of an unknown log has which role, by its header and by its values.

Headers are compared with the usual names in several languages (`names.toml`); of values counts what they
parse as, how often they repeat, and whether they are items of the catalogue.
"""

from __future__ import annotations

import functools
import itertools
import re
import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from crops.logs.sheets import ISO, NUMBER, OFTEN, ROWS, WHOLE, Column, Sheet, cell_of, plain

LOG = "user_id search_id query time item_id rank clicked liked play kind title description keyword category"
"""Roles in a table of what happened."""
CATALOGUE = "item_id title description keyword category"
"""Roles in a table of items."""
SAID = 0.6
"""A header that says at least a part of a usual name."""
WHOLE_NAME = 0.9
"""More than this has a header that is a usual name."""
_BY_VALUES = {"time": 0.3, "query": 0.25, "title": 0.2, "search_id": 0.2, "user_id": 0.15, "item_id": 0.15}
"""What values count for where there is no header."""
_DEEDS = ("clicked", "clicks", "liked")
"""Roles that only the whole name of a column speaks for: `total_clicks` are not those of a row."""
MOST = 0.8
"""Share of the searches: fewer have a click."""
_YES = {"1", "true", "t", "yes", "y", "1.0"}
_NO = {"0", "false", "f", "no", "n", "0.0"}
_YES_ELSEWHERE = {"ja", "j", "si", "sí", "s", "oui", "o", "sim", "да", "是", "はい", "예"}
_NO_ELSEWHERE = {"nein", "não", "nao", "non", "нет", "否", "いいえ", "아니요"}
_REFERS = 0.8
"""Share of the ids of a column that are in the key of another table, as far as its first rows are seen."""
_FEW = 50
"""Whole numbers must be more than these to be told from places and counts."""
Linked = tuple[Collection[tuple[str, str]], Collection[tuple[str, str]]]
"""Columns with ids of items, and with ids of any other table: see `links`."""


@functools.cache
def _known(part: str) -> dict[str, list[str]]:
    """Return a part of `names.toml`: role -> words."""
    text = resources.files("crops.logs").joinpath("names.toml").read_text("utf-8")
    return {role: words.split() for role, words in tomllib.loads(text)[part].items()}


@functools.lru_cache(10_000)
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a header: those of `clickedItem_id` are clicked, item and id."""
    return tuple(re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()))


@functools.cache
def header(name: str, role: str) -> float:
    """Return how well a header names a role: 1 for a usual name, less for a part of one.

    Of a path such as `event.product.id` the last name counts, and the whole.
    """
    if role in _DEEDS and _negated(name):
        return 0.0
    words, last = words_of(name), words_of(name.rpartition(".")[2])
    wholes = ("_".join(words), "_".join(last))

    def worth(known: str) -> float:
        if known in wholes or (role not in _DEEDS and known == "_".join(words[-2:])):
            return 1.0
        if "_" in known:
            return 0.9 * (set(known.split("_")) <= set(words))
        if not known.isascii():
            return 0.7 * (known in wholes[0])
        near = known in last or (len(known) > 4 and any(word.startswith(known) for word in last))
        return near * (0.3 if known == "id" else 0.7) or 0.5 * (known in words and known != "id")

    best = max(worth(known) - n / 1_000 for n, known in enumerate(_known("names")[role]))
    told = name.rpartition(".")[0] if best > WHOLE_NAME else name  # a usual name: what it is of
    return max(0.0, best - 0.5 * any(_has(told, one) for one in _known("against").get(role, ())))


def _has(text: str, word: str) -> bool:
    """Return whether a text has a word; those of scripts without spaces may be anywhere in it."""
    return word in words_of(text) or (not word.isascii() and word in text)


def _negated(name: str) -> bool:
    return any(_has(name, one) for one in _known("against")["negated"])


def act(value: str) -> str | None:
    """Return what a kind of event means: clicked, liked, shown, searched, or None."""
    words, kinds = words_of(value), _known("acts").items()
    whole = (what for what, known in kinds if "_".join(words) in known)
    part = [what for what, known in kinds for one in known if _has(value, one)]
    if _negated(value) or {"clicked", "shown"} <= set(part):
        part = []
    return next(itertools.chain(whole, part), None)


def truth(column: Column) -> list[str] | None:
    """Return the texts that mean yes, none where numbers or truth values say it; None where nothing does."""
    lower = {text.lower() for text in column.distinct}
    if lower <= _YES | _NO or all(WHOLE.fullmatch(text) and 0 <= float(text) <= 1_000 for text in lower):
        return []
    if len(lower) > 6:
        return None
    yes = sorted(
        one for one in column.distinct if one.lower() in _YES | _YES_ELSEWHERE or act(one) == "clicked"
    )
    return yes if yes and len(yes) < len(lower) else None


def yes_no(column: Column) -> tuple[str, str] | None:
    """Return the texts for yes and no of a column that has only these; None of any other."""
    words = sorted(set(column.texts))
    yes = [one for one in words if one.lower() in _YES | _YES_ELSEWHERE]
    no = [one for one in words if one.lower() in _NO | _NO_ELSEWHERE]
    return (yes[0], no[0]) if len(words) == 2 and len(yes) == len(no) == 1 else None


def links(sheets: Sequence[Sheet]) -> Linked:
    """Return the columns that hold ids of items by their values, and all that hold ids of another table.

    Both as (files, name). A column refers to the key of another table, a column without repeats, if most of
    its values are there. That key is of items unless a header says that either is of users or searches, or
    another column that refers to its table, or is its key, is called an item.
    """
    refers = [
        (sheet, key, other, column)
        for sheet, other in itertools.permutations(sheets, 2)
        for key in sheet.columns.values()
        if len(key.distinct) >= max(2, OFTEN * sheet.rows) and _fit("item_id", key, sheet) > 0.5
        for column in other.columns.values()
        if _refers(column, key)
    ]
    other_roles = [role for role in LOG.split() if role not in ("item_id", "keyword", "category")]

    def of_items(*columns: Column) -> bool:
        return max(header(one.name, role) for one in columns for role in other_roles) < SAID

    def named(columns: Iterable[Column]) -> bool:
        return any(header(one.name, "item_id") >= SAID for one in columns)

    items = set()
    for sheet in sheets:
        mine = [one for one in refers if one[0] is sheet and of_items(one[1], one[3])]
        if mine and not sheet.bare and not named(one[1] for one in mine):
            key = max((one[1] for one in mine), key=lambda key: sum(one[1] is key for one in mine))
            items.add((sheet.files, key.name))
    for other in sheets:
        mine = [one for one in refers if one[2] is other and of_items(one[1], one[3])]
        if mine and not other.bare and not named(one[3] for one in mine):
            items |= {(other.files, one[3].name) for one in mine[:1]}
    return items, {(other.files, column.name) for _, _, other, column in refers}


def _refers(column: Column, key: Column) -> bool:
    if not column.distinct or column.lists or (column.times and column.name != key.name):
        return False
    numbers = column.share(WHOLE.fullmatch) > 0.5
    if column.name != key.name and numbers and len(column.distinct) <= _FEW:
        return False
    return len(column.distinct & key.distinct) >= _REFERS * len(column.distinct)


def _fit(role: str, column: Column, sheet: Sheet) -> float:
    """Return how well values suit a role, from 0 to 1."""
    share = column.share
    if column.lists:
        return 0.8 * (column.tokens and role in ("query", "title"))
    if not column.texts:
        return 0.0
    whole = share(WHOLE.fullmatch) >= OFTEN
    match role:
        case "time":
            counted = any("since" in one for one in column.times)
            ordered = sheet.bare and counted
            numbers = [float(one) for one in column.texts if NUMBER.fullmatch(one)] if ordered else [0, 2]
            steps = {b - a for a, b in itertools.pairwise(numbers)}
            day = max(map(len, column.texts)) <= 10 and not whole
            return (
                bool(column.times)
                * (0.7 if counted or day else 1)
                * (min(steps, default=0) >= 0 and bool(steps - {0, 1}))
            )
        case "clicked" | "liked":
            return truth(column) is not None
        case "rank":
            return whole and all(
                -1 <= float(one) <= 10_000 for one in column.distinct if NUMBER.fullmatch(one)
            )
        case "play":
            return share(NUMBER.fullmatch) >= OFTEN
        case "kind":
            return 1 < len(column.distinct) <= 40 and (1 if any(map(act, column.distinct)) else 0.3)
        case "query" if yes_no(column):
            return 0.0
        case "query" | "title" | "description" | "keyword" | "category":
            long = role == "query" and sum(map(len, column.texts)) > 200 * len(column.texts)
            letters = 0.8 + 0.2 * column.letters if role == "category" else column.letters
            if sheet.bare:
                letters *= share(lambda one: not any(map(str.isdigit, one)))
            if column.tokens and role in ("query", "title"):
                letters = 0.8
            return letters * (0.3 if long else 1) * (share(lambda one: ISO.match(one) or "://" in one) < 0.5)
    measure = (
        share(lambda one: NUMBER.fullmatch(one) and not whole) > 0.5 and role != "user_id"
    )  # GA4's 12.34
    if measure or share(lambda one: ISO.match(one) or len(one) > 300) > 0.5:
        return 0.0
    fixed = len(column.distinct) > 1 and _determines(column, sheet)
    if role == "search_id" or (sheet.bare and role == "user_id"):
        return fixed == (role == "search_id")
    return 0.5 if share(lambda one: " " in one) > 0.5 else 1.0


def _determines(column: Column, sheet: Sheet) -> bool:
    """Return whether an id stands for one query, as a search's does and a session's does not."""
    texts = [one for one in sheet.columns.values() if one is not column and one.texts]
    query = max(texts, key=lambda one: (header(one.name, "query"), one.letters), default=column)
    if max(header(query.name, "query"), query.letters * sheet.bare) < 0.4:
        return True
    seen = defaultdict(set)
    for one, text in zip(column.cells, query.cells, strict=True):
        if text is not None:
            seen[one].add(str(text))
    enough = 1 if "session" in words_of(column.name) else OFTEN
    return sum(len(found) == 1 for found in seen.values()) >= enough * len(seen)


@dataclass(frozen=True)
class Choice:
    """The column of a role."""

    column: Column
    header: float
    rival: Column | None = None
    """Another column that suits as well."""
    linked: bool = False
    """Whether its values are ids of another table."""

    @property
    def why(self) -> str:
        """What speaks for it."""
        if self.header > 0.8:
            return "its name"
        if self.linked:
            return "its values are those of another table"
        return "part of its name" if self.header else "its values only"


def roles(
    sheet: Sheet,
    wanted: str,
    items: Collection[str] = (),
    linked: Linked = ((), ()),
) -> dict[str, Choice]:
    """Return the column of each role that has one; the best fit chooses first.

    Args:
        sheet: the table.
        wanted: the roles.
        items: ids of the catalogue.
        linked: what `links` says of all tables.
    """
    scores = []
    named = {
        column: max(header(column.name, role) for role in wanted.split()) for column in sheet.columns.values()
    }
    for role, column in itertools.product(wanted.split(), sheet.columns.values()):
        said = 0.0 if sheet.bare else header(column.name, role)
        if role == "item_id" and column.name == sheet.shown:
            said = 2.0
        place = (sheet.files, column.name)
        by_values = WHOLE_NAME if role == "item_id" and place in linked[0] else 0.0
        if role in ("keyword", "category") and wanted is LOG:
            said *= 0.9
        values = _BY_VALUES.get(role, 0) if sheet.bare and (role != "title" or wanted is CATALOGUE) else 0
        score = _fit(role, column, sheet) * max(
            said,
            values,
            by_values,
            0.12 * (role == "query" and named[column] < 0.3 and place not in linked[1]),
        )
        score *= 0.5 + 0.5 * sum(cell is not None for cell in column.cells) / len(column.cells)
        if role == "item_id" and items and column.distinct:
            score *= 0.5 + len(column.distinct.intersection(items)) / len(column.distinct)
        scores.append((score, said, role, column))
    scores.sort(key=lambda one: -one[0])
    best = {column: role for _, _, role, column in reversed(scores)}
    found: dict[str, Choice] = {}
    free = set(sheet.columns.values())
    for score, said, role, column in scores:
        if score > 0.1 and role not in found and column in free:
            free.remove(column)
            near = (SAID if role == "clicked" else 0.95) * score
            alike = [o for s, _, r, o in scores if r == role == best[o] and s >= near and o is not column]
            if role == "item_id":  # what was clicked is no rival of what was shown
                alike = [o for o in alike if header(o.name, "clicks") < SAID]
            rival = next((o for o in alike if not _same(role, column, o)), None)
            by_values = role == "item_id" and (sheet.files, column.name) in linked[0]
            found[role] = Choice(column, said, rival, by_values)
    return found


def _same(role: str, one: Column, other: Column) -> bool:
    """Return whether two columns tell the same, perhaps in other words."""
    if role == "clicked":
        return one.cells == other.cells
    both, mine, theirs = (
        len(set(map(str, cells)))
        for cells in (zip(one.cells, other.cells, strict=True), one.cells, other.cells)
    )
    return both <= max(mine, theirs)


def exploded(sheet: Sheet) -> Sheet:
    """Return one row per shown item, where a column lists what was shown; otherwise the sheet as it is."""
    lists = [one for one in sheet.columns.values() if one.lists and header(one.name, "query") < SAID]
    flat = max((header(one.name, "item_id") for one in sheet.columns.values() if not one.lists), default=0)
    if not lists:
        return sheet
    sizes = {one.name: [len(cell or ()) for cell in one.cells] for one in lists}
    said = {one.name: header(one.name, "shown") - header(one.name, "clicks") for one in lists}
    shown = max(sizes, key=lambda name: (said[name], sum(sizes[name])))
    if flat > SAID > header(shown, "shown"):
        return sheet
    in_step = [shown, *(name for name in sizes if name != shown and sizes[name] == sizes[shown])]
    rows = [(row, n) for row, size in enumerate(sizes[shown][: ROWS // 4]) for n in range(size)]
    columns = {}
    for name, column in sheet.columns.items():
        cells = [column.cells[row][n] if name in in_step else column.cells[row] for row, n in rows]
        fields = dict.fromkeys(key for one in cells if isinstance(one, dict) for key in one)
        for key in fields:
            values = (cell_of(one.get(key)) if isinstance(one, dict) else None for one in cells)
            columns[f"{name}.{key}"] = Column(f"{name}.{key}", tuple(values))
        if not fields:
            columns[name] = Column(name, tuple(cells))
    explode = in_step if len(in_step) > 1 else shown
    return Sheet(sheet.files, sheet.layout, columns, explode, tuple(row for row, _ in rows))


def members(sheet: Sheet, item: Column) -> dict[str, list[Column]]:
    """Return the columns of items of the row that are called clicked or liked.

    Without a header a list is of clicks where enough searches have none: something is shown in nearly all.
    """
    shown, found = defaultdict(set), []
    for row, one in zip(sheet.origin, item.cells, strict=False):
        shown[row].add(plain(str(one)))
    for column in sheet.columns.values():
        if sheet.explode and (column.lists or header(column.name, "clicks") > SAID):
            cells = dict(zip(sheet.origin, column.cells, strict=True)).items()
            listed = [(row, one) for row, cell in cells if cell for one in (cell if column.lists else [cell])]
            if listed and sum(plain(str(one)) in shown[row] for row, one in listed) >= OFTEN * len(listed):
                found.append(column)
    liked = [one for one in found if header(one.name, "liked") > SAID]
    searches = len(set(sheet.origin))

    def few(one: Column) -> bool:
        listed = {row for row, cell in zip(sheet.origin, one.cells, strict=True) if cell}
        return sheet.bare and len(listed) < MOST * searches

    clicked = [one for one in found if header(one.name, "clicks") > WHOLE_NAME or few(one)]
    return {"clicked": clicked, "liked": liked}
