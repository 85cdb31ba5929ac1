"""What a row of the paper's tables is: the settings of the one trainer that make it, and what is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crops.errors import CropsError, nearest
from crops.labels import Source
from crops.negatives.base import Corpus, Miner, Schedule

Value = bool | int | float
Point = Mapping[str, Value]
"""Settings of a method; see `SETTINGS`."""

SETTINGS: dict[str, Value] = {
    "learning_rate_scale": 1.0,
    "temperature": 0.05,
    "docs_per_source": 4,
    "min_anchor_label": 1,
    "negatives": 0,
    "in_batch": True,
    "warm_up": 0.2,
    "refresh": 50,
    "query_share": 0.25,
}
"""What a point may set, with its default: a factor of the run's learning rate; the start temperature; most
documents per (label, source); the lowest label that is contrasted with what is below it; most own negatives
per query (0: what the budget of documents leaves); whether other queries' documents are negatives; the share
of the steps before the first index; steps between two indexes; the share of the steps that train the query
tower alone (ADORE)."""


@dataclass(frozen=True)
class Method:
    """A row of the paper's tables."""

    title: str
    paper: str
    """Where it comes from."""
    trains_on: str
    """What it knows of the logs."""
    keep: Source
    """The sources of its groups."""
    loss: str
    """See `crops.config.TrainingConfig.loss`."""
    grid: tuple[Point, ...]
    """What is tried on the validation part."""
    labels: Mapping[Source, int] | None = None
    """Label by source, the paper's (`crops.labels.DEFAULT_LABELS`) when None."""
    miner: Callable[[Corpus, Schedule], Miner] | None = None
    """Where its own negatives come from."""
    defaults: Point | None = None
    """Settings that differ from `SETTINGS`."""
    query_miner: Callable[[Corpus], Miner] | None = None
    """Negatives of a second stage, which trains the query tower against the documents of the first."""
    reads_texts: bool = False
    """Whether its miner reads words, which an encoder of ids has none of."""

    def settings(self, point: Point | None) -> dict[str, Value]:
        """Return all settings of the method at a point of its grid.

        Raises:
            CropsError: a setting is unknown.
        """
        for key in point or {}:
            if key not in SETTINGS:
                known = ", ".join(SETTINGS)
                raise CropsError(
                    f"unknown setting '{key}' of a method; known: {known}.{nearest(key, SETTINGS)}"
                )
        return {**SETTINGS, **(self.defaults or {}), **(point or {})}


def grid(*variants: Point) -> tuple[Point, ...]:
    """Return six points: each variant at once and twice the run's learning rate, of two at half as well."""
    scales = (1.0, 2.0) if len(variants) > 2 else (1.0, 2.0, 0.5)
    return tuple({"learning_rate_scale": scale, **variant} for scale in scales for variant in variants)


CLICKS = "clicked documents as positives, nothing else"
MINED = grid({"negatives": 1}, {"negatives": 4})
