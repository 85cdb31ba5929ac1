"""Topics: heads (vague queries) with senses, and senses with needs; written by hand, one TOML per head.

For each need the file holds how searchers say it and how creators say it, and the two vocabularies
overlap only in part: that gap is what a lexical route cannot cross.
"""

from __future__ import annotations

import importlib.resources
import tomllib
from dataclasses import dataclass

from crops.errors import CropsError


@dataclass(frozen=True)
class Need:
    """One thing that people want to see; a video answers it or it does not."""

    name: str
    search: tuple[str, ...]
    titles: tuple[str, ...]
    captions: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Sense:
    """One meaning of a head; `demand` and `supply` are relative shares of searchers and creators."""

    name: str
    category: str
    demand: float
    supply: float
    search: tuple[str, ...]
    creator: tuple[str, ...]
    """Words of the scene."""
    details: tuple[str, ...]
    """Short phrases that fit any video of the sense and answer no need."""
    needs: tuple[Need, ...]


@dataclass(frozen=True)
class Head:
    """A vague query that people type."""

    name: str
    kind: str
    senses: tuple[Sense, ...]


def _need(raw: dict[str, list[str]]) -> Need:
    lists = {key: tuple(raw[key]) for key in ("search", "titles", "captions", "tags")}
    return Need(name=str(raw["name"]), **lists)


def _head(text: str) -> Head:
    raw = tomllib.loads(text)
    senses = tuple(
        Sense(
            name=sense["name"],
            category=sense["category"],
            demand=float(sense["demand"]),
            supply=float(sense["supply"]),
            search=tuple(sense["search"]),
            creator=tuple(sense["creator"]),
            details=tuple(sense["details"]),
            needs=tuple(_need(need) for need in sense["needs"]),
        )
        for sense in raw["senses"]
    )
    return Head(raw["head"], raw["kind"], senses)


FIRST_HEADS = (
    "transformer",
    "cushion_foundation",
    "jaguar",
    "ficus",
    "mercury",
    "sourdough",
    "python",
    "guitar_chords",
    "bat",
    "home_workout",
    "squash",
    "camping",
    "orange",
    "hair_braids",
    "bow",
    "small_bathroom",
)
"""The heads of the smaller sizes, in order: words with several meanings and broad needs in turn."""


def load_topics(heads: int) -> list[Head]:
    """Return the first `heads` topics of the package.

    Raises:
        CropsError: more heads are asked than the package has.
    """
    folder = importlib.resources.files("crops.platform") / "topics"
    names = {path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml")}
    order = [*FIRST_HEADS, *sorted(names - set(FIRST_HEADS))]
    if heads > len(order):
        raise CropsError(
            f"setting 'heads' = {heads}: the package has {len(order)} topics; ask for at most that"
        )
    return [_head((folder / f"{name}.toml").read_text()) for name in order[:heads]]
