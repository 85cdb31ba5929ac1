"""The explorer: pages made on the server, without a script; the address holds all of their state.

Results and evidence become plain values, which the templates lay out.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self
from urllib.parse import urlencode

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from crops.engine.evidence import TrainingEvidence
from crops.errors import UnknownItemError
from crops.labels import ORIGINS, POSITIVE_ORIGINS, Source, label_meanings
from crops.report.side_by_side import TOP_GRADE
from crops.serving.evidence import DEPTH, Added, Expansion, Explained, NearPair, NearQuery, Truth
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
_ENDS = 6
"""Of them those that gained, and those that lost most."""
_DEEP = 200
"""Ranks that are looked at for what is on one page only."""
_LENGTHS = (10, 20, 50)
"""Results that a page offers to show; more than the last are too much for one."""
GRADES = tuple(str(grade) for grade in range(TOP_GRADE + 1))
_FOREVER = "public, max-age=31536000, immutable"


class Explorer:
    """Makes the pages."""

    def __init__(self, service: Service, *, keyed: bool = False) -> None:
        """Make pages of what a server knows; `keyed` says whether requests must carry a key."""
        self._service, self._keyed = service, keyed
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
        self._environment.filters.update(source_names=source_names, by_source=by_source)
        self._environment.globals.update(
            service=service,
            lengths=_LENGTHS,
            style_version=hashlib.sha256(self.style.encode()).hexdigest()[:12],
            source_choices=list(SOURCE_NAMES.values()),
            source_tones=_SOURCE_TONES,
            source_meanings={SOURCE_NAMES[row.bit]: row.meaning for row in POSITIVE_ORIGINS},
            stage_meanings={f"was {row.stage}": row.meaning for row in ORIGINS if row.stage},
            never=_NEVER,
            meanings=label_meanings(),
            top_grade=TOP_GRADE,
            ends=_ENDS,
            depth=DEPTH,
            deep=_DEEP,
        )

    def routes(self) -> APIRouter:
        """Return the routes of the pages."""
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/", self.explore, response_class=HTMLResponse)
        router.add_api_route("/group", self.group, response_class=HTMLResponse)
        router.add_api_route("/judgements", self.judgements)

        @router.get("/static/explorer.css")
        async def style() -> Response:
            return Response(self.style, media_type="text/css", headers={"cache-control": _FOREVER})

        return router

    async def explore(self, request: Request) -> HTMLResponse:
        """Return the page of a search, or the first page where nothing is searched."""
        state, config = State.read(request.query_params), self._service.config
        if not state.q.strip() and state.like is None:
            examples = self._service.evidence.queries[:_EXAMPLES] if self._service.evidence else ()
            return self._page("start.html", state=State(), examples=examples)
        k = check_k(state.k, min(config.max_k, _LENGTHS[-1]))
        job = Job(k, item_id=state.like) if state.like is not None else Job(k, check_query(state.q, config))
        return await self._service.do(partial(self._results, state, job, str(request.base_url)))

    def _results(self, state: State, job: Job, address: str) -> HTMLResponse:
        """Return the page of a search, or of the items like one; runs in the queue."""
        service, query = self._service, job.query
        slots = service.slots if query is not None else {"index": service.slots["index"]}
        results: dict[str, tuple[str, Result]] = {}
        ranks: dict[str, dict[int, int]] = {}
        for name, slot in slots.items():
            answer, deep = slot.searcher.answer([job, job._replace(k=_DEEP, texts=False)])
            if isinstance(answer, Exception):
                raise answer
            if isinstance(deep, Exception):
                raise deep
            results[name] = slot.searcher.name, answer
            ranks[name] = {item: rank for rank, item in enumerate(deep.ids, 1)}
        explained, stages, like, shown = Explained(False, (), {}), None, None, ""
        if query is not None:
            try:
                explained = service.explain(query, [] if state.open is None else [state.open])
            except UnknownItemError:  # an old link: the item has left the index
                explained = service.explain(query, [])
            stages = service.evidence.stages(query_id(query)) if service.evidence else None
        elif job.item_id is not None:
            searcher = slots["index"].searcher
            like = searcher.documents([job.item_id])[job.item_id]
            (shown,) = searcher.index.shown(np.array([job.item_id]))
        full = columns(results, ranks, explained, stages, service.truth, service.expansion)
        gains = None
        if query is not None and stages is not None and service.evidence and service.truth:
            full, gains = graded(full, query_id(query), service.truth)
        taught = None
        if query is not None and stages is not None and service.evidence:
            everything = {entry.item_id for column in full for entry in column.entries}
            taught = service.evidence.labels(query_id(query), everything)
        compared = len(full) == 2
        about = "senses" if service.truth else "categories"
        return self._page(
            "results.html",
            state=state,
            columns=[filtered(column, state, compared=compared) for column in full],
            compared=compared,
            topics=sorted({entry.topic for column in full for entry in column.entries if entry.topic}),
            headline=headline(full[0], full[1], about) if compared else None,
            gains=gains,
            taught=taught,
            like=like,
            explained=explained,
            curl=curl(job, shown, address, keyed=self._keyed),
        )

    async def judgements(self, request: Request) -> Response:
        """Return what was judged on a page as TREC qrels; nothing is kept.

        Raises:
            BadRequestError: nothing was judged, or not with a grade.
        """
        query = check_query(request.query_params.get("q", ""), self._service.config)
        given = {name: grade for name, grade in request.query_params.items() if name != "q" and grade}
        if not given:
            raise BadRequestError(422, "no result was judged; choose a grade for at least one")
        for name, grade in given.items():
            if not re.fullmatch("-?[0-9]{1,18}", name) or grade not in GRADES:
                raise BadRequestError(
                    422, f"{name[:20]} = {grade[:20]!r} is no grade of an item, 0 to {TOP_GRADE}"
                )
        shown = await self._service.do(partial(self._ids, [int(name) for name in given]))
        lines = [
            f"{query_id(query)} 0 {item} {grade}\n" for item, grade in zip(shown, given.values(), strict=True)
        ]
        name = 'attachment; filename="judgements.qrels"'
        headers = {"content-disposition": name, "cache-control": "no-store"}
        return Response("".join(lines), media_type="text/plain; charset=utf-8", headers=headers)

    def _ids(self, numbers: Sequence[int]) -> list[str]:
        """Return the ids of items as they stand in qrels; runs in the queue."""
        index, ids = self._service.slots["index"].searcher.index, np.array(numbers, dtype=np.int64)
        if (unknown := ids[~index.known(ids)]).size:
            raise UnknownItemError(int(unknown[0]), "the index", unknown.size)
        shown = index.shown(ids)
        return [
            str(number) if len(own.split()) != 1 else own for number, own in zip(numbers, shown, strict=True)
        ]

    async def group(self, request: Request) -> HTMLResponse:
        """Return the page of the training group of a query of at least k users.

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
    like: int | None = None
    """The item that others like it are searched for, in place of a query."""
    judge: bool = False
    """Whether results can be graded."""

    @classmethod
    def read(cls, values: Mapping[str, str]) -> Self:
        """Return the state in the parameters of an address; what is not known of filters is no filter.

        Raises:
            BadRequestError: k or open is not a number.
        """
        numbers = {}
        for name in ("k", "open", "like"):
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
            like=numbers.get("like"),
            judge=values.get("judge") == "True",
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
    deep_rank: int | None = None
    """Its rank in what the other index finds down to `_DEEP`, the other column or below."""
    grade: int | None = None
    """How well it truly answers, where a simulation knows."""
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


