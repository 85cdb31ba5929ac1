"""Where the random numbers of a day come from: one stream, or numbers that belong to a search.

Two copies of a world that show different lists part ways at once if they read one stream: the first person
who stays longer shifts the numbers of all who follow. With `KeyedDraws` each number is fixed by seed, day,
step of the session, draw and session, so that what differs between the copies is caused by the lists (common
random numbers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from scipy.special import betaincinv, ndtri

from crops.platform.world import Floats, Ints

if TYPE_CHECKING:
    from crops.platform.day import Searches
    from crops.platform.speech import Speech

Rng = np.random.Generator

STEPS = 10
"""Room for the searches of a session in the numbers of keyed searches."""
_STEP, _TYPING, _FEED = 1, 2, 3
"""What a stream is for; never 0, which numpy's seeds do not tell from nothing."""


class Draws(Protocol):
    """Where the random numbers of one day come from."""

    def start(self) -> Rng:
        """Return what decides who comes, for what, and what they type first."""
        ...

    def number(self, step: int, session: Ints) -> Ints:
        """Return the numbers in the day, from 1, of the searches of a step [n]."""
        ...

    def step(self, step: int, session: Ints) -> Rng:
        """Return what decides how the sessions [n] of a step click, and how they go on."""
        ...

    def typed(self, step: int, after: Searches, before: Searches, speech: Speech) -> Searches:
        """Return the searches after a step with the text that is typed."""
        ...

    def feed(self) -> Rng:
        """Return what decides what the feed brings and how it is watched."""
        ...


class StreamDraws:
    """One stream of numbers, used up in the order of the day."""

    def __init__(self, seed: int, day: int) -> None:
        self._rng, self._searches = np.random.default_rng([seed, day]), 0

    def start(self) -> Rng:
        """Return the stream."""
        return self._rng

    def number(self, step: int, session: Ints) -> Ints:
        """Count the searches of the day."""
        first, self._searches = self._searches, self._searches + len(session)
        return first + np.arange(len(session)) + 1

    def step(self, step: int, session: Ints) -> Rng:
        """Return the stream."""
        return self._rng

    def typed(self, step: int, after: Searches, before: Searches, speech: Speech) -> Searches:
        """Leave the text as the step has drawn it."""
        return after

    def feed(self) -> Rng:
        """Return the stream."""
        return self._rng


@dataclass(frozen=True)
class KeyedDraws:
    """Numbers fixed per session; people and first words are those of `StreamDraws`."""

    seed: int
    day: int
    sessions: int
    """All sessions of the day, those of abusers included."""

    def start(self) -> Rng:
        """Return the platform's own generator of the day."""
        return np.random.default_rng([self.seed, self.day])

    def number(self, step: int, session: Ints) -> Ints:
        """Return the place of the search: the same place is the same event in every copy of a world."""
        return session * STEPS + step + 1

    def step(self, step: int, session: Ints) -> Rng:
        """Return numbers that are fixed per session and draw."""
        return self._keyed((_STEP, step + 1), session)

    def typed(self, step: int, after: Searches, before: Searches, speech: Speech) -> Searches:
        """Type new searches anew with numbers of their sessions; a turned page keeps its text."""
        text = speech.type(after.phrase, self._keyed((_TYPING, step + 1), after.session))
        chosen = [old if page else new for old, new, page in zip(after.text, text, after.page, strict=True)]
        return replace(after, text=chosen)

    def feed(self) -> Rng:
        """Return a stream of its own: the feed does not depend on the searches of its day."""
        return np.random.default_rng([self.seed, self.day, _FEED])

    def _keyed(self, purpose: tuple[int, int], session: Ints) -> Rng:
        # It offers those methods of a generator that the steps of a search use.
        return cast(Rng, _Keyed((self.seed, self.day, *purpose), session, self.sessions))


class _Keyed:
    """Each call draws for all sessions of the day and hands out the rows of those that are still there.

    Only the typing inside a step asks for other rows than its sessions; `KeyedDraws.typed` does that again.
    """

    def __init__(self, key: Sequence[int], session: Ints, sessions: int) -> None:
        self._key, self._session, self._sessions, self._calls = key, session, sessions, 0

    def random(self, size: int | tuple[int, ...]) -> Floats:
        """Return numbers in [0, 1), one row per session."""
        rows, *columns = (size,) if isinstance(size, int) else size
        self._calls += 1
        stream = np.random.default_rng([*self._key, self._calls])
        if rows != len(self._session):
            return stream.random(size)
        return stream.random((self._sessions, *columns))[self._session]

    def beta(self, a: Floats, b: Floats) -> Floats:
        """Return Beta(a, b) by its inverse: numbers stay with their rows whatever a and b are."""
        return cast(Floats, betaincinv(a, b, self.random(a.shape)))

    def lognormal(self, mean: float, sigma: float, size: int) -> Floats:
        """Return log-normal numbers by their inverse."""
        return cast(Floats, np.exp(mean + sigma * ndtri(self.random(size))))

    def choice(self, n: int, size: int, p: Sequence[float]) -> Ints:
        """Return numbers below n with chances p."""
        return np.minimum(np.searchsorted(np.cumsum(p), self.random(size), side="right"), n - 1)

    def permutation(self, values: Ints) -> Ints:
        """Return a value for each row, drawn with replacement by rank: who else is there matters little."""
        return np.sort(values)[(self.random(len(values)) * len(values)).astype(np.int64)]
