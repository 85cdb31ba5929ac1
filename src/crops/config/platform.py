"""Settings of the simulated platform."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crops.config.section import Section

Size = Literal["tiny", "demo", "small", "base", "large"]

TOPICS = "topics"
"""The world of the packaged topics."""


class PlatformConfig(Section):
    """The simulated platform."""

    size: Size = "demo"
    """How large the world is; the sizes are in crops.platform.sizes."""
    days: int = Field(4, ge=4, le=30)
    """Simulated days: warm-up, train, gap, test (more days lengthen the gap)."""
    world: str = TOPICS
    """`topics`, or the folder of a judged collection (docs, queries and qrels as Parquet files)."""
    click_model: Literal["dbn", "dcm", "pbm"] = "dbn"
    """Who examines what; see crops.platform.behaviour."""
    bubble: Literal["weak", "default", "strong"] = "default"
    """Strength of the filter bubble; see crops.platform.bubble."""
    ranker_noise: float = Field(0.35, ge=0, le=5)
    """Error of the production ranker beside a relevance in [0, 1]: its strength dial."""
    sessions: int | None = Field(None, ge=50)
    """Search sessions per day: the dial of the log's size; the size's own when absent."""
    users: int | None = Field(None, ge=2)
    """The size's own when absent."""
    reformulate: float = Field(0.22, ge=0, le=0.6)
    """P(reformulate | not satisfied). No public figure for short-video search."""
    feed_alignment: float = Field(0.25, ge=0, le=1)
    """P(a feed item near a search is about the searched sense)."""
    good_abandonment: float = Field(0.10, ge=0, le=1)
    """P(satisfied without a click | something relevant was examined)."""
    informative: bool = True
    """False = the null world: later queries and feed watching say nothing about the need of a search."""
