"""`crops import --guess`: a starter map of an unknown log, which a person corrects.

`crops.logs.roles` says which column means what. What neither headers nor values support is left open, and the
map then says what to fill in: clicks are never invented.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crops.errors import CropsError
from crops.logs.mapped import MAPS
from crops.logs.mapping import TableMapping, load_mapping
from crops.logs.roles import (
    CATALOGUE,
    LOG,
    SAID,
    WHOLE_NAME,
    Choice,
    Linked,
    act,
    exploded,
    header,
    links,
    members,
    roles,
    truth,
    words_of,
    yes_no,
)
from crops.logs.sheets import ISO, NUMBER, OFTEN, ROWS, START, Column, Sheet, inside, look, one_line

_TEXTS = {"ocr_cover": "title", "photo_caption": "description", "keyword": "keyword", "category": "category"}
_NEEDED = ("user_id", "query", "searched_at", "watched_at", "item_id", "clicked")
"""Columns that are left open rather than taken from an unlikely column."""
MOST_NAMED = 20
"""Files that are not used beyond these are counted only."""
_HEAD = """# A guess from the first rows of {source}. Correct what is wrong; then:
#   crops import table {folder} --mapping {out} --out LOGS
# It shows values of your logs: keep it as safe as they are.
"""


def toml(value: Any) -> str:  # noqa: ANN401 (any value of a map)
    """Return a value as it stands in a map."""
    if isinstance(value, dict):
        keys = {one: one if re.fullmatch(r"[A-Za-z0-9_-]+", one) else toml(one) for one in value}
        return f"{{ {', '.join(f'{keys[name]} = {toml(one)}' for name, one in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return one_line(value)


class UnsureError(CropsError):
    """A map is written, and something is left open; `notes` tell the rest."""

    def __init__(self, message: str, notes: Sequence[str]) -> None:
        super().__init__(message)
        self.notes = notes


@dataclass(frozen=True)
class _Table:
    sheet: Sheet
    roles: dict[str, Choice]

    def name(self, role: str) -> str:
        return self.roles[role].column.name

    def ids(self, role: str) -> set[str]:
        return self.roles[role].column.distinct if role in self.roles else set()

    def cells(self, *wanted: str) -> list[tuple[Any, ...]]:
        return [self.roles[role].column.cells for role in wanted if role in self.roles]


@dataclass
class Guess:
    """A starter map as it grows, and what to tell of it."""

    top: list[str] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=lambda: {"items": []})
    """Lines by table of the contract."""
    open: list[str] = field(default_factory=list)
    """What a person must fill in before anything can be imported."""
    notes: list[str] = field(default_factory=list)
    at: str = "items"
    where: dict[str, list[str]] = field(default_factory=dict)
    """Of a log of events, those that are about items."""
    used: set[str] = field(default_factory=set)
    """Patterns of the files that are read."""

    def head(self, line: str) -> None:
        """Put a line before the tables, unless its key is there."""
        if not any(one.split()[0] == line.split()[0] for one in self.top):
            self.top.append(line)

    def begin(self, table: str, sheet: Sheet, join: str = "", **options: Any) -> None:  # noqa: ANN401
        """Begin a table of the contract, or one that is joined to it."""
        given = {"files": sheet.files, **sheet.layout, **{key: one for key, one in options.items() if one}}
        lines = [f"[{table}{join and '.join.'}{join}]    # {sheet.rows:,} rows looked at"]
        self.at = table
        self.used.add(sheet.files)
        before = self.parts[table] if join else []
        self.parts[table] = [*before, *lines, *(f"{key} = {toml(value)}" for key, value in given.items())]

    def add(self, name: str, value: Any, why: str, seen: Column | None = None) -> None:  # noqa: ANN401
        """Give a column its value, what speaks for it, and three values to see."""
        self.parts[self.at].append(
            f"{name} = {toml(value)}    # {why}{f': {seen.samples()}' if seen else ''}"
        )

    def choose(
        self,
        name: str,
        table: _Table,
        role: str,
        prefix: str = "",
        doubt: str = "",
        **more: Any,  # noqa: ANN401
    ) -> None:
        """Give a column that of a role, if there is one; leave it open if in doubt or with a rival."""
        choice = table.roles.get(role)
        if choice is None:
            return
        more |= {"tokens": True} if role in ("query", "title") and choice.column.tokens else {}
        seen = [one for one in (choice.column, choice.rival) if one]
        values = [{"column": prefix + one.name, **more} if more else prefix + one.name for one in seen]
        told = choice.header > 0 or choice.linked or table.sheet.bare or table.sheet.explode
        unsure = doubt or choice.rival or not told
        if unsure and name in _NEEDED:
            columns = " or ".join(f"`{one.name}` ({one.samples()})" for one in seen)
            self.ask(name, f"is it {columns}{doubt}?", values)
        else:
            other = f", or `{choice.rival.name}`" if choice.rival else ""
            self.add(name, values[0], choice.why + other, choice.column)

    def ask(self, name: str, question: str, answers: Sequence[Any]) -> None:
        """Leave a column open, with the lines that could stand there."""
        question = " ".join(question.split())
        if (told := f"{name}: {question}") not in self.open:  # that of two tables
            self.open.append(told)
        self.parts[self.at] += [
            f"# TO DO, {name}: {question}",
            *(f"# {name} = {toml(one)}" for one in answers),
        ]


def write_guess(source: Path, out: Path) -> Guess:
    """Write the guess as a map.

    Raises:
        CropsError: as `guess_map`; `out` is there already; or, with the map written, something is left open.
    """
    if out.exists():
        raise CropsError(f"{out} is there already, perhaps with your corrections: name another with --out")
    guess = guess_map(source)
    folder = source if source.is_dir() else source.parent
    notes = [f"# {' '.join(note.split())}" for note in guess.notes]
    parts = "\n\n".join("\n".join(part) for part in (notes, guess.top, *guess.parts.values()) if part)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_HEAD.format(source=source, folder=folder, out=out) + f"\n{parts}\n", encoding="utf-8")
    if guess.open:
        raise UnsureError(
            f"{out} is written, but not everything could be told. {' '.join(guess.open)}"
            f" Correct its lines marked TO DO; then: crops import table {folder} --mapping {out} --out LOGS",
            guess.notes,
        )
    return guess


def known_format(source: Path) -> str | None:
    """Return the format that the files are in, where `crops import` knows it by name."""
    sheets, folder = look(source), source if source.is_dir() else source.parent
    names = {file: list(sheet.columns) for sheet in sheets for file in folder.glob(sheet.files)}
    for map_ in MAPS:
        mapping = load_mapping(map_)
        parts = [one for one in (mapping.items, mapping.search_impressions, mapping.feed_events) if one]
        if all(
            _fits(one, [names[file] for file in folder.glob(one.files) if file in names]) for one in parts
        ):
            return map_.stem
    ubi = {"query_id", "user_query", "client_id"}
    return "ubi" if any(ubi <= set(columns) for columns in names.values()) else None


def _fits(section: TableMapping, files: list[list[str]]) -> bool:
    """Return whether the files of a table have its columns, each in one of them at least."""
    paths = [path for one in section.columns.values() if not one.optional for path in one.paths()]
    wanted = [f"{one}." for one in (*paths, *section.where) if one.partition(".")[0] not in section.join]
    there = [f"{name}." for columns in files for name in columns]
    return bool(files) and all(
        any(one.startswith(path) or path.startswith(one) for one in there) for path in wanted
    )


def guess_map(source: Path) -> Guess:
    """Guess the map of a folder or a file of logs.

    Raises:
        CropsError: there is nothing to read, no column looks like a query, or several tables look like the
            searches.
    """
    guess, sheets = Guess(), look(source)
    linked = links(sheets)
    catalogues = [
        one
        for one in (_Table(sheet, roles(sheet, CATALOGUE, linked=linked)) for sheet in sheets)
        if _is_catalogue(one)
    ]
    items = set().union(*(one.ids("item_id") for one in catalogues))
    logs = [exploded(sheet) for sheet in sheets if all(sheet is not one.sheet for one in catalogues)]
    tables = [_log(sheet, items, linked) for sheet in logs]
    asked = [one for one in tables if "query" in one.roles and {"time", "user_id"} & set(one.roles)]
    shown = [one for one in asked if "item_id" in one.roles]
    if not asked:
        columns = "; ".join(f"{sheet.files}: {', '.join(list(sheet.columns)[:12])}" for sheet in sheets)
        raise CropsError(
            f"{source}: no table has a query with its user or time ({columns});"
            " if one has, write its map by hand"
        )
    if len(shown) > 1:
        files = " and ".join(one.sheet.files for one in shown)
        raise CropsError(
            f"{source}: {files} all look like the searches, and their columns differ: give the files of one"
            " table the same columns, or name one file instead of the folder"
        )
    keyed = [one for one in tables if {"item_id", "search_id"} <= set(one.roles)]
    pairs = ((one, query) for one in keyed for query in asked if one is not query and _meet(one, query))
    main, query = (shown[0], shown[0]) if shown else next(pairs, (asked[0], asked[0]))
    others = [one for one in tables if one not in (main, query)]
    if "item_id" in main.roles:
        used = _searches(guess, main, query, others)
        catalogue = max(
            catalogues, key=lambda one: len(one.ids("item_id") & main.ids("item_id")), default=None
        )
        _items(guess, catalogue, main)
        feeds = [
            one for one in others if one not in used and {"user_id", "item_id", "time"} <= set(one.roles)
        ]
        for one in feeds[:1]:
            guess.begin("feed_events", one.sheet)
            guess.parts["feed_events"].append("[feed_events.columns]")
            guess.choose("user_id", one, "user_id")
            guess.choose("item_id", one, "item_id")
            _when(guess, "watched_at", one)
            _what(guess, one)
    else:
        guess.begin("search_impressions", main.sheet)
        _who_when(guess, main, main, "", {})
        guess.notes.append("no table has items: these searches can be checked, not mined")
    if unused := _unused(source, guess.used):
        guess.notes.append(f"not used: {', '.join(unused)}")
    if any(line.startswith("text") for line in guess.top):
        guess.notes.append("no relevance model reads ids or token ids: crops mine needs --relevance none")
    return guess


def _unused(source: Path, used: Collection[str]) -> list[str]:
    """Return the files of the source that the map does not read, of many the first."""
    if not source.is_dir():
        return []
    read = {file for pattern in used for file in source.glob(pattern)}
    left = [str(file.relative_to(source)) for file in inside(source) if file not in read]
    return [*left[:MOST_NAMED], *([f"and {len(left) - MOST_NAMED} more"] if left[MOST_NAMED:] else [])]


def _is_catalogue(one: _Table) -> bool:
    sheet, found = one.sheet, set(one.roles)
    if "item_id" not in found or not found - {"item_id"} or len(one.ids("item_id")) < OFTEN * sheet.rows:
        return False
    if sheet.bare:
        return len(one.ids("title")) > 0.7 * sheet.rows and not any(c.lists for c in sheet.columns.values())
    said = {role: max(header(name, role) for name in sheet.columns) for role in ("user_id", "query")}
    return said["user_id"] < SAID and (said["query"] < SAID or "title" in found)


def _log(sheet: Sheet, items: set[str], linked: Linked) -> _Table:
    """Return a table of what happened; the key of its rows is no id of a search."""
    table = _Table(sheet, roles(sheet, LOG, items, linked))
    if sheet.explode or not {"search_id", "item_id", "query"} <= set(table.roles):
        return table
    key = table.roles["search_id"].column
    alike = set(map(str, zip(*table.cells("user_id", "query", "time"), strict=True)))
    events = any(act(one) == "clicked" for one in table.ids("kind"))
    if len(set(key.cells)) < sheet.rows or (len(alike) > 0.9 * sheet.rows and not events):
        return table
    rest = {name: one for name, one in sheet.columns.items() if one is not key}
    return _log(replace(sheet, columns=rest), items, linked)


def _meet(one: _Table, other: _Table) -> bool:
    """Return whether two tables speak of the same searches."""
    ids = one.ids("search_id"), other.ids("search_id")
    return all(ids) and len(ids[0] & ids[1]) >= 0.5 * min(map(len, ids))


def _items(guess: Guess, catalogue: _Table | None, log: _Table) -> None:
    one = catalogue or log
    own: dict[str, Any] = (
        {} if catalogue else {"where": guess.where, "explode": log.sheet.explode, "distinct": True}
    )
    guess.begin("items", one.sheet, **own)
    guess.parts["items"].append("[items.columns]")
    guess.choose("item_id", one, "item_id")
    for name, role in _TEXTS.items():
        guess.choose(name, one, role)
    item, shown = one.roles["item_id"].column, log.ids("item_id")
    if not {"title", "description", "keyword"} & set(one.roles):
        guess.add("ocr_cover", item.name, "no title was found: the id stands for the text", item)
        guess.notes.append(
            "item texts are missing: an item's id stands for its text, so a model can only learn by heart"
            " which items were clicked; put a table of ids and titles beside the logs and guess again"
        )
        if not any(set(" /") & set(text) for text in item.texts[:100]):
            guess.head('text = "anonymised tokens"    # ids stand for the texts of items')
    share = len(shown & item.distinct) / max(1, len(shown))
    if share < 0.9 and one.sheet.rows < ROWS:
        guess.notes.append(f"only {share:.0%} of the items in {log.sheet.files} are in {one.sheet.files}")


def _searches(guess: Guess, table: _Table, asked: _Table, others: list[_Table]) -> list[_Table]:
    """Write [search_impressions]; return the other tables that it uses."""
    sheet, found, name = table.sheet, table.roles, table.name
    inside = members(sheet, found["item_id"].column)
    for what, lists in inside.items():
        if lists:  # a column that says it of the whole search
            found.pop(what, None)
    told = bool(inside["clicked"]) or "clicked" in found
    kinds = {} if told or "kind" not in found else _kinds(guess, table)
    apart = [one for one in others if _meet(table, one) and "item_id" in one.roles]
    clicks = [] if told or kinds else apart[:1]
    guess.where = {name("kind"): kinds["rows"]} if kinds else {}
    guess.begin("search_impressions", sheet, where=guess.where, explode=sheet.explode)
    prefix = "searches." if asked is not table or kinds.get("asked") else ""
    if prefix:
        where = {name("kind"): kinds["asked"]} if asked is table else None
        on = {name("search_id"): asked.name("search_id")}
        guess.begin("search_impressions", asked.sheet, "searches", on=on, where=where)
    for one in clicks:
        on = {name(key): one.name(key) for key in ("search_id", "item_id")}
        guess.begin("search_impressions", one.sheet, "clicks", on=on)
    _who_when(guess, table, asked, prefix, kinds)
    guess.choose("item_id", table, "item_id")
    if sheet.explode and not kinds:
        guess.add("rank", {"position": sheet.shown}, "place in the list")
    elif "rank" in found:
        low = min(float(text) for text in found["rank"].column.texts if NUMBER.fullmatch(text))
        base: dict[str, Any] = {} if low == 1 else {"base": 0 if low == 0 else "lowest"}
        guess.choose("rank", table, "rank", **base)
    for what, lists in inside.items():
        if what == "clicked" and len(lists) > 1:
            guess.ask(what, "which list has the clicked items?", [{"in": one.name} for one in lists])
        elif lists:
            guess.add(what, {"in": lists[0].name}, "its items are among those shown", lists[0])
    if kinds:
        for what in filter(kinds.get, ("clicked", "liked")):
            guess.add(what, {"column": name("kind"), "equals": kinds[what]}, "kinds of events")
        return []
    _shown(guess, table)
    if clicks:
        guess.add("clicked", {"found": "clicks"}, f"a row of {clicks[0].sheet.files}")
    elif not told:
        _clicked(guess, table)
    _what(guess, table)
    return clicks


def _shown(guess: Guess, table: _Table) -> None:
    """Offer a column that may say whether the item was shown: without it all rows count as shown."""
    taken = [one.column for one in table.roles.values()]
    for one in table.sheet.columns.values():
        words = yes_no(one) if one not in taken and header(one.name, "visible") >= SAID else None
        if words is None:
            continue
        stages = ("exposed", "unexposed")
        ways = (dict(zip(words, stages, strict=True)), dict(zip(words[::-1], stages[::-1], strict=True)))
        how = next((way for way in ways if all(_replaced(word, way) == way[word] for word in words)), None)
        note = f"`{one.name}` ({one.samples()}) may say whether an item was shown: all rows count as shown"
        if how:
            line = f"stage = {toml({'column': one.name, 'replace': how})}"
            guess.parts[guess.at].append(
                f"# {line}    # was it shown? Without this line all rows count as shown"
            )
            note += f" unless the map has {line}"
        guess.notes.append(note)


def _replaced(text: str, by: dict[str, str]) -> str:
    """Return a text as `replace` of a map makes it."""
    for old, new in by.items():
        text = text.replace(old, new)
    return text


def _clicked(guess: Guess, table: _Table) -> None:
    """Find clicks in what the log is called, or ask for them."""
    names = [table.sheet.files.rpartition("/")[2].partition(".")[0]]
    seen = [table.roles[role].column for role in ("item_id", "time") if role in table.roles]
    names += [one.name for one in seen if None not in one.cells]
    if any(set(words_of(name)) & {"click", "clicks", "clicked", "点击"} for name in names):
        guess.add("clicked", {"value": True}, "the names say that each row is a click")
        guess.notes.append("only clicks are logged: nothing is known of what was shown and not clicked")
        return
    used = [choice.column for role, choice in table.roles.items() if role not in ("kind", "category")]
    unused = [one for one in table.sheet.columns.values() if one not in used]
    listed = [
        one
        for one in unused
        if (table.sheet.explode and one.lists)
        or (one.texts and header(one.name, "item_id") > SAID and one.distinct <= table.ids("item_id"))
    ]
    answers: list[dict[str, Any]] = [
        {
            "column": one.name,
            "equals": [v for v in sorted(one.distinct) if act(v) == "clicked"] or sorted(one.distinct)[:3],
        }
        for one in unused
        if one not in listed and 1 < len(one.distinct) <= 20 and one.share(ISO.match) < OFTEN
    ]
    answers += [{"in": one.name} for one in listed]
    question = "what says whether the item was clicked? No header does, and no list of clicked items"
    guess.ask("clicked", question, answers or [{"column": "COLUMN", "equals": ["YES"]}])


def _kinds(guess: Guess, table: _Table) -> dict[str, list[str]]:
    """Return the kinds of events that are clicks and likes, those with items, and those with the query."""
    cells = [
        table.roles[role].column.cells if role in table.roles else () for role in ("kind", "item_id", "query")
    ]
    rows = defaultdict(list)
    for kind, item, query in itertools.zip_longest(*cells):
        rows[kind].append((item is not None, query is not None))
    with_item, with_query = (
        [kind for kind, given in rows.items() if kind and sum(one[n] for one in given) >= len(given) / 2]
        for n in (0, 1)
    )
    found = {what: [one for one in with_item if act(one) == what] for what in ("shown", "clicked", "liked")}
    if not found["clicked"]:
        return {}
    found["rows"] = [*found["shown"], *found["clicked"], *found["liked"]]
    left = [one for one in with_item if one not in found["rows"]]
    if left and not found["shown"]:  # perhaps these are what was shown
        return {}
    if left:
        guess.notes.append(f"events of unknown meaning are left out: {', '.join(left)}")
    if not set(found["rows"]) <= set(with_query):
        found["asked" if "search_id" in table.roles else "apart"] = [
            one for one in with_query if one not in found["rows"]
        ]
    return found


def _who_when(guess: Guess, table: _Table, asked: _Table, prefix: str, kinds: dict[str, list[str]]) -> None:
    """Write user, search, query and time; what `asked` has comes from there where it is joined."""
    guess.parts["search_impressions"].append("[search_impressions.columns]")
    found, sheet = table.roles, table.sheet
    sessions = [one for one in sheet.columns.values() if "session" in words_of(one.name)]
    session = [one.name for one in sessions][:1]
    key = [table.name("user_id")] if "user_id" in found else []
    key += [one.name for one in sessions if None not in one.cells][:1]
    key += [asked.name("query"), *(_moment(table) if "time" in found and _at_once(table, kinds) else ())]
    row = {"row": True} if sheet.explode and not kinds else {"columns": list(dict.fromkeys(key))}
    if "user_id" in found or "user_id" in asked.roles:
        guess.choose("user_id", *((table, "user_id") if "user_id" in found else (asked, "user_id", prefix)))
    elif session:
        guess.add("user_id", session[0], "no user was found: a session stands for one")
    else:
        value = table.name("search_id") if "search_id" in found else row
        guess.add(
            "user_id", value, "no user was found: each search has its own, so rewordings (P1) are absent"
        )
    if "search_id" in found:
        guess.choose("search_id", table, "search_id")
    elif "apart" in kinds:
        guess.ask(
            "search_id",
            "clicks say no query, and no column is called an id of the search: if one is, call it search_id"
            " in your files; if not, write the query into the rows of clicks; then guess again",
            (),
        )
    else:
        whole = "row" in row
        why = "one search in each row" if whole else "no id of the search was found: made of these"
        guess.add("search_id", row, why)
    query = asked.roles["query"].column
    if query.tokens:
        guess.head('text = "anonymised tokens"    # queries are token ids')
    guess.choose("query", asked, "query", prefix)
    _when(guess, "searched_at", *((asked, prefix) if "time" in asked.roles else (table, "")))


def _at_once(table: _Table, kinds: dict[str, list[str]]) -> bool:
    """Return whether events of one search have one time, clicks that of what was shown."""
    if not kinds or "query" not in table.roles:
        return not kinds
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for kind, *key in zip(*table.cells("kind", "user_id", "query", "time"), strict=True):
        seen[kind in kinds["clicked"]].add(str(key))
    return len(seen[True] - seen[False]) < 0.1 * len(seen[True])


def _moment(table: _Table) -> list[str]:
    """Return the column of the time, or those of day and time of day."""
    day = table.roles["time"].column
    clocks = [one.name for one in table.sheet.columns.values() if day.days and one.clock]
    return [day.name, *clocks[:1]]


def _when(guess: Guess, name: str, table: _Table, prefix: str = "") -> None:
    if "time" not in table.roles:
        guess.ask(name, "which column is the time?", [{"column": "COLUMN", "unit": "iso"}])
        return
    column = table.roles["time"].column
    times: list[dict[str, Any]] = [*column.times]
    of: dict[str, Any] = {"column": prefix + column.name}
    if len(moment := _moment(table)) > 1:
        of = {"columns": [prefix + one for one in moment]}
        clock = table.sheet.columns[moment[1]].clock
        times = [{"format": f"{one.get('format', '%Y-%m-%d')} {clock}"} for one in times]
    elif column.days:
        days = [one.get("format", "%Y-%m-%d") for one in times]
        both = [{"columns": [column.name, "COLUMN"], "format": f"{day} %H:%M:%S"} for day in days]
        question = f"`{column.name}` ({column.samples()}) says the day only: which column is the time of day"
        first = " Is the day or the month first?" * (len(times) > 1)
        answers = [*both, *({**of, **one} for one in times)]
        guess.ask(name, f"{question}? If none, all is at midnight.{first}", answers)
        return
    if len(times) > 1 or times[0].get("unit") == "ns":
        question = (
            "is the day or the month first" if len(times) > 1 else "divide nanoseconds by 1000 and say us"
        )
        answers = [{**of, **one} for one in times if one != {"unit": "ns"}]
        guess.ask(name, f"{question}, in {column.samples()}?", answers)
        return
    if "since" in times[0]:
        guess.notes.append(
            f"`{column.name}` counts from a start that is not logged: seconds since {START} are assumed"
        )
    elif times[0].get("unit", "iso") == "iso" and "%z" not in times[0].get("format", ""):
        zoned = column.share(lambda one: len(one) > 10 and re.search(r"([A-Z]|[+-]\d\d(:?\d\d)?)$", one))
        if zoned < 0.5:
            guess.head('utc_offset = "+00:00"    # times name no zone: UTC is assumed; Beijing is "+08:00"')
    if "columns" in of:
        guess.add(name, of | times[0], table.roles["time"].why, column)
    else:
        guess.choose(name, table, "time", prefix, **times[0])


def _doubt(table: _Table) -> str:
    """Return what speaks against the column of clicks: it may be of the search, or of the item at large."""
    if "clicked" not in table.roles:
        return ""
    clicked, sheet = table.roles["clicked"], table.sheet
    cells = clicked.column.cells
    if clicked.header <= WHOLE_NAME:
        return ", of which only a part of the name says so"
    if len(clicked.column.distinct) < 2:
        return ", which says the same in every row"
    searches = [sheet.origin] if sheet.explode else table.cells("user_id", "query", "time")
    for of, keys in (("search", searches), ("item", table.cells("item_id"))):
        seen = defaultdict(list)
        for *key, cell in zip(*keys, cells, strict=True):
            seen[tuple(map(str, key))].append(cell)
        several = [one for one in seen.values() if len(one) > 1]
        if sum(map(len, several)) > len(cells) / 2 and all(len(set(one)) == 1 for one in several):
            return f", which says the same in all rows of {'a' if of == 'search' else 'an'} {of}"
    return ""


def _what(guess: Guess, table: _Table) -> None:
    """Write what a user did with the item."""
    for name in ("clicked", "liked"):
        yes = truth(table.roles[name].column) if name in table.roles else None
        more: dict[str, Any] = {"equals": yes} if yes else {}
        if name == "liked" and name in table.roles and table.roles[name].header <= WHOLE_NAME:
            guess.parts[guess.at].append(
                f"# liked = {toml({'column': table.name(name), **more})}    # likes?"
            )
            guess.notes.append(f"`{table.name(name)}` is left out: only a part of its name says liked")
        else:
            guess.choose(name, table, name, doubt=_doubt(table) if name == "clicked" else "", **more)
    if "play" in table.roles:
        name = table.name("play")
        units = {"ms": {"ms", "millis", "msec"}, "s": {"s", "sec", "secs", "seconds"}}
        unit = next((unit for unit, words in units.items() if words & set(words_of(name))), None)
        if unit:
            guess.choose("play_ms", table, "play", unit=unit)
        else:
            guess.parts[guess.at].append(f"# play_ms = {toml({'column': name, 'unit': 's'})}    # s or ms?")
            guess.notes.append(f"`{name}` is left out: its name does not say whether it counts s or ms")
