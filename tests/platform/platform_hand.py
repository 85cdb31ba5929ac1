"""A world small enough to know by heart, and parts of a platform around it.

Needs: 0 hum and 1 winding (sense 0, electric), 2 attention (sense 1, model), 3 watering (sense 2, fig tree).
Heads: 0 transformer (senses 0 and 1), 1 ficus (sense 2).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from crops.platform.learned import Memory
from crops.platform.people import Users
from crops.platform.search import Bubble
from crops.platform.topics import Head, Need, Sense, TopicsWorld, build_intents
from crops.platform.world import Corpus, Intents

HUM, WINDING, ATTENTION, WATERING = range(4)
ELECTRIC, MODEL, FIG = range(3)
PLAIN_BUBBLE = Bubble(popularity=0.0, own_past=5, beyond=1.0, explore=0, boost=0.0)


def need(name: str, *search: str) -> Need:
    """A need with five titles and captions, the first two of each in the searchers' words."""
    said = search[0]
    titles = (f"{said} now", f"{said} again", "zig", "zag", "zog")
    captions = (f"about {said}", f"more {said}", "lorem", "ipsum", "dolor")
    return Need(name, search, titles, captions, (f"{name}tag", f"{name}life"))


def hand_heads() -> list[Head]:
    """Two heads, three senses, four needs."""
    needs = (need("hum", "why does it hum", "loud hum"), need("winding", "coil winding"))
    electric = Sense("electric", "technology", 1, 3, ("power transformer",), ("grid",), ("at home",), needs)
    attention = (need("attention", "self attention"),)
    model = Sense("model", "technology", 3, 1, ("transformer ai",), ("llm",), ("no math",), attention)
    watering = (need("watering", "watering a ficus"),)
    fig = Sense("fig tree", "home", 1, 1, ("fig tree",), ("leafy",), ("in winter",), watering)
    return [Head("transformer", "ambiguous", (electric, model)), Head("ficus", "broad", (fig,))]


def hand_intents(seed: int = 0) -> Intents:
    """The intents of `hand_heads`."""
    return build_intents(hand_heads(), np.random.default_rng(seed))


def hand_world(needs: Sequence[int], second: Sequence[int] | None = None, **columns: Any) -> TopicsWorld:
    """A world with one item per entry of `needs`; `columns` are those of `Corpus`, day -1 when not given."""
    intents, count = hand_intents(), len(needs)
    known: dict[str, Any] = {
        "partial": np.zeros(count, dtype=bool),
        "author": np.arange(count),
        "quality": np.ones(count),
        "duration_ms": np.full(count, 10_000),
        "uploaded_day": np.full(count, -1.0),
        "title": ("title",) * count,
        "caption": ("caption",) * count,
        "tags": (None,) * count,
    }
    known |= {
        name: np.array(value) if isinstance(known[name], np.ndarray) else tuple(value)
        for name, value in columns.items()
    }
    about = np.array(needs)
    corpus = Corpus(need=about, sense=intents.need_sense[about], **known)
    return TopicsWorld(intents, corpus, np.full(count, -1) if second is None else np.array(second))


def hand_users(users: int, *, senses: int = 3, pushes: dict[int, int] | None = None) -> Users:
    """Users with equal interest in everything."""
    pushed = np.full(users, -1)
    for user, item in (pushes or {}).items():
        pushed[user] = item
    interest = np.full((users, senses), 1 / senses, dtype=np.float32)
    return Users(interest, np.full(users, 1 / users), pushed)


def memory_of(
    items: int,
    clicks: dict[str, dict[int, int]] | None = None,
    watched: Sequence[tuple[int, int]] = (),
    plays: Sequence[int] | None = None,
) -> Memory:
    """A memory of clicks {query: {item row: count}} and of (user, item) watches."""
    clicks = clicks or {}
    queries = {text: row for row, text in enumerate(clicks)}
    pairs = [
        (queries[text], item) for text, own in clicks.items() for item, n in own.items() for _ in range(n)
    ]
    memory = Memory(
        np.zeros(items, dtype=np.int64) if plays is None else np.array(plays), np.zeros(3, np.int64)
    )
    memory.queries = queries
    if pairs:
        memory.clicks.append((np.array([q for q, _ in pairs]), np.array([i for _, i in pairs])))
    if watched:
        memory.watched.append((np.array([u for u, _ in watched]), np.array([i for _, i in watched])))
    return memory


class Fixed:
    """A retriever that finds the same item rows for every text."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((len(queries), k), -1)
        found = np.array(self.rows[:k], dtype=np.int64) + 1
        ids[:, : len(found)] = found
        return ids, np.where(ids < 0, -np.inf, 1.0).astype(np.float32)


def within(count: int, n: int, p: float, sigmas: float = 4.5) -> bool:
    """Whether `count` of `n` is what a coin of `p` gives (normal bound, one in a hundred thousand)."""
    return bool(abs(count - n * p) <= sigmas * np.sqrt(n * p * (1 - p)) + 1)
