"""An LLM as judge of (query, video): three grades, the same guards and the same cache as generation."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crops.errors import CropsError
from crops.llm.endpoint import Answer, Budget, Dispatcher, Endpoint, Payload, Refusal, connect
from crops.llm.generate import admit, append_row, open_append, quarantine_path, read_rows
from crops.llm.prompt import (
    FIELDS,
    MAX_EXEMPLAR_CHARS,
    MAX_QUERY_CHARS,
    MIN_USERS,
    Exemplar,
    check_exemplar,
    check_query,
    check_users,
    clean,
    template_file,
)

GRADES = ("irrelevant", "relevant", "very relevant")
"""The rubric's grades; a grade is its place, 0 to 2."""


@dataclass(frozen=True)
class Rubric:
    """The instruction to the judge; `version` names the file and its content."""

    version: str
    system: str
    max_tokens: int


@dataclass(frozen=True)
class Judged:
    """A pair to judge: its name, the normalised query, how many users typed it, the video's texts."""

    name: str
    query: str
    users: int
    video: Exemplar


def load_rubric(name: str = "judge-en") -> Rubric:
    """Read a packaged rubric, or an own one by the path of its `.toml` file.

    Raises:
        CropsError: there is none, or a part of it is missing or malformed.
    """
    source = template_file(name)
    if not source.is_file():
        raise CropsError(f"no rubric at {source}; the packaged one is judge-en")
    raw = source.read_bytes()
    try:
        values = tomllib.loads(raw.decode())
        version = f"{Path(name).stem}-{hashlib.sha256(raw).hexdigest()[:8]}"
        return Rubric(version, values["system"].strip(), int(values["max_tokens"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CropsError(f"{source}: malformed rubric: {error!r}; compare it with judge-en.toml") from error


def judge_pairs(
    pairs: Iterable[Judged],
    rubric: Rubric,
    endpoint: Endpoint,
    cache: str | Path,
    *,
    min_users: int = MIN_USERS,
    budget: Budget | None = None,
    retry_refused: bool = False,
) -> tuple[dict[str, int], dict[str, int]]:
    """Ask the LLM for the grade of each pair; what `cache` answers already is not sent again.

    Grading is greedy (temperature 0). Refused pairs and unusable answers go to the quarantine of the cache
    with the reason, and get no grade; unusable answers are asked for again only with `retry_refused`.

    Returns:
        The grades (0 to 2) by the names of the pairs, and the counts as `crops.llm.generate.generate`.

    Raises:
        MissingExtraError: the `openai` package is not installed.
        CropsError: as `generate`.
    """
    cache = Path(cache)
    ask = connect(endpoint)
    counts: Counter[str] = Counter(
        written=0, cached=0, quarantined_before=0, prompt_tokens=0, tokens=0, not_sent=0
    )
    keyed = {pair.name: (_key(pair, rubric, endpoint), pair) for pair in pairs}
    known = {row["key"]: row["grade"] for row in read_rows(cache)}

    def send(pair: Judged) -> Answer:
        return ask(_payload(pair, rubric), _grade)

    with open_append(cache) as grades, open_append(quarantine_path(cache)) as quarantine:

        def file(key: str, _: Judged, answer: Answer) -> None:
            row = {"key": key, "model": endpoint.model, "rubric": rubric.version}
            if answer.content is None:
                refusal = {"reason": answer.reason, "final": answer.final, "detail": answer.detail}
                append_row(quarantine, {**row, **refusal})
            else:
                known[key] = answer.content["grade"]
                append_row(grades, {**row, **answer.content})

        requests = {key: pair for key, pair in keyed.values()}
        why_not = partial(_refused, min_users=min_users)
        todo = admit(requests, known, why_not, quarantine, counts, retry_refused=retry_refused)
        Dispatcher(send, file, endpoint, budget or Budget(), counts, "judge", quarantine_path(cache)).run(
            todo
        )
    return {name: known[key] for name, (key, _) in keyed.items() if key in known}, dict(counts)


def _refused(pair: Judged, min_users: int) -> str | None:
    return check_users(pair.users, min_users) or check_query(pair.query) or check_exemplar(pair.video)


def _payload(pair: Judged, rubric: Rubric) -> Payload:
    texts = {field: clean(pair.video.texts.get(field) or "", MAX_EXEMPLAR_CHARS) for field in FIELDS[:2]}
    turn = {
        "query": clean(pair.query, MAX_QUERY_CHARS),
        "video": {"title": texts["ocr_cover"], "description": texts["photo_caption"]},
    }
    schema = {
        "type": "object",
        "properties": {"grade": {"type": "string", "enum": list(GRADES)}},
        "required": ["grade"],
        "additionalProperties": False,
    }
    return {
        "messages": [
            {"role": "system", "content": rubric.system},
            {"role": "user", "content": json.dumps(turn, ensure_ascii=False)},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "grade", "strict": True, "schema": schema},
        },
        "temperature": 0.0,
        "max_tokens": rubric.max_tokens,
        "seed": 0,
    }


def _grade(value: object) -> dict[str, Any]:
    grade = value.get("grade") if isinstance(value, dict) else None
    if grade not in GRADES:
        raise Refusal("wrong_fields", value)
    return {"grade": GRADES.index(grade)}


def _key(pair: Judged, rubric: Rubric, endpoint: Endpoint) -> str:
    texts = [pair.video.texts.get(field) or "" for field in FIELDS[:2]]
    parts = [endpoint.identity, rubric.version, pair.query, texts]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
