"""Many requests to one endpoint: bounded concurrency, budgets, progress, and a stop that says why.

Answers go to a JSONL file that is the cache of the next run, refusals with their reasons to a second one,
the quarantine. One JSON object per line, flushed per line: a kill loses at most the line being written, and
a torn last line is cut off before the next one is appended.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from rich.progress import Progress, TaskID

from crops.errors import CropsError
from crops.llm.endpoint import Answer, Endpoint
from crops.outputs import console, progress

MAX_OUTAGE = 8
"""After this many calls in a row without any answer the endpoint counts as down."""
WINDOW, FEWEST = 20, 10
"""Last answers that show whether a run is worth its cost; below `FEWEST` they say nothing."""
REPORT_S = 60.0
"""Seconds between progress lines where no terminal shows a bar."""
Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """What a run may use; prices are per million tokens read and written.

    Answers under way when a budget runs out are still filed: it may be exceeded by as many as run at once.
    """

    tokens: int | None = None
    cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    max_unusable: float = 0.8
    """Share of the last `WINDOW` answers (`FEWEST` at least) that may be unusable; 1 never stops a run."""

    def __post_init__(self) -> None:
        if self.cost is not None and not (self.price_in or self.price_out):
            raise CropsError("a cost budget needs prices: set llm.price_in and llm.price_out")

    def cost_of(self, counts: Counter[str]) -> float:
        """Return the price of the `prompt_tokens` and `tokens` counted."""
        return (counts["prompt_tokens"] * self.price_in + counts["tokens"] * self.price_out) / 1e6

    def used_up(self, counts: Counter[str]) -> str | None:
        """Return the name of the budget that is used up, or None."""
        if self.tokens is not None and counts["prompt_tokens"] + counts["tokens"] >= self.tokens:
            return "token"
        return "cost" if self.cost is not None and self.cost_of(counts) >= self.cost else None


def ask_all(
    requests: Mapping[str, T],
    send: Callable[[T], Answer],
    endpoint: Endpoint,
    cache: Path,
    *,
    name: str,
    why_not: Callable[[T], str | None],
    row: Callable[[str, T, Answer, Row], Row],
    budget: Budget | None = None,
    retry_refused: bool = False,
) -> dict[str, int]:
    """Send the requests that `cache` does not answer yet, and file what comes back.

    What is refused goes to `quarantine_path(cache)` with the reason; of a request that must not be sent only
    the key and the reason are kept. What the model answered unusably is not asked for again unless
    `retry_refused`; calls that got no answer are, by the next run.

    Args:
        requests: by the key that names their answer in the files.
        cache: one JSON object per line, appended.
        name: what is under way, for the progress display.
        why_not: the reason why a request must not be sent, or None.
        row: from key, request, answer and content (or reason of the refusal) to the line that is filed.
        budget: stop sending once this call has used it up, or too much of it in vain.

    Returns:
        Counts: `written`, `cached`, `quarantined_before`, `prompt_tokens`, `tokens`, `not_sent` (budget) and
        one `refused:<reason>` per reason.

    Raises:
        CropsError: the endpoint does not answer, or what it answers is unusable (what was answered is filed);
            the cache holds a broken line, or another run is writing it.
    """
    names = ("written", "cached", "quarantined_before", "prompt_tokens", "tokens", "not_sent")
    counts: Counter[str] = Counter(dict.fromkeys(names, 0))
    refused = quarantine_path(cache)
    with open_append(cache) as answers, open_append(refused) as quarantine:

        def file(key: str, request: T, answer: Answer) -> None:
            if answer.content is None:
                said = {"reason": answer.reason, "final": answer.final, "detail": answer.detail}
                append_row(quarantine, row(key, request, answer, said))
            else:
                append_row(answers, row(key, request, answer, answer.content))

        done = {str(known.get("key")) for known in read_rows(cache)}
        before = {known.get("key"): known.get("final") for known in read_rows(refused)}
        todo: dict[str, T] = {}
        for key, request in requests.items():
            if key in done:
                counts["cached"] += 1
            elif reason := why_not(request):
                counts[f"refused:{reason}"] += 1
                if key not in before:
                    append_row(quarantine, {"key": key, "reason": reason, "final": False})
            elif before.get(key) and not retry_refused:
                counts["quarantined_before"] += 1
            else:
                todo[key] = request
        _Run(send, file, endpoint, budget or Budget(), counts, name, refused).run(todo)
    return dict(counts)


@dataclass
class _Run(Generic[T]):
    """Sends requests by key and files the answers as they come; counts what happened."""

    send: Callable[[T], Answer]
    file: Callable[[str, T, Answer], None]
    endpoint: Endpoint
    budget: Budget
    counts: Counter[str]
    name: str
    """What is under way, for the progress display."""
    refused: Path
    """Where refused answers are kept."""
    answered: int = field(default=0, init=False)
    unanswered: int = field(default=0, init=False)
    outage: int = field(default=0, init=False)
    """Calls in a row that brought no answer."""
    cause: str = field(default="", init=False)
    """Why the last call without an answer got none."""
    hopeless: bool = field(default=False, init=False)
    """The first answers showed that no request will get one."""
    reasons: Counter[str] = field(default_factory=Counter, init=False)
    """Why answers were unusable."""
    usable: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW), init=False)
    """Of the last answers, the newest last."""

    def run(self, todo: Mapping[str, T]) -> None:
        """Send all requests, at most `concurrency` at once, until something stops the run.

        Raises:
            CropsError: the endpoint does not answer, or nearly all answers are unusable; what came is filed.
        """
        left = iter(todo.items())
        concurrency = self.endpoint.concurrency
        pool = ThreadPoolExecutor(concurrency)
        flying: dict[Future[Answer], tuple[str, T]] = {}
        watch = _Watch(self.name, len(todo))
        try:
            with watch:
                while True:
                    if not (self._fault() or self._spent()):
                        for key, request in islice(left, concurrency - len(flying)):
                            flying[pool.submit(self.send, request)] = (key, request)
                    if not flying:
                        break
                    for future in wait(flying, return_when=FIRST_COMPLETED).done:
                        self._note(*flying.pop(future), future.result())
                        watch.step(self.counts)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self.counts["not_sent"] = sum(1 for _ in left)
        if fault := self._fault() or self._nothing():
            raise CropsError(
                f"{fault}; {self.counts['written']} written, {self.counts['not_sent']} not sent: "
                "run again to resume"
            )
        self._say_what_is_left(watch.done)

    def _note(self, key: str, request: T, answer: Answer) -> None:
        if answer.final:
            self.answered += 1
            self.outage, self.hopeless = 0, False
            self.usable.append(answer.content is not None)
            self.reasons.update([answer.reason] if answer.content is None else [])
        else:
            self.unanswered += 1
            self.outage += 1
            self.cause = answer.cause
            self.hopeless = answer.hopeless and not self.answered
        self.counts["prompt_tokens"] += answer.prompt_tokens
        self.counts["tokens"] += answer.tokens
        self.counts["written" if answer.content is not None else f"refused:{answer.reason}"] += 1
        self.file(key, request, answer)

    def _fault(self) -> str | None:
        """Return what is wrong with the endpoint or its answers, in a sentence, or None."""
        if self.hopeless:
            return f"{self.endpoint.base_url}: {self.cause}"
        if self.outage >= MAX_OUTAGE:
            return f"{self.endpoint.base_url}: {self.outage} calls in a row got no answer: {self.cause}"
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.reasons.most_common(3))
        unusable = len(self.usable) - sum(self.usable)
        if len(self.usable) >= FEWEST and unusable > self.budget.max_unusable * len(self.usable):
            return (
                f"{self.endpoint.base_url}: {unusable} of the last {len(self.usable)} answers of "
                f"'{self.endpoint.model}' are unusable ({reasons}): see {self.refused}, and "
                f"llm.max_unusable = {self.budget.max_unusable:g} where that is as it should be"
            )
        return None

    def _nothing(self) -> str | None:
        """Return that calls were made and nothing came of it, in a sentence, or None."""
        if self.counts["written"] or self.counts["cached"] or not self.answered + self.unanswered:
            return None
        if not self.answered:
            return f"{self.endpoint.base_url}: no call got an answer: {self.cause}"
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.reasons.most_common(3))
        return (
            f"{self.endpoint.base_url}: none of {self.answered} answers of '{self.endpoint.model}' is usable "
            f"({reasons}): see {self.refused}"
        )

    def _spent(self) -> str | None:
        budget = self.budget.used_up(self.counts)
        return f"the {budget} budget is used up" if budget else None

    def _say_what_is_left(self, done: int) -> None:
        unsent, used = self.counts["not_sent"], self.counts["prompt_tokens"] + self.counts["tokens"]
        if self.unanswered:
            failed = f"{self.unanswered} calls got no answer ({self.cause}); run again to ask them again"
            console.print(failed, style="yellow", markup=False)
        if not unsent:
            return
        said = f"{unsent} requests not sent: {self._spent()}; run again to resume"
        if used:
            said += f" (used: {self._told(1.0)}; the rest needs about {self._told(unsent / done)})"
        console.print(f"[yellow]{said}[/yellow]")

    def _told(self, share: float) -> str:
        used = self.counts["prompt_tokens"] + self.counts["tokens"]
        cost = self.budget.cost_of(self.counts) * share
        return f"{used * share:,.0f} tokens" + (f", cost {cost:,.4g}" if cost else "")


class _Watch:
    """Rate, tokens/s and time left: a bar on a terminal, a line a minute elsewhere."""

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self.start = self.said = time.perf_counter()
        self.bar: Progress = progress()
        self.task: TaskID | None = None

    def __enter__(self) -> None:
        if console.is_terminal:
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, counts: Counter[str]) -> None:
        """Note one answer."""
        self.done += 1
        now = time.perf_counter()
        seconds = max(now - self.start, 1e-9)
        speed = f"{60 * self.done / seconds:.1f}/min, {counts['tokens'] / seconds:.1f} tokens/s"
        if self.task is not None:
            self.bar.update(self.task, advance=1, description=f"{self.name} ({speed})")
        elif now - self.said >= REPORT_S:
            self.said = now
            left = seconds / self.done * (self.total - self.done) / 60
            valid = f"{self.done}/{self.total}, {counts['written']} valid"
            console.print(f"{self.name}: {valid}, {speed}, {left:.0f} min left")


def quarantine_path(cache: Path) -> Path:
    """Return the quarantine file that belongs to a cache."""
    return cache.with_name(f"{cache.stem}.quarantine.jsonl")


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file; a torn last line (no line end) is left out, a missing file is empty.

    Raises:
        CropsError: a whole line is not a JSON object.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CropsError(f"{path}: line {number} is no JSON ({error}); remove this line") from error
            if not isinstance(row, dict):
                raise CropsError(f"{path}: line {number} is no JSON object; remove this line")
            yield row


def open_append(path: Path) -> IO[bytes]:
    """Open a JSONL file for appending, its torn last line cut off; it is locked until it is closed.

    Raises:
        CropsError: another process is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise CropsError(f"{path}: another run is writing this file; wait for it or name another") from error
    file.seek(0)
    whole = sum(len(line) for line in file if line.endswith(b"\n"))
    file.truncate(whole)
    return file


def append_row(file: IO[bytes], row: Row) -> None:
    """Append one row and hand it to the operating system."""
    # A lone surrogate cannot be UTF-8: written as \udXXX it is still JSON.
    file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
    file.flush()
