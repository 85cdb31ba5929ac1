"""BM25, the lexical reference (Robertson & Zaragoza 2009; the Lucene variant of bm25s)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import Stemmer
from numpy.typing import NDArray

from crops.errors import CropsError, nearest
from crops.retrieval.catalogue import (
    NO_ITEM,
    SCORE_DECIMALS,
    best_positions,
    check_k,
    no_results,
    padded_positions_of,
    sorted_catalogue,
)
from crops.text import SPACELESS, terms

Tokeniser = Literal["english", "folded", "bigrams"]
"""`english`: runs of at least two letters or digits, in lower case, without English stop words, cut by the
English Snowball stemmer. `folded`: the same of texts without accents, as people type them. `bigrams`: two
neighbouring characters each of a run of Chinese, Japanese, Korean, Thai and the like, one that stands alone
as it is, and other words whole (`crops.text.terms`)."""
Splitter = Callable[[Sequence[str]], list[list[str]]]
BIGRAMS_FROM = 0.1
"""Share of letters without spaces between words from which `bigrams` is chosen: to `english` a run of them is
one word that no query repeats, while English words lose only their stems."""
FOLDED_FROM = 0.002
"""Share of Latin letters with an accent from which `folded` is chosen; English texts have fewer."""
_ACCENTS = re.compile("[\u0300-\u036f]")


class BM25Retriever:
    """Lexical retrieval: implements `crops.protocols.Retriever`."""

    def __init__(
        self,
        item_ids: NDArray[np.int64] | Sequence[int],
        texts: Sequence[str],
        *,
        k1: float = 1.5,
        b: float = 0.75,
        tokeniser: Tokeniser | None = None,
    ) -> None:
        """Index a catalogue.

        Args:
            item_ids: n distinct ids of real items.
            texts: their document texts (`crops.text.document_text`).
            k1: saturation of the term frequency, at least 0.
            b: strength of the length normalisation, in [0, 1].
            tokeniser: what a word is; chosen by the texts when None (`tokeniser_for`).

        Raises:
            CropsError: the catalogue is empty, holds repeated or negative ids, or has no word at all;
                k1 or b is out of range, or the tokeniser is unknown.
        """
        if k1 < 0 or not 0 <= b <= 1:
            raise CropsError(f"BM25 needs k1 >= 0 and 0 <= b <= 1, not k1 = {k1}, b = {b}")
        self.item_ids, ordered = sorted_catalogue(item_ids, texts)
        self.tokeniser = tokeniser or tokeniser_for([pa.array(ordered, pa.large_string())])
        self._words = splitter(self.tokeniser)
        words = self._words(ordered)
        if not any(words):
            raise CropsError("no document of the catalogue holds a word that BM25 can index")
        import bm25s  # brings jax where that is installed, which takes a second

        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._index.index(words, create_empty_token=False, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return item ids and scores, each [q, k], best first, ties by id; -1 and -inf pad short lists.

        A document without any word of the query scores 0 and is no result.

        Raises:
            CropsError: k < 1.
        """
        check_k(k)
        ids, scores = no_results(len(queries), k)
        for row, words in enumerate(self._words(queries)):
            all_scores = self._all_scores(words)
            matching = np.flatnonzero(all_scores > 0)
            best = matching[best_positions(all_scores[matching], k)]
            ids[row, : len(best)] = self.item_ids[best]
            scores[row, : len(best)] = all_scores[best]
        return ids, scores

    def scores(self, queries: Sequence[str], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the scores [q, c] of the queries with their `candidates` [q, c]; -inf for a candidate -1.

        Raises:
            CropsError: a candidate is not in the catalogue.
        """
        positions = padded_positions_of(self.item_ids, candidates, "the index")
        scores = np.full(candidates.shape, -np.inf, dtype=np.float32)
        for row, words in enumerate(self._words(queries)):
            present = positions[row] != NO_ITEM
            scores[row, present] = self._all_scores(words)[positions[row, present]]
        return scores

    def _all_scores(self, words: list[str]) -> NDArray[np.float32]:
        known = self._index.get_tokens_ids(words)
        scores: NDArray[np.float32] = self._index.get_scores_from_ids(known)
        return np.round(scores, SCORE_DECIMALS)


def tokeniser_for(columns: Sequence[pa.Array]) -> Tokeniser:
    """Return the tokeniser that fits texts in one or more columns, by their script alone."""

    def count(letters: str) -> int:
        return sum(pc.sum(pc.count_substring_regex(column, letters)).as_py() or 0 for column in columns)

    spaceless = count(f"[{SPACELESS}]")
    if spaceless and spaceless >= BIGRAMS_FROM * count(r"\pL"):
        return "bigrams"
    accented = count("[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0300-\u036f]")
    return "folded" if accented and accented >= FOLDED_FROM * count(r"\pL") else "english"


def splitter(tokeniser: Tokeniser) -> Splitter:
    """Return the function from texts to the words of each.

    Raises:
        CropsError: there is no such tokeniser.
    """
    stemmer = Stemmer.Stemmer("english")
    if tokeniser == "english":
        return lambda texts: _english(texts, stemmer)
    if tokeniser == "folded":
        return lambda texts: _english([_without_accents(text) for text in texts], stemmer)
    if tokeniser == "bigrams":
        return lambda texts: [terms(text) for text in texts]
    known = get_args(Tokeniser)
    raise CropsError(
        f"unknown tokeniser '{tokeniser}'; known: {', '.join(known)}.{nearest(tokeniser, known)}"
    )


def _without_accents(text: str) -> str:
    """Return a text without the accents of its letters; vowel signs of other scripts stay."""
    plain = _ACCENTS.sub("", unicodedata.normalize("NFD", text))
    return unicodedata.normalize("NFC", plain)


def _english(texts: Sequence[str], stemmer: Stemmer.Stemmer) -> list[list[str]]:
    import bm25s

    words: list[list[str]] = bm25s.tokenize(
        list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    return words
