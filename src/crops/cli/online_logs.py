"""How the commands on experiments read logs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from crops.cli.mine import job
from crops.config import RunConfig
from crops.engine import CachedScorer
from crops.engine.scoring import cached
from crops.errors import CropsError, nearest
from crops.online.userdays import Reading
from crops.outputs import MANIFEST, cache_folder


def reading(logs: Path, run: RunConfig, routes: Mapping[str, int]) -> Reading:
    """Return how logs are read: the reformulations of P1 by the run's theta, and the routes of interest."""
    return Reading(routes, run.engine.reformulation, _similarity(logs, run), run.engine.memory)


def _similarity(logs: Path, run: RunConfig) -> CachedScorer | None:
    return cached(job(logs, run, None).similarity, cache_folder() / "scores")


def route_bits(logs: Path, wanted: Sequence[str] | None) -> dict[str, int]:
    """Return recall routes and their bits.

    Args:
        logs: the logs folder; the manifest in it or beside it may name the bits of `routes`.
        wanted: names of that manifest, or `name=bit` for logs without one; none when None.

    Raises:
        CropsError: a name is unknown, or a bit is no number.
    """
    names = _route_names(logs)
    bits: dict[str, int] = {}
    for route in wanted or ():
        name, given, bit = route.partition("=")
        if given and not bit.isdigit():
            raise CropsError(f"--route {route}: '{bit}' is no bit; give the position in the mask, 0 = lowest")
        if not given and name not in names:
            known = ", ".join(names) or "none (no manifest names them)"
            raise CropsError(
                f"--route {route}: the routes with a name are: {known}.{nearest(name, names)} Say NAME=BIT "
                "where the mask has no names, e.g. dense=1"
            )
        bits[name] = int(bit) if given else names.index(name)
    return bits


def _route_names(logs: Path) -> list[str]:
    for folder in (logs, logs.parent, logs.parent.parent):
        if (folder / MANIFEST).is_file():
            names: list[str] = json.loads((folder / MANIFEST).read_text()).get("routes", [])
            if names:
                return names
    return []
