"""The explorer: pages made on the server, without a script; the address holds all of their state."""

from __future__ import annotations

import hashlib
import importlib.resources
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from crops.errors import UnknownItemError
from crops.report.render import label_meanings
from crops.serving.desk import Desk
from crops.serving.evidence import Evidence
from crops.serving.explain import Explained
from crops.serving.inputs import BadRequestError, check_k, check_query
from crops.serving.searcher import Job, Result
from crops.serving.view import SOURCE_NAMES, State, columns, filtered, headline, source_names
from crops.text import query_id

_EXAMPLES = 12
"""Training queries that the first page offers."""
_LENGTHS = (10, 20, 50)
"""Results that a page offers to show; more than the last are too much for one."""
_FOREVER = "public, max-age=31536000, immutable"


class Explorer:
    """Makes the pages."""

    def __init__(self, desk: Desk) -> None:
        """Make pages of what `desk` knows."""
        self._desk = desk
        self.style = _style()
        self._environment = _environment(hashlib.sha256(self.style.encode()).hexdigest()[:12])

    async def explore(self, request: Request) -> HTMLResponse:
        """Return the page of a search, or the first page where nothing is searched."""
        state, config = State.read(request.query_params), self._desk.service.config
        if not state.q.strip():
            examples = self._desk.evidence.queries[:_EXAMPLES] if self._desk.evidence else ()
            return self._page("start.html", state=State(), examples=examples)
        query = check_query(state.q, config)
        job = Job(check_k(state.k, min(config.max_k, _LENGTHS[-1])), query)
        return await self._desk.service.do(partial(self._results, state, job))

    def _results(self, state: State, job: Job) -> HTMLResponse:
        """Return the page of a search; runs in the queue."""
        desk, query = self._desk, job.query or ""
        results = {
            name: (slot.searcher.name, _found(slot.searcher.answer([job])[0]))
            for name, slot in desk.service.slots.items()
        }
        explained = self._explained(query, state.open)
        stages = desk.evidence.stages(query_id(query)) if desk.evidence else None
        full = columns(results, explained, stages, desk.senses)
        compared = len(full) == 2
        about = "senses" if desk.senses else "categories"
        return self._page(
            "results.html",
            state=state,
            columns=[filtered(column, state, compared=compared) for column in full],
            compared=compared,
            topics=sorted({entry.topic for column in full for entry in column.entries if entry.topic}),
            headline=headline(full[0], full[1], about) if compared else None,
            explained=explained,
        )

    def _explained(self, query: str, opened: int | None) -> Explained:
        """Return the evidence near the query, and that of the result that is open."""
        try:
            return self._desk.explain(query, [] if opened is None else [opened])
        except UnknownItemError:  # an old link: the item has left the index
            return self._desk.explain(query, [])

    async def group(self, request: Request) -> HTMLResponse:
        """Return the page of a query's training group.

        Raises:
            BadRequestError: there are no samples, or the query is none of at least k users.
        """
        query = check_query(request.query_params.get("q", ""), self._desk.service.config)
        if self._desk.evidence is None:
            raise BadRequestError(404, "this server knows no training data; start it with --samples")
        return await self._desk.service.do(partial(self._group, self._desk.evidence, query))

    def _group(self, evidence: Evidence, query: str) -> HTMLResponse:
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
        text = self._environment.get_template(name).render(desk=self._desk, lengths=_LENGTHS, **values)
        page = HTMLResponse(status_code=status, headers={"cache-control": "no-store"})
        # A broken letter in a stored title is no reason to fail.
        page.body = text.encode(errors="replace")
        page.headers["content-length"] = str(len(page.body))
        return page


def _found(answer: Result | Exception) -> Result:
    if isinstance(answer, Exception):
        raise answer
    return answer


def make_pages(explorer: Explorer) -> APIRouter:
    """Return the routes of the pages."""
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/", explorer.explore, response_class=HTMLResponse)
    router.add_api_route("/group", explorer.group, response_class=HTMLResponse)

    @router.get("/static/explorer.css")
    async def style() -> Response:
        return Response(explorer.style, media_type="text/css", headers={"cache-control": _FOREVER})

    return router


def _style() -> str:
    """Return the report's style sheet and the explorer's own."""
    sheets = (("crops.report", "style.css"), ("crops.serving", "explorer.css"))
    folders = ((importlib.resources.files(package) / "templates", name) for package, name in sheets)
    return "\n".join((folder / name).read_text(encoding="utf-8") for folder, name in folders)


def _environment(style_version: str) -> Environment:
    environment = Environment(
        loader=PackageLoader("crops.serving"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["source_names"] = source_names
    environment.globals.update(style_version=style_version, source_choices=list(SOURCE_NAMES.values()))
    return environment
