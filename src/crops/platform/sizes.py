"""How large a simulated platform is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Extent of a platform; smaller ones use fewer heads, so that each head keeps several hundred items."""

    heads: int
    items: int
    authors: int
    users: int
    sessions: int
    """Search sessions per day; a session is one need and one to a few searches."""


SIZES: dict[str, Size] = {
    "tiny": Size(heads=4, items=2_000, authors=200, users=150, sessions=300),
    "demo": Size(heads=16, items=8_000, authors=800, users=4_000, sessions=10_000),
    "small": Size(heads=24, items=20_000, authors=2_000, users=5_000, sessions=15_000),
    "base": Size(heads=120, items=100_000, authors=10_000, users=30_000, sessions=70_000),
    "large": Size(heads=120, items=1_000_000, authors=100_000, users=60_000, sessions=40_000),
}
"""`tiny` is for tests, `demo` for `crops demo`, `small` for experiments on a laptop, `base` for published
tables (about 100,000 searches and 1 million feed events a day), `large` for a million items."""
