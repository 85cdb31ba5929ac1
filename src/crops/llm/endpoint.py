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

if TYPE_CHECKING:
    import openai

MAX_KEPT_CHARS = 2000
"""Of a refused answer, this much is kept for people to read."""


@dataclass(frozen=True)
class Endpoint:
    """Where the LLM is.

    `model` is the name the endpoint knows it by; `model_sha256` is the identity of its weights where known.
    Queries leave the machine only when `allow_remote` says so.
    """

    base_url: str
    model: str
    model_sha256: str | None = None
    api_key: str = field(default="none", repr=False)
    concurrency: int = 4
    timeout_s: float = 600.0
    retries: int = 4
    allow_remote: bool = False

    @property
    def identity(self) -> str:
        """What names the weights in cache keys."""
        return self.model_sha256 or self.model


@dataclass(frozen=True)
class Answer:
    """A valid `content`, or `reason` (with `detail`) why not; tokens read and written, wall seconds.

    `final` says that the model has answered: the same request would bring the same answer.
    """

    content: dict[str, Any] | None
    reason: str = ""
    detail: str = ""
    final: bool = True
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Refusal(Exception):
    """The answer is unusable."""

    def __init__(self, reason: str, detail: object = "", *, final: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = str(detail)[:MAX_KEPT_CHARS]
        self.final = final


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
        api_key=endpoint.api_key,
        timeout=endpoint.timeout_s,
        max_retries=endpoint.retries,
        # A proxy named in the environment must not see what is meant for this machine.
        http_client=openai.DefaultHttpxClient(trust_env=not local),
    )

    def ask(payload: Payload, check: Check) -> Answer:
        start = time.perf_counter()
        read = written = 0
        try:
            body = _call(client, {"model": endpoint.model, **payload})
            read, written = _usage(body, payload)
            answer = Answer(check(_value(body)))
        except Refusal as refusal:
            answer = Answer(None, refusal.reason, refusal.detail, refusal.final)
        except openai.APIStatusError as error:
            answer = Answer(
                None, f"http_{error.status_code}", error.response.text[:MAX_KEPT_CHARS], final=False
            )
        except openai.APIError as error:
            answer = Answer(None, "unavailable", str(error), final=False)
        return replace(answer, prompt_tokens=read, tokens=written, seconds=time.perf_counter() - start)

    return ask


def _is_local(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _call(client: openai.OpenAI, payload: Payload) -> dict[str, Any]:
    # The raw response: a proxy's HTML page with status 200 must not pass for an answer.
    response = client.chat.completions.with_raw_response.create(**payload)
    try:
        body = json.loads(response.text)
    except (ValueError, RecursionError) as error:
        raise Refusal("not_a_completion", response.text, final=False) from error
    if not isinstance(body, dict):
        raise Refusal("not_a_completion", response.text, final=False)
    return body


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


def _value(body: dict[str, Any]) -> object:
    """Return the JSON value that the model wrote."""
    try:
        choice = body["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        refused = choice["message"].get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Refusal("not_a_completion", body, final=False) from error
    if refused or finish == "content_filter":
        raise Refusal("refused_by_model", refused or finish)
    if not isinstance(text, str) or not text.strip():
        raise Refusal("empty", final=False)
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal("truncated" if finish == "length" else "not_json", text) from error
    return value
