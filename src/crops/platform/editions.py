"""Editions of the benchmark: what the catalogue and the searchers have in common in all of its worlds.

`v1` is too easy to tell sources apart: its day before the test had shown what most test clicks are on, and a
baseline that reads click queries finds nearly all of it. `v2` changes the old system's side only, and was
frozen before any method but that system was trained on it (docs/platform.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from crops.config import PlatformConfig
from crops.platform.people import FIRST_LEVEL
from crops.platform.topics import SPEECHLESS
from crops.platform.world import ARRIVAL_DAYS, SIZES, Size


@dataclass(frozen=True)
class Edition:
    """Settings that all worlds of an edition share; the defaults are those of v1."""

    items: float = 1.0
    """Items, as a multiple of the size's."""
    sessions: float = 1.0
    """Search sessions a day, as a multiple of the size's."""
    arrival_days: int = ARRIVAL_DAYS
    """At least two more than are simulated."""
    speechless: float = SPEECHLESS
    first_level: tuple[float, float, float] = FIRST_LEVEL


EDITIONS: Mapping[str, Edition] = MappingProxyType(
    {
        "v1": Edition(),
        "v2": Edition(
            items=2.5,
            sessions=0.4,
            arrival_days=6,
            speechless=0.20,
            first_level=(0.25, 0.55, 0.20),
        ),
    }
)


def extent(config: PlatformConfig) -> Size:
    """Return how large a world of these settings is."""
    size, edition = SIZES[config.size], EDITIONS[config.edition]
    sessions = config.sessions or round(size.sessions * edition.sessions)
    users = config.users or size.users
    return replace(size, items=round(size.items * edition.items), sessions=sessions, users=users)
