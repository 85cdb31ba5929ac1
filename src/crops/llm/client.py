"""Generate documents: bounded concurrency, resumable, never fatal for a bad answer, never silent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from rich.progress import Progress, TaskID

from crops.llm.endpoint import Answer, Ask, Endpoint, connect
from crops.llm.guards import MIN_USERS, check_request, clean_request
from crops.llm.prompt import Prompt, Request
from crops.llm.store import Row, append_row, open_append, quarantine_path, read_rows, request_key
from crops.outputs import console, progress

MAX_OUTAGE = 8
"""After this many calls in a row without any answer the endpoint counts as down."""
REPORT_S = 60.0
"""Seconds between progress lines where no terminal shows a bar."""


def generate(
    requests: Iterable[Request],
    prompt: Prompt,
    endpoint: Endpoint,
    cache: Path,
    *,
    min_users: int = MIN_USERS,
    token_budget: int | None = None,
) -> dict[str, int]:
    """Append one document per request to the JSONL file `cache`; what it already answers is not sent again.

    What is refused goes to `quarantine_path(cache)` with the reason. Of a refused request only the key
    and the reason are kept, not its text. An answer that the model gave and the guards refused is not
    asked for again (the same seed would bring it again) until its row is deleted; calls that got no answer
    are, by the next run.

    Args:
        requests: what to write; equal ones are sent once.
        prompt: the template.
        endpoint: any OpenAI-compatible server.
        cache: one JSON object per line, appended.
        min_users: k-anonymity: queries of fewer users are refused.
        token_budget: stop sending once the answers of this call have used this many tokens.

    Returns:
        Counts: `written`, `cached`, `quarantined_before`, `tokens`, `not_sent` (budget or outage) and one
        `refused:<reason>` per reason.

    Raises:
        MissingExtraError: the `openai` package is not installed.
        CropsError: the endpoint is another machine and that is not allowed; the cache holds a broken line.
    """
    ask = connect(endpoint, prompt)
    counts: Counter[str] = Counter(written=0, cached=0, quarantined_before=0, tokens=0, not_sent=0)
    keyed = {request_key(endpoint.identity, prompt.version, request): request for request in requests}
    done = {row.get("key") for row in read_rows(cache)}
    refused = {row.get("key"): row.get("final") for row in read_rows(quarantine_path(cache))}
    todo: dict[str, Request] = {}
    with open_append(cache) as documents, open_append(quarantine_path(cache)) as quarantine:
        for key, request in keyed.items():
            if key in done:
                counts["cached"] += 1
            elif reason := check_request(request, min_users):
                counts[f"refused:{reason}"] += 1
                if key not in refused:
                    append_row(quarantine, {"key": key, "reason": reason, "final": False})
            elif refused.get(key):
                counts["quarantined_before"] += 1
            else:
                todo[key] = request
        run = _Run(prompt, endpoint, documents, quarantine, counts)
        run.answer_all(ask, todo, token_budget)
    return dict(counts)


@dataclass
class _Run:
    """The state of one `generate` call: where rows go and what was counted."""

    prompt: Prompt
    endpoint: Endpoint
    documents: IO[bytes]
    quarantine: IO[bytes]
    counts: Counter[str]
    outage: int = 0
    """Calls in a row that brought no answer."""

    def answer_all(self, ask: Ask, todo: dict[str, Request], token_budget: int | None) -> None:
        """Send the requests, at most `concurrency` at once, and file the answers as they come."""
        left = iter(todo.items())
        pool = ThreadPoolExecutor(self.endpoint.concurrency)
        flying: dict[Future[Answer], tuple[str, Request]] = {}
        watch = _Watch(len(todo))
        try:
            with watch:
                while True:
                    if not self._must_stop(token_budget):
                        for key, request in islice(left, self.endpoint.concurrency - len(flying)):
                            flying[pool.submit(ask, request)] = (key, request)
                    if not flying:
                        break
                    for future in wait(flying, return_when=FIRST_COMPLETED).done:
                        self._file(*flying.pop(future), future.result())
                        watch.step(self.counts)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self.counts["not_sent"] = sum(1 for _ in left)
        if unsent := self.counts["not_sent"]:
            down = self.outage >= MAX_OUTAGE
            cause = "the endpoint does not answer" if down else "the token budget is used up"
            console.print(f"[yellow]{unsent} requests not sent: {cause}; run again to go on[/yellow]")

    def _must_stop(self, token_budget: int | None) -> bool:
        spent = token_budget is not None and self.counts["tokens"] >= token_budget
        return spent or self.outage >= MAX_OUTAGE

    def _file(self, key: str, request: Request, answer: Answer) -> None:
        self.outage = 0 if answer.final else self.outage + 1
        self.counts["tokens"] += answer.tokens
        row: Row = {"key": key, "query": request.query}
        exemplar = clean_request(request).exemplar
        origin: Row = {
            "angle": self.prompt.angle(request),
            "exemplar": {"item_id": exemplar.item_id, **exemplar.texts},
            "model": self.endpoint.model,
            "model_sha256": self.endpoint.model_sha256,
            "prompt_version": self.prompt.version,
            "seed": request.seed,
            "temperature": self.prompt.temperature,
            "tokens": answer.tokens,
            "seconds": round(answer.seconds, 2),
        }
        if answer.document is None:
            self.counts[f"refused:{answer.reason}"] += 1
            refusal: Row = {"reason": answer.reason, "final": answer.final, "detail": answer.detail}
            append_row(self.quarantine, {**row, **refusal, **origin})
        else:
            self.counts["written"] += 1
            append_row(self.documents, {**row, **answer.document, **origin})


class _Watch:
    """Rate, tokens/s and time left: a bar on a terminal, a line a minute elsewhere."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.start = self.said = time.perf_counter()
        self.bar: Progress = progress()
        self.task: TaskID | None = None

    def __enter__(self) -> None:
        if console.is_terminal:
            self.bar.start()
            self.task = self.bar.add_task("generate", total=self.total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, counts: Counter[str]) -> None:
        """Note one answer."""
        self.done += 1
        now = time.perf_counter()
        seconds = max(now - self.start, 1e-9)
        speed = f"{60 * self.done / seconds:.1f}/min, {counts['tokens'] / seconds:.1f} tokens/s"
        if self.task is not None:
            self.bar.update(self.task, advance=1, description=f"generate ({speed})")
        elif now - self.said >= REPORT_S:
            self.said = now
            left = seconds / self.done * (self.total - self.done) / 60
            console.print(
                f"generate: {self.done}/{self.total}, {counts['written']} valid, {speed}, {left:.0f} min left"
            )
