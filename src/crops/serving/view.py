"""What the explorer shows, as plain values: made from results and evidence, laid out by the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self
from urllib.parse import urlencode

from crops.labels import ORIGINS, POSITIVE_ORIGINS, Source
from crops.serving.evidence import Explained, NearPair, Senses
from crops.serving.searcher import Result
from crops.serving.service import BadRequestError
from crops.text import Document

Show = Literal["all", "changed"]
_TONES = 6
"""Colours of the report's style sheet."""

SOURCE_NAMES = {row.bit: row.stage or row.name for row in ORIGINS if row in POSITIVE_ORIGINS}
"""The positive sources as the paper names them, the most telling first."""
SOURCE_TONES = {SOURCE_NAMES[row.bit]: row.tone for row in POSITIVE_ORIGINS}
STAGE_NAMES = {row.bit: f"was {row.stage}" for row in ORIGINS if row.stage}
NEVER = "never considered"
"""The stage of what the old system had not even recalled for the query."""


@dataclass(frozen=True)
class State:
    """The state of the page: all of it is in the URL."""

    q: str = ""
    k: int = 10
    show: Show = "all"
    topic: str = ""
    open: int | None = None
    """The item whose evidence is open."""

    @classmethod
    def read(cls, values: Mapping[str, str]) -> Self:
        """Return the state in the parameters of an address; what is not known of filters is no filter.

        Raises:
            BadRequestError: k or open is not a number.
        """
        numbers = {}
        for name in ("k", "open"):
            if text := values.get(name, ""):
                try:
                    numbers[name] = int(text)
                except ValueError:
                    raise BadRequestError(422, f"{name} = {text[:20]!r} is not a number") from None
                if not -(2**63) <= numbers[name] < 2**63:
                    raise BadRequestError(422, f"{name} = {text[:20]!r} has more than 64 bits")
        show: Show = "changed" if values.get("show") == "changed" else "all"
        return cls(
            q=values.get("q", ""),
            k=numbers.get("k", cls.k),
            show=show,
            topic=values.get("topic", ""),
            open=numbers.get("open"),
        )

    def link(self, **changes: object) -> str:
        """Return the address of this state with some parts changed."""
        values = {**vars(self), **changes}
        default = vars(State())
        kept = {name: value for name, value in values.items() if value != default[name]}
        return "/?" + urlencode(kept) if kept else "/"


@dataclass(frozen=True)
class Entry:
    """One result of a column."""

    rank: int
    item_id: int
    document: Document
    score: float
    topic: str | None
    tone: int
    """Colour of the topic; 0 is none."""
    stage: str | None
    """What the old system did with it for this query; None where that is not known or not to be told."""
    other_rank: int | None
    """Its rank in the other column."""
    pairs: tuple[NearPair, ...] = ()
    """What speaks for it, where it is the result that is open."""


@dataclass(frozen=True)
class Column:
    """What one index answers."""

    name: str
    """`baseline` or `index`."""
    title: str
    version: str
    entries: tuple[Entry, ...]
    found: int
    """Results before the filters."""
    note: str | None = None
    """Why nothing was found."""

    @property
    def topics(self) -> int:
        """Return how many topics there are."""
        return len({entry.topic for entry in self.entries if entry.topic is not None})


def source_names(sources: Source) -> list[str]:
    """Return the names of the positive sources in a mask."""
    return [name for source, name in SOURCE_NAMES.items() if source in sources]


def columns(
    results: Mapping[str, tuple[str, Result]],
    explained: Explained | None,
    stages: Mapping[int, Source] | None,
    senses: Senses | None,
) -> list[Column]:
    """Return the columns of a page.

    Args:
        results: title and result by name, `baseline` (if there is one) and `index`.
        explained: the evidence behind the result of `index` that is open.
        stages: what the old system did with items for this query.
        senses: what items are about, in a simulation; their category stands for it otherwise.
    """
    ranks = {name: {item: at for at, item in enumerate(one.ids, 1)} for name, (_, one) in results.items()}
    topics = _topics([one for _, one in results.values()], senses)
    tones = {topic: at % _TONES + 1 for at, topic in enumerate(dict.fromkeys(topics.values())) if topic}
    made = []
    for name, (title, result) in results.items():
        others = next((ranks[other] for other in ranks if other != name), {})
        pairs = explained.pairs if explained and name == "index" else {}
        entries = tuple(
            Entry(
                rank=at,
                item_id=item,
                document=document,
                score=score,
                topic=topics[item],
                tone=tones.get(topics[item] or "", 0),
                stage=None if stages is None else STAGE_NAMES.get(stages.get(item, Source(0)), NEVER),
                other_rank=others.get(item),
                pairs=pairs.get(item, ()),
            )
            for at, (item, score, document) in enumerate(
                zip(result.ids, result.scores, result.documents, strict=True), 1
            )
        )
        made.append(Column(name, title, result.version, entries, len(entries), result.note))
    return made


def filtered(column: Column, state: State, *, compared: bool) -> Column:
    """Return a column with the entries that the page's filters keep."""
    return replace(
        column,
        entries=tuple(
            entry
            for entry in column.entries
            if not (compared and state.show == "changed" and entry.other_rank is not None)
            and (not state.topic or entry.topic == state.topic)
        ),
    )


def _topics(results: Sequence[Result], senses: Senses | None) -> dict[int, str | None]:
    """Return what each item is about."""
    return {
        item: senses.of(item) if senses else document.category
        for one in results
        for item, document in zip(one.ids, one.documents, strict=True)
    }


def headline(before: Column, after: Column, about: str) -> str:
    """Return what changed, in one sentence; the columns as they were before the filters.

    Args:
        before: the baseline's.
        after: the index's.
        about: what topics are called, in the plural.
    """
    new = [entry for entry in after.entries if entry.other_rank is None]
    if not new:
        return "Both answer with the same items."
    parts = [f"{len(new)} of {len(after.entries)} results are new"]
    unseen = [entry.stage for entry in new].count(NEVER)
    if unseen:
        parts.append(f"{unseen} of them had never been considered for this query")
    if before.topics != after.topics:
        parts.append(f"{about}: {after.topics} instead of {before.topics}")
    return "; ".join(parts) + "."
