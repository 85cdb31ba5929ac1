"""One call to an OpenAI-compatible endpoint: a request in, a checked JSON value or the reason why not out."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from crops.errors import CropsError, MissingExtraError
from crops.llm.reply import MAX_KEPT_CHARS, Refusal, error_text, value_of
from crops.outputs import console

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
