"""One call to an OpenAI-compatible endpoint: a request in, a checked JSON value or the reason why not out."""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from rich.progress import Progress, TaskID

from crops.errors import CropsError, MissingExtraError
from crops.outputs import console, progress

if TYPE_CHECKING:
    import openai

API_KEY = "CROPS_LLM_API_KEY"

"""Environment variable of the endpoint's key: an option would show it to every user of the machine."""

NO_KEY = "none"

"""What is sent to a server that asks for no key."""

MAX_CAUSE_CHARS = 300

"""Of what a server says to a failed call, this much stands in a message."""

_HOPELESS = frozenset((401, 402, 403, 404, 405, 407, 410))

"""Answers to the endpoint, the model or the key and not to one request: the next call would get them too."""

_WITHOUT_FORMAT = frozenset((400, 415, 422, 501))

"""Answers of servers that do not know `response_format` (and of others)."""


@dataclass(frozen=True)
class Endpoint:
    """Where the LLM is.

    `model` is the name the endpoint knows it by; `model_sha256` is the identity of its weights where known.
    Queries leave the machine only when `allow_remote` says so.
    """

    base_url: str
    model: str
    model_sha256: str | None = None
    api_key: str = field(default=NO_KEY, repr=False)
    concurrency: int = 4
    timeout_s: float = 600.0
    max_tokens: int | None = None
    """Of an answer, thinking included; None: what the request asks for."""
    retries: int = 4
    allow_remote: bool = False

    @property
    def identity(self) -> str:
        """What names the weights in cache keys."""
        return self.model_sha256 or self.model


@dataclass(frozen=True)
class Answer:
    """A valid `content`, or `reason` (with `detail`) why not; tokens read and written, wall seconds."""

    content: dict[str, Any] | None
    reason: str = ""
    detail: str = ""
    final: bool = True
    """The model has answered: the same request would bring the same answer."""
    cause: str = ""
    """Why there was no answer, for people; empty where there was one."""
    hopeless: bool = False
    """No other request would get an answer either."""
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0


Payload = dict[str, Any]

"""The body of a chat completion request, without the model; `messages` and `max_tokens` are in it."""

Check = Callable[[Any], dict[str, Any]]

"""From the JSON value that the model wrote to what is kept; raises `Refusal`."""

Ask = Callable[[Payload, Check], Answer]


