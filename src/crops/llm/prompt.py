"""The one-shot prompt of the pseudo-retriever (CroPS, P3): query and one logged positive in, a new video out.

The exemplar is a past chat turn, not part of the instruction: small models copy the latter word by word.
The `unlike` field of the user turn names the exemplar's title for the same reason.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from crops.config import KnowledgeConfig
from crops.errors import CropsError
from crops.text import normalise_query

FIELDS = ("ocr_cover", "photo_caption", "click_query", "keyword")
"""What the LLM writes; the columns of `items` of the same names."""
SEPARATORS = {"click_query": "|", "keyword": " "}
"""Fields that are lists of terms, with the separator that the schema of `items` gives them."""
Message = dict[str, str]
T = TypeVar("T")


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


class Limit(NamedTuple):
    """Lengths of a field, in characters."""

    min_chars: int
    max_chars: int


class Lesson(NamedTuple):
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
        """Return the format of the answer: exactly the four fields, with length limits."""
        fields = {
            field: {"type": "string", "minLength": limit.min_chars, "maxLength": limit.max_chars}
            for field, limit in self.limits.items()
        }
        return json_format("video", fields)


def json_format(name: str, properties: Mapping[str, object]) -> dict[str, Any]:
    """Return the `response_format` of an answer with exactly these fields, given their JSON schemas."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def _user(query: str, angle: str, unlike: str | None) -> Message:
    turn = {"query": query, "angle": angle} | ({"unlike": unlike} if unlike else {})
    return {"role": "user", "content": json.dumps(turn, ensure_ascii=False)}


def _assistant(texts: Mapping[str, str]) -> Message:
    answer = {field: texts.get(field, "") for field in FIELDS}
    return {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)}


def load_prompt(name: str = "en") -> Prompt:
    """Read a packaged prompt template (`en`, `en2`, `zh`), or an own one by the path of its `.toml` file.

    Raises:
        CropsError: there is no such template, or a part of it is missing or malformed.
    """
    return load_template(name, "prompt template", ("en", "en2", "zh"), _parse)


