"""The one-shot prompt of the pseudo-retriever (CroPS, P3): query and one logged positive in, a new video out.

The exemplar is a past chat turn, not part of the instruction: small models copy the latter word by word.
The `unlike` field of the user turn names the exemplar's title for the same reason.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from crops.errors import CropsError

FIELDS = ("ocr_cover", "photo_caption", "click_query", "keyword")
"""What the LLM writes; the columns of `items` of the same names."""
SEPARATORS = {"click_query": "|", "keyword": " "}
"""Fields that are lists of terms, with the separator that the schema of `items` gives them."""

Message = dict[str, str]


@dataclass(frozen=True)
class Exemplar:
    """A logged positive of the query: its id and the texts of `FIELDS`."""

    item_id: int
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """One document to write.

    `query` is normalised text; `users` is how many distinct users issued it (the k-anonymity gate reads it).
    Nothing else of a user is ever part of a request.
    """

    query: str
    users: int
    exemplar: Exemplar
    seed: int = 0


@dataclass(frozen=True)
class Limit:
    """Lengths of a field, in characters."""

    min_chars: int
    max_chars: int


@dataclass(frozen=True)
class Lesson:
    """A fixed turn that teaches the form."""

    query: str
    angle: str
    answer: Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """A prompt template with its sampling settings; `version` names the file and its content."""

    version: str
    system: str
    angles: tuple[str, ...]
    exemplar_angle: str
    lessons: tuple[Lesson, ...]
    limits: Mapping[str, Limit]
    scripts: frozenset[str]
    temperature: float
    frequency_penalty: float
    max_tokens: int

    def angle(self, request: Request) -> str:
        """Return the angle of a request: fixed by its query and seed, spread evenly over both."""
        first = int.from_bytes(hashlib.sha256(request.query.encode()).digest()[:4], "big")
        return self.angles[(first + request.seed) % len(self.angles)]

    def messages(self, request: Request) -> list[Message]:
        """Return the chat turns for a request whose texts the input guards have cleaned."""
        turns = [{"role": "system", "content": self.system}]
        unlike = None
        for lesson in self.lessons:
            turns += [_user(lesson.query, lesson.angle, unlike), _assistant(lesson.answer)]
            unlike = lesson.answer["ocr_cover"]
        texts = request.exemplar.texts
        title = next((texts[field] for field in FIELDS if texts.get(field)), "")
        turns += [_user(request.query, self.exemplar_angle, None), _assistant(texts)]
        return [*turns, _user(request.query, self.angle(request), title)]

    def payload(self, request: Request) -> dict[str, Any]:
        """Return the chat completion request, without the model, for a request that the guards cleaned."""
        return {
            "messages": self.messages(request),
            "response_format": self.response_format(),
            "temperature": self.temperature,
            "frequency_penalty": self.frequency_penalty,
            "max_tokens": self.max_tokens,
            "seed": request.seed,
        }

    def response_format(self) -> dict[str, Any]:
        """Return the `json_schema` response format: exactly the four fields, with length limits."""
        properties = {
            field: {"type": "string", "minLength": limit.min_chars, "maxLength": limit.max_chars}
            for field, limit in self.limits.items()
        }
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return {"type": "json_schema", "json_schema": {"name": "video", "strict": True, "schema": schema}}


def _user(query: str, angle: str, unlike: str | None) -> Message:
    turn = {"query": query, "angle": angle} | ({"unlike": unlike} if unlike else {})
    return {"role": "user", "content": json.dumps(turn, ensure_ascii=False)}


def _assistant(texts: Mapping[str, str]) -> Message:
    answer = {field: texts.get(field, "") for field in FIELDS}
    return {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)}


def template_file(name: str) -> Path | Traversable:
    """Return the file of a packaged template, or of an own one that is named by its path (`.toml`)."""
    if name.endswith(".toml"):
        return Path(name)
    return resources.files("crops.llm") / "prompts" / f"{name}.toml"


def load_prompt(name: str = "en") -> Prompt:
    """Read a prompt template.

    Args:
        name: a packaged template (`en`, `en2`, `zh`), or the path of an own one (`.toml`).

    Raises:
        CropsError: there is no such template, or a part of it is missing or malformed.
    """
    source = template_file(name)
    if not source.is_file():
        raise CropsError(f"no prompt template at {source}; packaged ones are en, en2 and zh")
    raw = source.read_bytes()
    try:
        return _parse(f"{Path(name).stem}-{hashlib.sha256(raw).hexdigest()[:8]}", tomllib.loads(raw.decode()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CropsError(
            f"{source}: malformed prompt template: {error!r}; compare it with en.toml"
        ) from error


def _parse(version: str, values: dict[str, Any]) -> Prompt:
    return Prompt(
        version=version,
        system=values["system"].strip(),
        angles=tuple(values["angles"]),
        exemplar_angle=values["exemplar_angle"],
        lessons=tuple(Lesson(**lesson) for lesson in values["lesson"]),
        limits={field: Limit(**values["fields"][field]) for field in FIELDS},
        scripts=frozenset(values["scripts"]),
        temperature=float(values["temperature"]),
        frequency_penalty=float(values["frequency_penalty"]),
        max_tokens=int(values["max_tokens"]),
    )
