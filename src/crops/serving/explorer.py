"""The explorer: pages made on the server, without a script; the address holds all of their state.

Results and evidence become plain values, which the templates lay out.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from crops.engine.evidence import TrainingEvidence
from crops.errors import UnknownItemError
from crops.labels import ORIGINS, POSITIVE_ORIGINS, Source, label_meanings
from crops.serving.evidence import Added, Expansion, Explained, NearPair, Senses
from crops.serving.searcher import Job, Result
from crops.serving.service import BadRequestError, Service, check_k, check_query
from crops.text import Document, query_id

Show = Literal["all", "changed"]
_TONES = 6
"""Colours of the report's style sheet."""
SOURCE_NAMES = {row.bit: row.stage or row.name for row in ORIGINS if row in POSITIVE_ORIGINS}
"""The positive sources as the paper names them, the most telling first."""
_SOURCE_TONES = {SOURCE_NAMES[row.bit]: row.tone for row in POSITIVE_ORIGINS}
_STAGE_NAMES = {row.bit: f"was {row.stage}" for row in ORIGINS if row.stage}
_NEVER = "never considered"
"""The stage of what the old system had not even recalled for the query."""
_EXAMPLES = 12
"""Training queries that the first page offers."""
_LENGTHS = (10, 20, 50)
"""Results that a page offers to show; more than the last are too much for one."""
_FOREVER = "public, max-age=31536000, immutable"


