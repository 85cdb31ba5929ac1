"""How needs become queries: a phrase at some level of detail, then modifiers, lost words and typos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crops.platform.behaviour import Behaviour
from crops.platform.world import HEAD_LEVEL, NEED_LEVEL, SENSE_LEVEL, Intents, Ints, zipf

FIRST_LEVEL = (0.45, 0.27, 0.28)
"""Level of a session's first query: head, sense, need. A vague start is more common than a specific one."""
MODIFIED = (0.35, 0.50, 0.50)
"""Chance of a modifier by level."""
MODIFIER_FIRST = 0.2
"""Share of modifiers that precede the phrase."""
LOSES_WORD, TYPO = 0.12, 0.05
"""Chances of a phrase of four or more words to lose one, and of any text to have a slip of the finger."""
MODIFIERS = (
    "tutorial", "for beginners", "tips", "video", "easy", "ideas", "2026", "explained", "guide", "at home",
    "step by step", "best", "quick", "help", "review", "before and after", "fast", "simple", "at night",
    "without tools", "for kids", "in one minute", "mistakes", "real life", "close up", "advice",
)  # fmt: skip
"""Words that searchers add; drawn by Zipf's law."""


class Speech:
    """Turns needs into phrases, and phrases into typed text."""

    def __init__(self, intents: Intents) -> None:
        """Index the phrases by level and owner."""
        phrases = intents.phrases
        self._intents = intents
        self._phrases = phrases
        at_level = [phrases.level == level for level in (HEAD_LEVEL, SENSE_LEVEL, NEED_LEVEL)]
        owners = (phrases.head, phrases.sense, phrases.need)
        self._rows = [np.flatnonzero(mask) for mask in at_level]
        vague_last = np.argsort(-phrases.level, kind="stable").tolist()
        self._exact = {phrases.text[row]: row for row in vague_last}
        self._counts = [np.bincount(owner[mask]) for owner, mask in zip(owners, at_level, strict=True)]

    def first(self, need: Ints, rng: np.random.Generator) -> Ints:
        """Draw the phrase row of a session's first query."""
        return self._draw(need, rng.choice(3, len(need), p=FIRST_LEVEL), rng)

    def again(self, need: Ints, phrase: Ints, model: Behaviour, rng: np.random.Generator) -> Ints:
        """Draw the phrase row of a reformulation: more specific, other words, or more general."""
        mode = rng.random(len(need))
        step = np.where(mode < model.specify, 1, np.where(mode < model.specify + model.rephrase, 0, -1))
        level = np.clip(self._phrases.level[phrase] + step, HEAD_LEVEL, NEED_LEVEL)
        return self._draw(need, level, rng)

    def level(self, phrase: Ints) -> Ints:
        """Return how much phrase rows give away."""
        return self._phrases.level[phrase]

    def meanings(self, texts: Sequence[str], phrase: Ints) -> Ints:
        """Return (head, sense, need) that typed texts say, [n, 3]; -1 where they do not say.

        Args:
            texts: what was typed.
            phrase: the phrase rows meant; a text that is itself a phrase means that one, whoever typed it.
        """
        phrases = self._phrases
        typed = zip(texts, phrase.tolist(), strict=True)
        phrase = np.array([self._exact.get(text, row) for text, row in typed])
        return np.stack([phrases.head[phrase], phrases.sense[phrase], phrases.need[phrase]], axis=1)

    def _draw(self, need: Ints, level: Ints, rng: np.random.Generator) -> Ints:
        sense = self._intents.need_sense[need]
        owners = (self._intents.sense_head[sense], sense, need)
        ticket = rng.random(len(need))
        result = np.zeros(len(need), dtype=np.int64)
        for at, (rows, counts, owner) in enumerate(zip(self._rows, self._counts, owners, strict=True)):
            first = np.concatenate([[0], np.cumsum(counts)])[owner]
            drawn = rows[np.minimum(first + (ticket * counts[owner]).astype(np.int64), len(rows) - 1)]
            result = np.where(level == at, drawn, result)
        return result

    def type(self, phrase: Ints, rng: np.random.Generator) -> list[str]:
        """Return the texts typed for phrase rows: with modifiers, lost words and slips of the finger."""
        n = len(phrase)
        texts = [self._phrases.text[row] for row in phrase]
        place = rng.random((n, 2))
        for row in np.flatnonzero(rng.random(n) < LOSES_WORD):
            texts[row] = _lose_word(texts[row], place[row, 0])
        modifier = rng.choice(len(MODIFIERS), n, p=zipf(len(MODIFIERS)))
        before = rng.random(n) < MODIFIER_FIRST
        for row in np.flatnonzero(rng.random(n) < np.array(MODIFIED)[self._phrases.level[phrase]]):
            added = MODIFIERS[modifier[row]]
            texts[row] = f"{added} {texts[row]}" if before[row] else f"{texts[row]} {added}"
        swap = rng.random(n) < 0.5
        for row in np.flatnonzero(rng.random(n) < TYPO):
            texts[row] = _slip(texts[row], place[row, 1], bool(swap[row]))
        return texts


def _lose_word(text: str, place: float) -> str:
    """Leave out the word at relative `place`, if at least four are there."""
    words = text.split()
    if len(words) < 4:
        return text
    del words[int(place * len(words))]
    return " ".join(words)


def _slip(text: str, place: float, swap: bool) -> str:
    """Drop the letter at relative `place`, or swap it with the next."""
    if len(text) < 2:
        return text
    at = int(place * (len(text) - 1))
    middle = text[at + 1] + text[at] if swap else text[at + 1]
    return (text[:at] + middle + text[at + 2 :]).strip()