def connect(endpoint: Endpoint) -> Ask:
    """Return the function that asks the endpoint once; it never raises for a bad answer.

    Connection errors, 408, 409, 429 and 5xx are tried `retries` times more with exponential backoff
    (the `openai` package; it honours Retry-After).

    Raises:
        MissingExtraError: the `openai` package is not installed.
        CropsError: the endpoint is another machine and `allow_remote` is off.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError("openai", "llm") from error
    local = _is_local(endpoint.base_url)
    if not local and not endpoint.allow_remote:
        raise CropsError(
            f"{endpoint.base_url} is another machine: "
            "queries would leave this one; set llm.allow_remote (--allow-remote) if they may"
        )
    client = openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=_checked_key(endpoint.api_key),
        timeout=endpoint.timeout_s,
        max_retries=endpoint.retries,
        # A proxy named in the environment must not see what is meant for this machine, and no server may
        # send queries on to another one.
        http_client=openai.DefaultHttpxClient(trust_env=not local, follow_redirects=False),
    )
    caller = _Caller(client, endpoint)

    def ask(payload: Payload, check: Check) -> Answer:
        start = time.perf_counter()
        read = written = 0
        if endpoint.max_tokens is not None:
            payload = {**payload, "max_tokens": endpoint.max_tokens}
        try:
            body = caller.call(payload)
            read, written = _usage(body, payload)
            answer = Answer(check(value_of(body)))
        except Refusal as refusal:
            cause = "" if refusal.final else f"{refusal.reason}: {_shortened(refusal.detail)}"
            answer = Answer(None, refusal.reason, refusal.detail, refusal.final, cause)
        except openai.APIStatusError as error:
            answer = _failed(endpoint, error)
        except openai.APITimeoutError:
            cause = f"no answer within llm.timeout_s = {endpoint.timeout_s:g} s"
            answer = Answer(None, "unavailable", cause, False, cause)
        except openai.APIError as error:
            cause = f"no connection: {error.__cause__ or error}"
            answer = Answer(None, "unavailable", cause, False, cause)
        return replace(
            answer,
            detail=_without_key(answer.detail, endpoint),
            cause=_without_key(answer.cause, endpoint),
            prompt_tokens=read,
            tokens=written,
            seconds=time.perf_counter() - start,
        )

    return ask


class _Caller:
    """Calls the endpoint; remembers whether it knows `response_format`."""

    def __init__(self, client: openai.OpenAI, endpoint: Endpoint) -> None:
        self._client, self._endpoint = client, endpoint
        self._formats: bool | None = None

    def call(self, payload: Payload) -> dict[str, Any]:
        """Return the body of a chat completion.

        Until an answer has shown that the server takes `response_format`, a refused request is sent once more
        without it; if that is what it takes, no later request has it.
        """
        import openai

        asked = {"model": self._endpoint.model, **payload}
        plain = {name: value for name, value in asked.items() if name != "response_format"}
        if self._formats is False:
            return self._send(plain)
        try:
            body = self._send(asked)
        except openai.APIStatusError as error:
            if self._formats or error.status_code not in _WITHOUT_FORMAT or plain == asked:
                raise
            try:
                body = self._send(plain)
            except openai.APIError:
                raise error from None
            self._formats = False
            console.print(
                f"{self._endpoint.base_url} refuses response_format ({_cause(self._endpoint, error)}): "
                "asked without it from here on",
                markup=False,
            )
            return body
        self._formats = True
        return body

    def _send(self, payload: Payload) -> dict[str, Any]:
        # The raw response: a proxy's HTML page with status 200 must not pass for an answer.
        response = self._client.chat.completions.with_raw_response.create(**payload)
        try:
            body = json.loads(response.text)
        except (ValueError, RecursionError) as error:
            raise Refusal("not_a_completion", response.text, final=False) from error
        if not isinstance(body, dict):
            raise Refusal("not_a_completion", response.text, final=False)
        return body


def _failed(endpoint: Endpoint, error: openai.APIStatusError) -> Answer:
    """Return the answer for an HTTP error."""
    status = error.status_code
    return Answer(
        None,
        f"http_{status}",
        error.response.text[:MAX_KEPT_CHARS],
        final=False,
        cause=_cause(endpoint, error),
        hopeless=status in _HOPELESS or status < 400,
    )


def _cause(endpoint: Endpoint, error: openai.APIStatusError) -> str:
    """Return status and cause of an HTTP error, and what the server says of it."""
    status, response = error.status_code, error.response
    causes = {
        400: "the server cannot use the request",
        401: f"the key is missing or wrong, set ${API_KEY}",
        402: "the account is out of credit",
        403: f"the key in ${API_KEY} may not do this, or the server does not take calls from here",
        404: f"no model '{endpoint.model}' there, or the base URL lacks its path (often /v1)",
        408: "the server gave up waiting",
        422: "the server cannot use the request",
        429: "too many requests or no quota left: lower llm.concurrency, or wait",
    }
    if status >= 500:
        cause = "the server failed"
    elif status < 400:
        cause = f"it redirects to {response.headers.get('location', 'nowhere')}: name that base URL"
    else:
        cause = causes.get(status, "the call is refused")
    said = error_text(error.body) or response.text
    told = f" ({_shortened(said)})" if said.strip() else ""
    return f"HTTP {status}, {cause}{told}"


def _without_key(text: str, endpoint: Endpoint) -> str:
    """Return a text without the key: a server may repeat it in what it says."""
    return text if endpoint.api_key == NO_KEY else text.replace(endpoint.api_key, "***")


def _shortened(text: str) -> str:
    """Return a text as one line of at most `MAX_CAUSE_CHARS`."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_CAUSE_CHARS else f"{line[:MAX_CAUSE_CHARS]}…"


def _checked_key(key: str) -> str:
    """Return a key that fits into a header.

    Raises:
        CropsError: it does not.
    """
    if not key or not key.isascii() or not key.isprintable() or key != key.strip():
        raise CropsError(
            f"${API_KEY} is no key: it is empty, or holds spaces at its ends or other than ASCII text"
        )
    return key