def load_template(
    name: str, what: str, packaged: Sequence[str], parse: Callable[[str, dict[str, Any]], T]
) -> T:
    """Return what `parse` makes of a template: of its version, which names file and content, and its values.

    `name` is that of a packaged template, or the path of an own one (`.toml`); `what` it is, in words.

    Raises:
        CropsError: there is no such template, or a part of it is missing or malformed.
    """
    own = name.endswith(".toml")
    source = Path(name) if own else resources.files("crops.llm") / "prompts" / f"{name}.toml"
    if not source.is_file():
        raise CropsError(f"no {what} at {source}; packaged: {', '.join(packaged)}")
    raw = source.read_bytes()
    try:
        return parse(f"{Path(name).stem}-{hashlib.sha256(raw).hexdigest()[:8]}", tomllib.loads(raw.decode()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CropsError(
            f"{source}: malformed {what}: {error!r}; compare it with {packaged[0]}.toml"
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


# What may go to an LLM, and what of its answers may become a training positive. A JSON schema guarantees
# shape, not content: these checks look at the content. Each returns None or the reason for the refusal, a
# short stable name that counts and the quarantine file show.

MIN_USERS = KnowledgeConfig().min_users
"""k-anonymity where the caller sets nothing else."""
MAX_QUERY_CHARS = 64
"""A longer query is no search phrase; cutting it would change what it asks."""
MAX_EXEMPLAR_CHARS = 200
"""Texts of creators are cut here, each field."""
MAX_OVERLAP = 0.6
"""Largest share of an answer's words that may come from the exemplar (copy) or from the query (echo)."""
MIN_DISTINCT = 0.5
"""Smallest share of distinct words in a title and caption of at least 8 words."""
_SPLIT = {"click_query": r"[|;]", "keyword": r"[\s|,;]+"}
_CHAT_TOKENS = re.compile(
    r"<\|[^|>]{0,40}\|?>?|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>", re.IGNORECASE
)
_STRUCTURE = re.compile(r"[{}\[\]<>\\`\"“”«»]")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")
_EMAIL = (
    r"[\w.+-]+\s?(?:@|\(at\)|\[at\])\s?[\w-]+\s?(?:\.|\(dot\)|\[dot\])\s?[a-z]{2,}"
    r"|\b[\w.+-]+\s+at\s+[\w-]+\s+dot\s+[a-z]{2,}\b"
)
_URL = r"https?:|www\.|\b[\w-]+\.(?:com|net|org|info|biz|shop|ru|cn|io|me|co|app|xyz|site|online|example)\b"
_HANDLE = r"(?<!\w)@\w{2,}"
_PHONE = r"(?<!\d)\+?(?=[\d\s().-]*\d{3})\d(?:[\s().-]{0,2}\d){6,}(?!\d)"
_CHANNEL = r"\b(?:whats\s?app|telegram|wechat)\b.{0,12}\d{3}|(?:微信|电话|手机号).{0,12}\d{3}"
_IDENTITY = (
    r"\b\d{3}-\d{2}-\d{4}\b|\b[a-z]{2}\d{2}(?:\s?[a-z0-9]{4}){3,7}\b"
    r"|\b(?:passport|ssn|iban)\b.{0,20}\d{3}|身份证.{0,20}\d{3}"
)
_ADDRESS = (
    r"\b\d{1,5}[a-z]?\s+(?:\w+\s+){1,2}(?:street|st|avenue|ave|road|rd|lane|blvd|boulevard)\b"
    r"|\b(?:\w*stra(?:ß|ss)e|rue|via|calle)\s+(?:\w+\s+){0,3}\d{1,4}\b|\d{1,4}\s?号.{0,6}[室楼]"
)
_CONTACT = re.compile("|".join((_EMAIL, _URL, _HANDLE, _PHONE, _CHANNEL, _IDENTITY)), re.IGNORECASE)
_POSTAL = re.compile(_ADDRESS, re.IGNORECASE)
_INJECTION = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,40}\b(?:instructions?|prompts?|previous|above)\b"
    r"|\bsystem\s+(?:prompt|message)\b|\byou are (?:now|no longer)\b|\bnew instructions?\b"
    r"|\b(?:assistant|system)\s*:|\bdeveloper mode\b|\brespond (?:only )?with\b"
    r"|\b(?:reveal|print|repeat|output)\b.{0,30}\b(?:prompt|instructions)\b"
    r"|ocr_cover|photo_caption|click_query|(?:忽略|无视).{0,12}(?:指令|提示|规则|以上)|系统提示",
    re.IGNORECASE,
)


def clean(text: str, max_chars: int) -> str:
    """Return `text` in NFKC without invisible, control, quoting and chat-template characters, cut.

    Invisible characters vanish (they split words to slip past checks); the others become a space.
    """
    text = unicodedata.normalize("NFKC", text[: 8 * max_chars])
    text = "".join(ch for ch in text if unicodedata.category(ch) != "Cf")
    text = _STRUCTURE.sub(" ", _CHAT_TOKENS.sub(" ", text))
    text = "".join(" " if unicodedata.category(ch).startswith("C") else ch for ch in text)
    return " ".join(text.split())[:max_chars].rstrip()


def clean_request(request: Request) -> Request:
    """Return the request as an LLM may read it: query and exemplar cleaned and cut, empty fields left out."""
    texts = {field: clean(request.exemplar.texts.get(field) or "", MAX_EXEMPLAR_CHARS) for field in FIELDS}
    exemplar = Exemplar(request.exemplar.item_id, {field: text for field, text in texts.items() if text})
    return replace(request, query=clean(request.query, MAX_QUERY_CHARS), exemplar=exemplar)


def check_users(users: int, min_users: int) -> str | None:
    """Return `few_users` when fewer than `min_users` distinct users issued the query (k-anonymity)."""
    return "few_users" if users < min_users else None


def check_query(query: str) -> str | None:
    """Return why a (normalised, not yet cleaned) query must not be sent to an LLM, or None."""
    if query != normalise_query(query):
        return "query_not_normalised"
    if len(query) > MAX_QUERY_CHARS:
        return "query_too_long"
    text = clean(query, MAX_QUERY_CHARS)
    if not words(text):
        return "query_empty"
    if _CONTACT.search(text) or _POSTAL.search(text):
        return "query_personal"
    if _CHAT_TOKENS.search(query) or _INJECTION.search(text):
        return "query_injection"
    return "query_blocked" if _blocked(text) else None


def check_exemplar(exemplar: Exemplar) -> str | None:
    """Return why a logged positive must not be shown to an LLM, or None. Creators, too, may be hostile."""
    texts = [clean(exemplar.texts.get(field) or "", MAX_EXEMPLAR_CHARS) for field in FIELDS]
    text = " . ".join(texts)
    if not words(texts[0] + texts[1]):
        return "exemplar_empty"
    if _CONTACT.search(text):
        return "exemplar_contact"
    if any(_CHAT_TOKENS.search(raw or "") for raw in exemplar.texts.values()) or _INJECTION.search(text):
        return "exemplar_injection"
    return "exemplar_blocked" if _blocked(text) else None


def check_request(request: Request, min_users: int) -> str | None:
    """Return why a request must not be sent (users, then query, then exemplar), or None."""
    return (
        check_users(request.users, min_users)
        or check_query(request.query)
        or check_exemplar(request.exemplar)
    )


def tidy(answer: Mapping[str, str], query: str, limits: Mapping[str, Limit]) -> dict[str, str]:
    """Return the answer cleaned: what the length limit cut in two is dropped, terms are distinct.

    Terms equal to the query leave `click_query`: they say nothing new.
    """
    result = {}
    for field in FIELDS:
        limit = limits[field].max_chars
        cut = len(answer[field]) >= limit
        text = clean(answer[field], limit)
        if field in SEPARATORS:
            terms = [term.strip(" #.,") for term in re.split(_SPLIT[field], text)]
            kept: dict[str, str] = {}
            for term in terms[:-1] if cut else terms:
                if term and term.casefold() != query:
                    kept.setdefault(term.casefold(), term)
            result[field] = SEPARATORS[field].join(kept.values())
        else:
            result[field] = _whole_words(text) if cut else text
    return result


def _whole_words(text: str) -> str:
    sentences = re.match(r".*[.!?。！？]", text)
    if sentences and len(sentences[0]) >= len(text) / 2:
        return sentences[0]
    return text.rpartition(" ")[0] or text


def check_answer(answer: Mapping[str, str], request: Request, prompt: Prompt) -> str | None:
    """Return why a tidy answer must not become a training positive, or None."""
    text = " . ".join(answer.values())
    for field in ("ocr_cover", "photo_caption", "keyword"):
        if len(answer[field]) < prompt.limits[field].min_chars or not words(answer[field]):
            return f"{field}_too_short"
    if _CONTACT.search(text):
        return "contact"
    if _INJECTION.search(text):
        return "injection"
    if _blocked(text):
        return "blocked"
    return _content_fault(answer, request, prompt)


def _content_fault(answer: Mapping[str, str], request: Request, prompt: Prompt) -> str | None:
    exemplar = request.exemplar.texts
    allowed = prompt.scripts | scripts(request.query) | scripts(" ".join(exemplar.values()))
    if scripts(" ".join(answer.values())) - allowed:
        return "foreign_script"
    written = words(f"{answer['ocr_cover']} {answer['photo_caption']}")
    asked, seen = set(words(request.query)), set(words(" ".join(exemplar.values())))
    own = [word for word in written if word not in asked]
    if len(own) < (1 - MAX_OVERLAP) * len(written):
        return "echo"
    if sum(word in seen for word in set(own)) > MAX_OVERLAP * len(set(own)):
        return "copy"
    if any(
        words(answer[field]) == words(exemplar.get(field, "")) for field in ("ocr_cover", "photo_caption")
    ):
        return "copy"
    repeats = len(written) >= 8 and len(set(written)) < MIN_DISTINCT * len(written)
    triples = Counter(zip(written, written[1:], written[2:], strict=False))
    repeats = repeats or any(count >= 3 or len(set(triple)) == 1 for triple, count in triples.items())
    return "repetition" if repeats else None


def words(text: str) -> list[str]:
    """Return the casefolded words of `text`; Chinese and Japanese characters are words of their own."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def scripts(text: str) -> set[str]:
    """Return the scripts of the letters of `text`: the first word of their Unicode names (LATIN, CJK...)."""
    return {unicodedata.name(ch, "UNKNOWN").split()[0] for ch in text if ch.isalpha()}


@cache
def _blocklist() -> re.Pattern[str]:
    lines = (resources.files("crops.llm") / "prompts" / "blocklist.txt").read_text("utf-8").splitlines()
    terms = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    latin = "|".join(re.escape(term) for term in terms if term.isascii())
    other = "|".join(re.escape(term) for term in terms if not term.isascii())
    return re.compile(rf"\b(?:{latin})\b|{other}", re.IGNORECASE)


def _blocked(text: str) -> bool:
    return _blocklist().search(text) is not None
