"""What BM25 takes for words, by language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import bm25s
import Stemmer

from crops.errors import CropsError, nearest

Tokeniser = Literal["english", "bigrams"]
"""`english`: runs of at least two letters or digits, in lower case, without English stop words, cut by the
English Snowball stemmer. `bigrams`: two neighbouring characters each of a run of Chinese, Japanese or Korean,
one that stands alone as it is, and other runs of letters or digits whole, as Lucene's CJKAnalyzer."""

Splitter = Callable[[Sequence[str]], list[list[str]]]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
"""Hiragana and katakana, Han with its extensions, Hangul."""
_RUN = re.compile(rf"(?P<cjk>[{_CJK}]+)|[^\W{_CJK}]+")


def splitter(tokeniser: Tokeniser) -> Splitter:
    """Return the function from texts to the words of each.

    Raises:
        CropsError: there is no such tokeniser.
    """
    if tokeniser == "english":
        stemmer = Stemmer.Stemmer("english")
        return lambda texts: _english(texts, stemmer)
    if tokeniser == "bigrams":
        return lambda texts: [_bigrams(text) for text in texts]
    known = get_args(Tokeniser)
    raise CropsError(
        f"unknown tokeniser '{tokeniser}'; known: {', '.join(known)}.{nearest(tokeniser, known)}"
    )


def _english(texts: Sequence[str], stemmer: Stemmer.Stemmer) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(
        list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    return words


def _bigrams(text: str) -> list[str]:
    words: list[str] = []
    for run in _RUN.finditer(unicodedata.normalize("NFKC", text).casefold()):
        found = run.group()
        pairs = [found[place : place + 2] for place in range(len(found) - 1)] if run.group("cjk") else []
        words += pairs or [found]
    return words