@dataclass(frozen=True)
class Line:
    """What a source says for a result, over all pairs that are named for it."""

    source: str
    like: NearPair | None
    """The nearest pair of another item that is like this result; None where it was the result itself."""
    events: int | None
    """Of the trails that are told; None where none is."""
    via: tuple[str, ...]
    """P1: later queries."""
    queries: tuple[NearQuery, ...]
    """Training queries of the pairs, the nearest first."""


def by_source(pairs: Sequence[NearPair], item: int) -> list[Line]:
    """Return what speaks for a result, the most telling source first: of the item itself, then of others."""
    lines = []
    for source, name in SOURCE_NAMES.items():
        for itself in (True, False):
            said = [near for near in pairs if source in near.pair.sources]
            own = [near for near in said if (near.pair.item_id == item) == itself]
            if not own:
                continue
            trails = [trail for near in own for trail in near.pair.trails if trail.source == source]
            counts = [trail.events for trail in trails if trail.events is not None]
            via = dict.fromkeys(text for trail in trails for text in trail.via)
            queries = {near.near.query.query_id: near.near for near in own}
            like = None if itself else max(own, key=lambda near: near.similarity)
            told = sum(counts) if counts else None
            lines.append(Line(name, like, told, tuple(via), tuple(queries.values())))
    return lines


