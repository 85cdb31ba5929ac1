"""What counts as the same query, and what text stands for a document."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

DOCUMENT_FIELDS = ("ocr_cover", "photo_caption", "keyword")
"""The item columns whose texts, joined in this order, are a document (real or generated)."""


def normalise_query(text: str) -> str:
    """Return `text` in NFKC form, casefolded, with runs of white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def normalised_texts(raw: Iterable[str]) -> dict[str, str]:
    """Return the normalised form of each text; one of white space only is no query and is left out."""
    return {text: normal for text in raw if (normal := normalise_query(text))}


def query_id(text: str) -> int:
    """Return the signed first 64 bits of the SHA-256 of the normalised query text."""
    return content_id(normalise_query(text))


def content_id(text: str) -> int:
    """Return the signed first 64 bits of the SHA-256 of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def document_text(item: Mapping[str, str | None]) -> str:
    """Join the document fields of one item; missing and empty fields leave no trace.

    Args:
        item: one row of `items` or `synthetic_items`; only `DOCUMENT_FIELDS` are read.
    """
    return " ".join(text for field in DOCUMENT_FIELDS if (text := (item.get(field) or "").strip()))


def document_text_sql(alias: str = "") -> str:
    """Return the SQL expression that equals `document_text` for ASCII white space (DuckDB and Spark)."""
    dot = f"{alias}." if alias else ""
    fields = ", ".join(f"nullif(trim({dot}{field}), '')" for field in DOCUMENT_FIELDS)
    return f"concat_ws(' ', {fields})"


class Rendering(NamedTuple):
    """How rows of `items` and queries become the texts that an encoder reads."""

    columns: tuple[str, ...]
    """The item columns that are read beside `item_id`, those of them that are there."""
    document: Callable[[Mapping[str, Any]], str]
    """From one row of items to its text."""
    query: Callable[[str], str]
    """From a normalised query to its text."""


PLAIN = Rendering(DOCUMENT_FIELDS, document_text, str)
"""Documents and queries as people read them: what every text encoder takes."""
