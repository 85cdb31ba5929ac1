"""The worlds that a claim is tried in: behaviour models, the null world, the bubble, human grades."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from crops.config import PlatformConfig
from crops.errors import CropsError, nearest
from crops.platform import SIZES

DEFAULT = "default"
JUDGED = "judged"
WORLDS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        DEFAULT: {},
        "dcm": {"click_model": "dcm"},
        "pbm": {"click_model": "pbm"},
        "null": {"informative": False},
        "weak": {"bubble": "weak"},
        "strong": {"bubble": "strong"},
        JUDGED: {},
    }
)
"""Settings of the platform in which each differs from the default, whose click model is `dbn`; `null`: later
queries and the feed say nothing about a need; `judged`: real texts and human grades, from a folder."""
_COLLECTION = ("docs.parquet", "queries.parquet", "qrels.parquet")


@dataclass(frozen=True)
class World:
    """A simulated platform; equal worlds are simulated once."""

    name: str
    """One of `WORLDS`, or what a dial of the map was turned to."""
    platform: PlatformConfig
    seed: int
    collection: str = ""
    """Hash of the judged collection's files."""

    @property
    def label(self) -> str:
        """Return the name that files and messages use, e.g. `small-default-0`."""
        return f"{self.platform.size}-{self.name}-{self.seed}"


def parse_worlds(names: str) -> list[str]:
    """Return the worlds of a comma-separated list; `all` is all but the judged one, which needs a folder.

    Raises:
        CropsError: a name is unknown or repeated.
    """
    if names == "all":
        return [name for name in WORLDS if name != JUDGED]
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in WORLDS:
            known = ", ".join(WORLDS)
            raise CropsError(f"unknown world '{name}'; known: {known}, all.{nearest(name, WORLDS)}")
    if len(set(wanted)) < len(wanted):
        raise CropsError(f"worlds {names}: one is named twice; name each once")
    return wanted


def parse_seeds(seeds: str) -> list[int]:
    """Return the seeds: `3` = 0, 1, 2; `4,7` = exactly these; `5,` = seed 5 alone.

    Raises:
        CropsError: one is no number, negative or repeated.
    """
    try:
        wanted = [int(part) for part in seeds.split(",") if part.strip()]
    except ValueError:
        raise CropsError(f"seeds '{seeds}': give how many, e.g. 3, or a list, e.g. 0,1,2") from None
    if "," not in seeds:
        wanted = list(range(wanted[0])) if wanted else []
    if not wanted or min(wanted) < 0:
        raise CropsError(f"seeds '{seeds}': give at least one, none below 0")
    if repeated := sorted({seed for seed in wanted if wanted.count(seed) > 1}):
        raise CropsError(
            f"seeds '{seeds}': {repeated[0]} is named twice, and would count twice; name it once"
        )
    return wanted


def build_world(name: str, size: str, seed: int, judged: Path | None = None) -> World:
    """Return a named world.

    Args:
        name: one of `WORLDS`.
        size: one of `crops.platform.SIZES`.
        seed: of everything random in it.
        judged: folder of docs, queries and qrels, for `judged`.

    Raises:
        CropsError: the size is unknown, or the judged collection is not named or not there.
    """
    if size not in SIZES:
        raise CropsError(f"unknown size '{size}'; known: {', '.join(SIZES)}.{nearest(size, SIZES)}")
    settings = dict(WORLDS[name])
    if name != JUDGED:
        return World(name, PlatformConfig.model_validate({"size": size, **settings}), seed)
    if judged is None:
        raise CropsError("the world 'judged' needs --judged FOLDER with docs, queries and qrels as Parquet")
    settings["world"] = str(judged.resolve())
    return World(
        name,
        PlatformConfig.model_validate({"size": size, **settings}),
        seed,
        content_hash([judged / file for file in _COLLECTION]),
    )


def content_hash(files: Sequence[Path]) -> str:
    """Return 16 hex digits of what the files hold.

    Raises:
        CropsError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise CropsError(f"{file}: cannot be read: {error}") from error
    return digest.hexdigest()[:16]