def columns(
    results: Mapping[str, tuple[str, Result]],
    deep: Mapping[str, Mapping[int, int]],
    explained: Explained,
    stages: Mapping[int, Source] | None,
    truth: Truth | None,
    expansion: Expansion | None = None,
) -> list[Column]:
    """Return the columns of a page.

    Args:
        results: title and result by name, `baseline` (if there is one) and `index`.
        deep: by name the ranks of items, further down than the results.
        explained: the evidence behind the result of `index` that is open.
        stages: what the old system did with items for this query.
        truth: what items are about, in a simulation; their category stands for it otherwise.
        expansion: the queries that joined the texts of `index`.
    """
    ranks = {name: {item: at for at, item in enumerate(one.ids, 1)} for name, (_, one) in results.items()}
    topics: dict[int, str | None] = {
        item: truth.of(item) if truth else document.category
        for _, one in results.values()
        for item, document in zip(one.ids, one.documents, strict=True)
    }
    tones = {topic: at % _TONES + 1 for at, topic in enumerate(dict.fromkeys(topics.values())) if topic}
    made = []
    for name, (title, result) in results.items():
        other = next((other for other in ranks if other != name), name)
        others = ranks[other] if other != name else {}
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
                deep_rank=deep[other].get(item),
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
    kept = [entry for entry in column.entries if not state.topic or entry.topic == state.topic]
    if compared and state.show == "changed":
        kept = [entry for entry in kept if entry.other_rank is None]
    return replace(column, entries=tuple(kept))


def graded(columns: Sequence[Column], query: int, truth: Truth) -> tuple[list[Column], list[float] | None]:
    """Return unfiltered columns with the grades of their entries, and how many answer the mean searcher.

    `query` is the id of a training query of at least k people.
    """
    made, gains = [], []
    for column in columns:
        found = truth.answers(query, [entry.item_id for entry in column.entries])
        if found is None:
            return list(columns), None
        entries = tuple(replace(entry, grade=found.grades[entry.item_id]) for entry in column.entries)
        made.append(replace(column, entries=entries))
        gains.append(found.relevant)
    return made, gains


def curl(job: Job, shown: str, address: str, *, keyed: bool) -> str:
    """Return the command that asks the server the same in a shell; `shown` is the id of the job's item."""
    asked = {"query": job.query} if job.query is not None else {"item_id": shown}
    body = json.dumps({**asked, "k": job.k}, ensure_ascii=False)
    path = "search" if job.query is not None else "similar"
    key = ' -H "X-API-Key: $CROPS_API_KEY"' if keyed else ""
    json_header = "-H 'content-type: application/json'"
    return f"curl -s {shlex.quote(address + path)} {json_header}{key} -d {shlex.quote(body)}"


def headline(before: Column, after: Column, about: str) -> str:
    """Return what changed between unfiltered columns in a sentence; `about` is what topics are called."""
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
