"""What a chat completion holds: the JSON value that the model wrote, out of whatever it wrapped it in."""

from __future__ import annotations

import json
import re
from typing import Any

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
