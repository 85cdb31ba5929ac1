"""What counts as the same query, and what text stands for a document."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

DOCUMENT_FIELDS = ("ocr_cover", "photo_caption", "keyword")
"""The item columns whose texts, joined in this order, are a document (real or generated)."""
CLICK_QUERY = "click_query"
"""The column of queries that led to clicks, which can be a part of the text, too."""
MINED_QUERY = "mined_query"
"""The same for queries that the mining adds (`crops expand`); no column of the contract."""
QUERIES = (CLICK_QUERY, MINED_QUERY)
"""They stand before the other fields: an encoder cuts a long text at its end (`training.max_tokens`)."""
SEPARATOR = "|"
"""Between queries in one column."""
CONTROL = r"[\x00-\x08\x0E-\x1B\x7F-\x84\x86-\x9F]"
"""Regular expression (Python, RE2, Java) of a control character that is no white space: it reads as a
space."""
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and symbols that are drawn as nothing: Hangul fillers and the blank Braille pattern."""
SPACELESS = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Scripts whose words are not, or not only, set apart by spaces: Thai, Lao, Tibetan, Burmese, Khmer, hiragana
and katakana, Han with its extensions, Hangul; as inside a class of a regular expression (Python, RE2)."""
_SYMBOLS = (
    "[\U0001f1e6-\U0001f1ff]{2}|[\u2190-\u21ff\u2300-\u23ff\u25a0-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]"
)
"""Flags, arrows, emoji and the like."""
_INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Mc", "Me")
_SPACES = {code: " " for code in range(0xA0) if re.fullmatch(CONTROL, chr(code))}


def has_text(text: str) -> bool:
    """Return whether there is a character to read: no white space, control or format character, mark, filler.

    Zero-width spaces and byte order marks are format characters; a mark alone combines with nothing.
    """
    return any(
        unicodedata.category(character) not in _INVISIBLE and character not in FILLERS for character in text
    )


def spaced(text: str) -> str:
    """Return `text` with each control character that is no white space replaced by a space."""
    return text.translate(_SPACES)


def spaced_sql(text: str) -> str:
    """Return the SQL expression (DuckDB, Spark) of `spaced`."""
    null, *others = map(chr, _SPACES)  # a null would end the text of a query
    return f"translate({text}, chr({ord(null)}) || '{''.join(others)}', '{' ' * len(_SPACES)}')"


def normalise_query(text: str) -> str:
    """Return `text` in NFKC form, casefolded, runs of white space and control characters as one space.

    A text with nothing to read (`has_text`) is the empty query.
    """
    normal = " ".join(spaced(unicodedata.normalize("NFKC", text)).casefold().split())
    return normal if has_text(normal) else ""


def words(text: str) -> Iterator[re.Match[str]]:
    """Find the words of `text` in NFKC form, casefolded; the name of the group that matched is its kind.

    `spaceless`: a run of a script without spaces between words; `word`: other letters, digits and their
    marks; `symbol`: one emoji or arrow.
    """
    return _word().finditer(unicodedata.normalize("NFKC", text).casefold())


@cache
def _word() -> re.Pattern[str]:
    # \w leaves out the vowel signs of Devanagari and the points of Arabic and Hebrew.
    marks = "".join(chr(n) for n in range(0x300, 0x1E950) if unicodedata.category(chr(n))[0] == "M")
    marks = re.sub(f"[{SPACELESS}\ufe00-\ufe0f]", "", marks)
    word = rf"(?:[^\W{SPACELESS}][{marks}]*)+"
    return re.compile(rf"(?P<spaceless>[{SPACELESS}]+)|(?P<word>{word})|(?P<symbol>{_SYMBOLS})")


def terms(text: str) -> list[str]:
    """Return the words of `text` (see `words`), runs without spaces as two neighbouring characters each.

    A character of such a run that stands alone is a term itself, as in Lucene's CJKAnalyzer.
    """
    found: list[str] = []
    for match in words(text):
        run = match.group()
        pairs = [run[at : at + 2] for at in range(len(run) - 1)] if match.lastgroup == "spaceless" else []
        found += pairs or [run]
    return found


def normalised_texts(raw: Iterable[str]) -> dict[str, str]:
    """Return the normalised form of each text; one with nothing to read is no query and is left out."""
    return {text: normal for text in raw if (normal := normalise_query(text))}


def query_id(text: str) -> int:
    """Return the signed first 64 bits of the SHA-256 of the normalised query text."""
    return content_id(normalise_query(text))


def content_id(text: str) -> int:
    """Return the signed first 64 bits of the SHA-256 of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def document_text(item: Mapping[str, str | None], fields: Sequence[str] = DOCUMENT_FIELDS) -> str:
    """Join the document fields of one item, without spaces around; missing and empty fields leave no trace.

    Args:
        item: one row of `items` or `synthetic_items`.
        fields: the columns that are read, in their order but for `QUERIES`, which come first and become words
            like any others.
    """
    fields = sorted(fields, key=lambda field: field not in QUERIES)
    texts = (spaced(item.get(field) or "") for field in fields)
    plain = (
        text.replace(SEPARATOR, " ") if field in QUERIES else text
        for field, text in zip(fields, texts, strict=True)
    )
    return " ".join(text for one in plain if (text := one.strip(" ")))


def document_text_sql(alias: str = "") -> str:
    """Return the SQL expression (DuckDB, Spark) of `document_text`, for texts without control characters.

    `crops check` turns these into spaces. What is trimmed is named: by itself DuckDB takes off any kind of
    space, Spark one.
    """
    dot = f"{alias}." if alias else ""
    fields = ", ".join(f"nullif(trim(both ' ' from {dot}{field}), '')" for field in DOCUMENT_FIELDS)
    return f"concat_ws(' ', {fields})"


class Document(NamedTuple):
    """What is shown of an item."""

    title: str
    text: str
    category: str | None


def document_of(row: Mapping[str, Any]) -> Document:
    """Return what is shown of a row of items or of generated items: the first text is the title."""
    texts = [text for name in DOCUMENT_FIELDS if (text := (row.get(name) or "").strip())]
    title, *rest = texts or ["(no text)"]
    return Document(title, " · ".join(rest), row.get("category"))


class Rendering(NamedTuple):
    """How rows of `items` and queries become the texts that an encoder reads."""

    columns: tuple[str, ...]
    """The item columns that are read beside `item_id`, those of them that are there."""
    document: Callable[[Mapping[str, Any]], str]
    """From one row of items to its text."""
    query: Callable[[str], str]
    """From a normalised query to its text."""

    def of(self, fields: Sequence[str]) -> Rendering:
        """Return it for documents of other fields; where ids are read, it stays as it is."""
        if self is not PLAIN or tuple(fields) == DOCUMENT_FIELDS:
            return self

        def queries_first(item: Mapping[str, Any]) -> str:
            return document_text(item, fields)

        return Rendering(tuple(fields), queries_first, str)


PLAIN = Rendering(DOCUMENT_FIELDS, document_text, str)
"""Documents and queries as people read them: what every text encoder takes."""
