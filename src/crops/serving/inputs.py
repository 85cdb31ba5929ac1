"""What may be asked, and what is said to a request that cannot be answered."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from crops.config import ServingConfig
from crops.text import normalise_query

_EXACT = 2**53 - 1
"""The largest whole number that every reader of JSON keeps."""


def _read_id(given: object) -> object:
    """Return an id of 64 bits, from the string of its digits or from a number that no reader rounds.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str) and re.fullmatch("0|-?[1-9][0-9]{0,18}", given):
        if -(2**63) <= int(given) < 2**63:
            return int(given)
    elif isinstance(given, int) and not isinstance(given, bool):
        if abs(given) <= _EXACT:
            return given
        raise PydanticCustomError(
            "id",
            "a number above 2^53 may have been rounded on its way; send the id as a string of digits",
        )
    raise PydanticCustomError("id", "an id is a string of digits, within 64 bits")


Id = Annotated[
    int,
    BeforeValidator(_read_id),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": "^(0|-?[1-9][0-9]{0,18})$"},
                {"type": "integer", "minimum": -_EXACT, "maximum": _EXACT},
            ]
        }
    ),
]
"""An id of 64 bits: many readers of JSON round numbers above 2^53, so it travels as a string."""
Moment = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Which = Literal["index", "baseline"]


class BadRequestError(Exception):
    """A request that cannot be answered; the message says what to change."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Request(BaseModel):
    """What every request is: JSON whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Wanted(Request):
    """Which items may be found; all that is given must hold."""

    item_ids: Annotated[list[Id], Field(max_length=10_000)] | None = None
    author_id: Id | None = None
    category: str | None = Field(None, max_length=200)
    uploaded_since: Moment | None = None
    """Microseconds since 1970 UTC, inclusive."""
    uploaded_before: Moment | None = None
    """Microseconds since 1970 UTC, exclusive."""


class ListRequest(Request):
    """What every request for a list of items may say."""

    k: int = 10
    """Length of the list."""
    where: Wanted | None = None
    index: Which = "index"
    """`baseline` asks the index that is compared with, where the server has one."""
    texts: bool = True
    """Whether titles and texts are wanted, or ids and scores only."""


class SearchRequest(ListRequest):
    """Find items for a text."""

    query: str


class SimilarRequest(ListRequest):
    """Find items like an item."""

    item_id: Id


class ExplainRequest(Request):
    """Say which training pairs speak for items as answers to a text."""

    query: str
    item_ids: list[Id] = Field(min_length=1, max_length=100)


def check_query(text: str, config: ServingConfig) -> str:
    """Return a query as it is searched: normalised.

    Raises:
        BadRequestError: it is empty, too long, or holds half of a surrogate pair.
    """
    if len(text) > config.max_query_chars:
        raise BadRequestError(
            422, f"the query has {len(text):,} characters; at most {config.max_query_chars:,} are searched"
        )
    half = next((letter for letter in text if unicodedata.category(letter) == "Cs"), None)
    if half is not None:
        raise BadRequestError(
            422, f"the query holds U+{ord(half):04X}, half of a character; send the text that was typed"
        )
    query = normalise_query(text)
    if not query:
        raise BadRequestError(422, "the query is empty; give at least one word")
    return query


def check_k(k: int, most: int) -> int:
    """Return k.

    Raises:
        BadRequestError: it is no length of a list that the server gives.
    """
    if not 1 <= k <= most:
        raise BadRequestError(422, f"k = {k}: ask for 1 to {most:,} results")
    return k
