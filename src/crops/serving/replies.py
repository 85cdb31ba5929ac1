"""What is answered, as JSON; ids are strings, as many readers round numbers above 2^53."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel

from crops.labels import Source
from crops.serving.explain import NearPair, NearQuery
from crops.serving.view import SOURCE_NAMES, source_names


class Hit(BaseModel):
    """An item that was found."""

    rank: int
    item_id: str
    score: float
    title: str | None
    text: str | None


class SearchReply(BaseModel):
    """What was found, best first, and in which version of the index."""

    index: str
    version: str
    hits: list[Hit]
    note: str | None = None
    """Why nothing was found, where that is known."""


class Told(BaseModel):
    """What a source says; counts are null where they stand for too few people."""

    source: str
    events: int | None
    users: int | None
    items: int | None = None
    via: list[str] = []
    """Later queries of enough people under which an item was consumed (P1)."""


class Near(BaseModel):
    """A training query near the one asked."""

    query: str
    similarity: float
    searches: int
    users: int
    positives: list[Told]

    @classmethod
    def of(cls, near: NearQuery) -> Self:
        """Return what is told of it."""
        totals = [
            Told(source=_name(total.source), events=total.events, users=total.users, items=total.items)
            for total in near.query.totals
        ]
        query = near.query
        return cls(
            query=query.text,
            similarity=near.similarity,
            searches=query.searches,
            users=query.users,
            positives=totals,
        )


class Because(BaseModel):
    """A training pair that speaks for an item."""

    query: str
    query_similarity: float
    item_id: str
    """Negative: a document that a language model wrote."""
    title: str
    item_similarity: float
    label: int
    sources: list[str]
    written_by: str | None
    evidence: list[Told]

    @classmethod
    def of(cls, near: NearPair) -> Self:
        """Return what is told of it."""
        pair = near.pair
        told = [
            Told(source=_name(trail.source), events=trail.events, users=trail.users, via=list(trail.via))
            for trail in pair.trails
        ]
        return cls(
            query=near.near.query.text,
            query_similarity=near.near.similarity,
            item_id=str(pair.item_id),
            title=pair.document.title,
            item_similarity=near.similarity,
            label=pair.label,
            sources=source_names(pair.sources),
            written_by=pair.model,
            evidence=told,
        )


class Trace(BaseModel):
    """An item with the training pairs that speak for it, the nearest first."""

    item_id: str
    pairs: list[Because]


class ExplainReply(BaseModel):
    """Why items are found for a query."""

    k: int
    """Whatever is named or counted stands for at least this many people."""
    known: bool
    """Whether the query itself is a training query of at least k people."""
    queries: list[Near]
    items: list[Trace]


class Health(BaseModel):
    """That the server answers."""

    status: str
    versions: dict[str, str]


class Problem(BaseModel):
    """Why there is no answer, and what to change."""

    detail: str


def _name(source: Source) -> str:
    return SOURCE_NAMES[source]