def _is_local(base_url: str) -> bool:
    """Return whether a URL names this machine.

    Raises:
        CropsError: it is no HTTP address.
    """
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise CropsError(f"llm.base_url = '{base_url}' is no address: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise CropsError(f"llm.base_url = '{base_url}': name an address as http://127.0.0.1:8000/v1")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _usage(body: dict[str, Any], payload: Payload) -> tuple[int, int]:
    """Return tokens read and written; what the endpoint does not tell is put at its upper bound.

    A budget must hold with an endpoint that keeps silent: a token is at least one byte of the prompt, and
    an answer has at most `max_tokens`.
    """
    usage = body.get("usage")
    told = usage if isinstance(usage, dict) else {}
    read, written = told.get("prompt_tokens"), told.get("completion_tokens")
    if not isinstance(read, int):
        read = sum(len(turn["content"].encode()) for turn in payload["messages"])
    return read, written if isinstance(written, int) else int(payload["max_tokens"])


# ------------------------------------------------------------------------------
# What a chat completion holds: the JSON value that the model wrote, out of whatever it wrapped it in.


MAX_KEPT_CHARS = 2000

"""Of a refused answer, this much is kept for people to read."""

_THOUGHT = re.compile(r"^.*</think(?:ing)?>|<think(?:ing)?>.*$", re.DOTALL | re.IGNORECASE)

"""All up to the end of the thinking, whose begin may stand in the prompt; or all from a begin without end."""

_FENCE = re.compile(r"```[ \t]*[\w-]*\s*(.*?)\s*(?:```[^`]*)?$", re.DOTALL)


class Refusal(Exception):
    """The answer is unusable."""

    def __init__(self, reason: str, detail: object = "", *, final: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = str(detail)[:MAX_KEPT_CHARS]
        self.final = final


def value_of(body: dict[str, Any]) -> object:
    """Return the JSON value that the model wrote.

    Thinking (`<think>` text) and a Markdown fence around the value are taken off. A server may file the whole
    answer of a model under `reasoning_content` or `reasoning`: it is read where there is no other.

    Raises:
        Refusal: the body is no chat completion, or there is no such value in it.
    """
    try:
        choice = body["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        refused = message.get("refusal")
        places = (message.get(name) for name in ("content", "reasoning_content", "reasoning"))
        text = next((text for place in places if (text := _text(place))), "")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Refusal("not_a_completion", error_text(body) or body, final=False) from error
    if refused or finish == "content_filter":
        raise Refusal("refused_by_model", refused or finish)
    if not text:
        raise Refusal("truncated", final=True) if finish == "length" else Refusal("empty", final=False)
    said = _THOUGHT.sub("", text)
    fence = _FENCE.search(said)
    for written in (text, said, fence[1] if fence else ""):
        try:
            value: object = json.loads(written)
            return value
        except (ValueError, RecursionError):
            continue
    raise Refusal("truncated" if finish == "length" else "not_json", text)


def _text(content: object) -> str:
    """Return the text of a message's content, which may come in parts."""
    if isinstance(content, list):
        content = "".join(
            part["text"]
            for part in content
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        )
    return content.strip() if isinstance(content, str) else ""


def error_text(body: object) -> str:
    """Return the message in the error body of an OpenAI-compatible server, empty where there is none."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return error if isinstance(error, str) else ""


# ------------------------------------------------------------------------------
# Many requests to one endpoint: bounded concurrency, budgets, progress, and a stop that says why.


MAX_OUTAGE = 8

"""After this many calls in a row without any answer the endpoint counts as down."""

WINDOW, FEWEST = 20, 10

"""Last answers that show whether a run is worth its cost; below `FEWEST` they say nothing."""

REPORT_S = 60.0

"""Seconds between progress lines where no terminal shows a bar."""

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


@dataclass
class Dispatcher(Generic[T]):
    """Sends requests by key and files the answers as they come; counts what happened.

    `counts` gets `written`, `refused:<reason>`, `prompt_tokens`, `tokens` (written by the model) and
    `not_sent`.
    """

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
            CropsError: the endpoint does not answer, or nearly all or all answers are unusable; what was
                answered is filed.
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
                "run again to go on"
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
        unusable = len(self.usable) - sum(self.usable)
        if len(self.usable) >= FEWEST and unusable > self.budget.max_unusable * len(self.usable):
            return (
                f"{self.endpoint.base_url}: {unusable} of the last {len(self.usable)} answers of "
                f"'{self.endpoint.model}' are unusable ({self._reasons()}): see {self.refused}, and "
                f"llm.max_unusable = {self.budget.max_unusable:g} where that is as it should be"
            )
        return None

    def _nothing(self) -> str | None:
        """Return that calls were made and nothing came of it, in a sentence, or None."""
        if self.counts["written"] or self.counts["cached"] or not self.answered + self.unanswered:
            return None
        if not self.answered:
            return f"{self.endpoint.base_url}: no call got an answer: {self.cause}"
        return (
            f"{self.endpoint.base_url}: none of {self.answered} answers of '{self.endpoint.model}' is usable "
            f"({self._reasons()}): see {self.refused}"
        )

    def _reasons(self) -> str:
        return ", ".join(f"{n} {reason}" for reason, n in self.reasons.most_common(3))

    def _spent(self) -> str | None:
        budget = self.budget.used_up(self.counts)
        return f"the {budget} budget is used up" if budget else None

    def _say_what_is_left(self, done: int) -> None:
        unsent, used = self.counts["not_sent"], self.counts["prompt_tokens"] + self.counts["tokens"]
        if self.unanswered:
            told = f"{self.unanswered} calls got no answer ({self.cause}); run again to ask them again"
            console.print(told, style="yellow", markup=False)
        if not unsent:
            return
        said = f"{unsent} requests not sent: {self._spent()}; run again to go on"
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
