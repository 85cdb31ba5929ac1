"""Generate documents: resumable, never fatal for a bad answer, never silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from crops.llm.dispatch import Budget, Dispatcher
from crops.llm.endpoint import Answer, Endpoint, Refusal, connect
from crops.llm.guards import MIN_USERS, check_answer, check_request, clean_request, tidy
from crops.llm.prompt import FIELDS, Prompt, Request
from crops.llm.store import Row, append_row, open_append, quarantine_path, read_rows, request_key


def generate(
    requests: Iterable[Request],
    prompt: Prompt,
    endpoint: Endpoint,
    cache: Path,
    *,
    min_users: int = MIN_USERS,
    budget: Budget | None = None,
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
        budget: stop sending once this call has used it up.

    Returns:
        Counts: `written`, `cached`, `quarantined_before`, `prompt_tokens`, `tokens`, `not_sent` (budget or
        outage) and one `refused:<reason>` per reason.

    Raises:
        MissingExtraError: the `openai` package is not installed.
        CropsError: the endpoint is another machine and that is not allowed; the cache holds a broken line,
            or another run is writing it.
    """
    ask = connect(endpoint)
    counts: Counter[str] = Counter(
        written=0, cached=0, quarantined_before=0, prompt_tokens=0, tokens=0, not_sent=0
    )
    keyed = {request_key(endpoint.identity, prompt.version, request): request for request in requests}

    def send(request: Request) -> Answer:
        readable = clean_request(request)
        return ask(prompt.payload(readable), lambda value: _document(value, readable, prompt))

    with open_append(cache) as documents, open_append(quarantine_path(cache)) as quarantine:

        def file(key: str, request: Request, answer: Answer) -> None:
            row = {"key": key, "query": request.query}
            origin = _origin(request, prompt, endpoint, answer)
            if answer.content is None:
                refusal = {"reason": answer.reason, "final": answer.final, "detail": answer.detail}
                append_row(quarantine, {**row, **refusal, **origin})
            else:
                append_row(documents, {**row, **answer.content, **origin})

        todo = _admit(keyed, cache, quarantine, min_users, counts)
        Dispatcher(send, file, endpoint.concurrency, budget or Budget(), counts, "generate").run(todo)
    return dict(counts)


def _admit(
    keyed: dict[str, Request], cache: Path, quarantine: IO[bytes], min_users: int, counts: Counter[str]
) -> dict[str, Request]:
    """Return the requests to send; count the others, and file those that the guards refuse."""
    done = {row.get("key") for row in read_rows(cache)}
    refused = {row.get("key"): row.get("final") for row in read_rows(quarantine_path(cache))}
    todo: dict[str, Request] = {}
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
    return todo


def _document(value: object, request: Request, prompt: Prompt) -> dict[str, Any]:
    """Return the tidy document of an answer.

    Raises:
        Refusal: it has other fields than asked for, or the guards refuse it.
    """
    if not isinstance(value, dict) or set(value) != set(FIELDS):
        raise Refusal("wrong_fields", value)
    if not all(isinstance(part, str) for part in value.values()):
        raise Refusal("wrong_fields", value)
    document = tidy(value, request.query, prompt.limits)
    if reason := check_answer(document, request, prompt):
        raise Refusal(reason, value)
    return dict(document)


def _origin(request: Request, prompt: Prompt, endpoint: Endpoint, answer: Answer) -> Row:
    exemplar = clean_request(request).exemplar
    return {
        "angle": prompt.angle(request),
        "exemplar": {"item_id": exemplar.item_id, **exemplar.texts},
        "model": endpoint.model,
        "model_sha256": endpoint.model_sha256,
        "prompt_version": prompt.version,
        "seed": request.seed,
        "temperature": prompt.temperature,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 2),
    }