class Explorer:
    """Makes the pages."""

    def __init__(self, service: Service) -> None:
        """Make pages of what a server knows."""
        self._service = service
        self._environment = Environment(
            loader=PackageLoader("crops.serving"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        sheets = (("crops.report", "style.css"), ("crops.serving", "explorer.css"))
        folders = ((importlib.resources.files(package) / "templates", name) for package, name in sheets)
        self.style = "\n".join((folder / name).read_text(encoding="utf-8") for folder, name in folders)
        self._environment.filters["source_names"] = source_names
        self._environment.globals.update(
            service=service,
            lengths=_LENGTHS,
            style_version=hashlib.sha256(self.style.encode()).hexdigest()[:12],
            source_choices=list(SOURCE_NAMES.values()),
            source_tones=_SOURCE_TONES,
            source_meanings={SOURCE_NAMES[row.bit]: row.meaning for row in POSITIVE_ORIGINS},
        )

    def routes(self) -> APIRouter:
        """Return the routes of the pages."""
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/", self.explore, response_class=HTMLResponse)
        router.add_api_route("/group", self.group, response_class=HTMLResponse)

        @router.get("/static/explorer.css")
        async def style() -> Response:
            return Response(self.style, media_type="text/css", headers={"cache-control": _FOREVER})

        return router

    async def explore(self, request: Request) -> HTMLResponse:
        """Return the page of a search, or the first page where nothing is searched."""
        state, config = State.read(request.query_params), self._service.config
        if not state.q.strip():
            examples = self._service.evidence.queries[:_EXAMPLES] if self._service.evidence else ()
            return self._page("start.html", state=State(), examples=examples)
        query = check_query(state.q, config)
        job = Job(check_k(state.k, min(config.max_k, _LENGTHS[-1])), query)
        return await self._service.do(partial(self._results, state, job))

    def _results(self, state: State, job: Job) -> HTMLResponse:
        """Return the page of a search; runs in the queue."""
        service, query = self._service, job.query or ""
        results: dict[str, tuple[str, Result]] = {}
        for name, slot in service.slots.items():
            answer = slot.searcher.answer([job])[0]
            if isinstance(answer, Exception):
                raise answer
            results[name] = slot.searcher.name, answer
        try:
            explained = service.explain(query, [] if state.open is None else [state.open])
        except UnknownItemError:  # an old link: the item has left the index
            explained = service.explain(query, [])
        stages = service.evidence.stages(query_id(query)) if service.evidence else None
        full = columns(results, explained, stages, service.senses, service.expansion)
        compared = len(full) == 2
        about = "senses" if service.senses else "categories"
        return self._page(
            "results.html",
            state=state,
            columns=[filtered(column, state, compared=compared) for column in full],
            compared=compared,
            topics=sorted({entry.topic for column in full for entry in column.entries if entry.topic}),
            headline=headline(full[0], full[1], about) if compared else None,
            explained=explained,
        )

    async def group(self, request: Request) -> HTMLResponse:
        """Return the page of a query's training group.

        Raises:
            BadRequestError: there are no samples, or the query is none of at least k users.
        """
        query = check_query(request.query_params.get("q", ""), self._service.config)
        return await self._service.do(partial(self._group, self._service.told(), query))

    def _group(self, evidence: TrainingEvidence, query: str) -> HTMLResponse:
        """Return the page of a training group; runs in the queue."""
        known = evidence.query(query_id(query))
        if known is None:
            raise BadRequestError(404, f"“{query}” is no training query of at least {evidence.k} people")
        pairs = evidence.group(known.query_id)
        labels = sorted({pair.label for pair in pairs}, reverse=True)
        return self._page(
            "group.html",
            state=State(q=query),
            known=known,
            levels=[(label, [pair for pair in pairs if pair.label == label]) for label in labels],
            meanings=label_meanings(),
        )

    def error(self, status: int, detail: str, asked: str = "") -> HTMLResponse:
        """Return the page that says what is wrong with a request."""
        return self._page("error.html", status, state=State(q=asked), detail=detail)

    def _page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:  # noqa: ANN401 (any template)
        text = self._environment.get_template(name).render(**values)
        page = HTMLResponse(status_code=status, headers={"cache-control": "no-store"})
        # A broken letter in a stored title is no reason to fail.
        page.body = text.encode(errors="replace")
        page.headers["content-length"] = str(len(page.body))
        return page


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
    shown: str
    """The id as its source writes it."""
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
    added: tuple[Added, ...] = ()
    """Queries that joined its text."""


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
    explained: Explained,
    stages: Mapping[int, Source] | None,
    senses: Senses | None,
    expansion: Expansion | None = None,
) -> list[Column]:
    """Return the columns of a page.

    Args:
        results: title and result by name, `baseline` (if there is one) and `index`.
        explained: the evidence behind the result of `index` that is open.
        stages: what the old system did with items for this query.
        senses: what items are about, in a simulation; their category stands for it otherwise.
        expansion: the queries that joined the texts of `index`.
    """
    ranks = {name: {item: at for at, item in enumerate(one.ids, 1)} for name, (_, one) in results.items()}
    topics = _topics([one for _, one in results.values()], senses)
    tones = {topic: at % _TONES + 1 for at, topic in enumerate(dict.fromkeys(topics.values())) if topic}
    made = []
    for name, (title, result) in results.items():
        others = next((ranks[other] for other in ranks if other != name), {})
        pairs = explained.pairs if name == "index" else {}
        entries = tuple(
            Entry(
                rank=at,
                item_id=item,
                shown=shown,
                document=document,
                score=score,
                topic=topics[item],
                tone=tones.get(topics[item] or "", 0),
                stage=None if stages is None else _STAGE_NAMES.get(stages.get(item, Source(0)), _NEVER),
                other_rank=others.get(item),
                pairs=pairs.get(item, ()),
                added=expansion.of(item) if expansion and name == "index" else (),
            )
            for at, (item, shown, score, document) in enumerate(
                zip(result.ids, result.shown, result.scores, result.documents, strict=True), 1
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
        about: what topics are called, in the plural.
    """
    new = [entry for entry in after.entries if entry.other_rank is None]
    if not new:
        return "Both answer with the same items."
    said = [f"{len(new)} of {len(after.entries)} results are new"]
    unseen = [entry.stage for entry in new].count(_NEVER)
    if unseen:
        said.append(f"{unseen} of them had never been considered for this query")
    if before.topics != after.topics:
        said.append(f"{about}: {after.topics} instead of {before.topics}")
    return "; ".join(said) + "."
