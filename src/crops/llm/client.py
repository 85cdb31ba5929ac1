"""Generate documents: resumable, never fatal for a bad answer, never silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from crops.llm.dispatch import Budget, Dispatcher
from crops.llm.endpoint import Answer, Endpoint, connect
from crops.llm.guards import MIN_USERS, check_answer, check_request, clean_request, tidy
from crops.llm.prompt import FIELDS, Prompt, Request
from crops.llm.reply import Refusal
from crops.llm.store import Row, admit, append_row, open_append, quarantine_path, read_rows, request_key


def generate(
    requests: Iterable[Request],
    prompt: Prompt,
    endpoint: Endpoint,
    cache: str | Path,
    *,
    min_users: int = MIN_USERS,
    budget: Budget | None = None,
    retry_refused: bool = False,
) -> dict[str, int]:
    """Append one document per request to the JSONL file `cache`; what it already answers is not sent again.

    What is refused goes to `quarantine_path(cache)` with the reason. Of a refused request only the key
    and the reason are kept, not its text. What the model answered and the guards refused is not asked for
    again (the same seed would bring it again) unless `retry_refused`; calls that got no answer are, by the
    next run.

    Args:
        requests: what to write; equal ones are sent once.
        prompt: the template.
        endpoint: any OpenAI-compatible server.
        cache: one JSON object per line, appended.
        min_users: k-anonymity: queries of fewer users are refused.
        budget: stop sending once this call has used it up, or too much of it in vain.
        retry_refused: ask again for what the model answered and the guards refused before.

    Returns:
        Counts: `written`, `cached`, `quarantined_before`, `prompt_tokens`, `tokens`, `not_sent` (budget) and
        one `refused:<reason>` per reason.

    Raises:
        MissingExtraError: the `openai` package is not installed.
        CropsError: the endpoint is another machine and that is not allowed; it does not answer, or what it
            answers is unusable; the cache holds a broken line, or another run is writing it.
    """
    cache = Path(cache)
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

        done = {str(row.get("key")) for row in read_rows(cache)}
        why_not = partial(check_request, min_users=min_users)
        todo = admit(keyed, done, why_not, quarantine, counts, retry_refused=retry_refused)
        Dispatcher(send, file, endpoint, budget or Budget(), counts, "generate", quarantine_path(cache)).run(
            todo
        )
    return dict(counts)


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
        "exemplar": {"item_id": str(exemplar.item_id), **exemplar.texts},
        "model": endpoint.model,
        "model_sha256": endpoint.model_sha256,
        "prompt_version": prompt.version,
        "seed": request.seed,
        "temperature": prompt.temperature,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 2),
    }
