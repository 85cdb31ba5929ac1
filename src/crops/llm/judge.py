"""An LLM as judge of (query, video): three grades, the same guards and the same cache as generation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crops.llm.batch import Budget, Row, ask_all, read_rows
from crops.llm.endpoint import Answer, Endpoint, Payload, Refusal, connect
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
    json_format,
    load_template,
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
class JudgePair:
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
    return load_template(
        name,
        "rubric",
        ("judge-en",),
        lambda version, values: Rubric(version, values["system"].strip(), int(values["max_tokens"])),
    )


def judge_pairs(
    pairs: Iterable[JudgePair],
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
        The grades (0 to 2) by the names of the pairs, and the counts of `crops.llm.batch.ask_all`.

    Raises:
        MissingExtraError: the `openai` package is not installed.
        CropsError: as `generate`.
    """
    ask = connect(endpoint)
    keyed = {pair.name: (_key(pair, rubric, endpoint), pair) for pair in pairs}

    def row(key: str, _: JudgePair, answer: Answer, said: Row) -> Row:
        return {"key": key, "model": endpoint.model, "rubric": rubric.version, **said}

    counts = ask_all(
        dict(keyed.values()),
        lambda pair: ask(_payload(pair, rubric), _grade),
        endpoint,
        Path(cache),
        name="judge",
        why_not=partial(_refused, min_users=min_users),
        row=row,
        budget=budget,
        retry_refused=retry_refused,
    )
    known = {row["key"]: row["grade"] for row in read_rows(Path(cache))}
    return {name: known[key] for name, (key, _) in keyed.items() if key in known}, counts


def _refused(pair: JudgePair, min_users: int) -> str | None:
    return check_users(pair.users, min_users) or check_query(pair.query) or check_exemplar(pair.video)


def _payload(pair: JudgePair, rubric: Rubric) -> Payload:
    texts = {field: clean(pair.video.texts.get(field) or "", MAX_EXEMPLAR_CHARS) for field in FIELDS[:2]}
    turn = {
        "query": clean(pair.query, MAX_QUERY_CHARS),
        "video": {"title": texts["ocr_cover"], "description": texts["photo_caption"]},
    }
    return {
        "messages": [
            {"role": "system", "content": rubric.system},
            {"role": "user", "content": json.dumps(turn, ensure_ascii=False)},
        ],
        "response_format": json_format("grade", {"grade": {"type": "string", "enum": list(GRADES)}}),
        "temperature": 0.0,
        "max_tokens": rubric.max_tokens,
        "seed": 0,
    }


def _grade(value: object) -> dict[str, Any]:
    grade = value.get("grade") if isinstance(value, dict) else None
    if grade not in GRADES:
        raise Refusal("wrong_fields", value)
    return {"grade": GRADES.index(grade)}


def _key(pair: JudgePair, rubric: Rubric, endpoint: Endpoint) -> str:
    texts = [pair.video.texts.get(field) or "" for field in FIELDS[:2]]
    parts = [endpoint.identity, rubric.version, pair.query, texts]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
