"""Which commands a page shows: the lines of its shell blocks and its inline code that call `crops`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt

SHELLS = ("", "sh", "bash", "console")
"""Languages of the fenced blocks whose lines are commands."""
LEFT_OUT = ("...", "…")
"""Stands for words that the reader knows."""
_CALL = re.compile(r"(?:^|\s)(?:--nproc-per-node \S+ )?(crops [a-z].*)")


@dataclass(frozen=True)
class Usage:
    """A call of `crops` in a text."""

    line: int
    words: tuple[str, ...]
    """What follows `crops`."""
    inline: bool
    """Whether it stands in running text, where arguments may be left out."""

    @property
    def complete(self) -> bool:
        """Whether no word was left out."""
        return not any(word in LEFT_OUT for word in self.words)


def usages(markdown: str) -> list[Usage]:
    """Return the calls in a page's shell blocks and inline code, in order."""
    return [
        Usage(line, words, inline)
        for line, text, inline in _code(markdown)
        if (match := _CALL.search(text)) and (words := _words(match[1]))
    ]


def _words(call: str) -> tuple[str, ...]:
    """Return the words up to a comment, a pipe or another command."""
    lexer = shlex.shlex(call, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if set(word) <= set("|;&<>"):
            break
        words.append(word)
    return tuple(words[1:])


def _code(markdown: str) -> Iterator[tuple[int, str, bool]]:
    """Yield line number, command and whether it stands in running text."""
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        first = token.map[0] + 1 if token.map else 0
        if token.type == "fence" and token.info.strip() in SHELLS:
            for offset, line in _joined(token.content.splitlines()):
                yield first + 1 + offset, line, False
        elif token.type == "inline":
            for child in token.children or ():
                if child.type == "code_inline":
                    yield first, child.content, True


def _joined(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Join lines that a backslash continues; each keeps the number of its first."""
    whole, start = "", 0
    for number, line in enumerate(lines):
        start = start if whole else number
        if line.endswith("\\"):
            whole += line[:-1]
            continue
        yield start, whole + line
        whole = ""
