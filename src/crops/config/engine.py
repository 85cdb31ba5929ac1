"""Settings of the data engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crops.config.section import Section


class OnlineSearchConfig(Section):
    """Online search samples: P0 and the multi-stage negatives; the seed draws what is over a limit."""

    max_clicked: int = Field(50, ge=1)
    max_exposed: int = Field(20, ge=0)
    max_unexposed: int = Field(20, ge=0)
    max_filtered: int = Field(20, ge=0)


class ReformulationConfig(Section):
    """P1: consumed after the same user reformulated the query."""

    window_s: float = Field(90.0, gt=0)
    """Later searches count while 0 < t_i - t_q <= window."""
    similarity: float = Field(0.5, ge=0, le=1)
    """Lowest calibrated P(same intent) of the two queries."""
    relevance: float = Field(0.6, ge=0, le=1)
    """alpha: lowest calibrated P(relevant) of (q, d)."""
    require_no_click: bool = False
    """Only searches without a click start a reformulation."""


class FeedConfig(Section):
    """P2: consumed in the feed by the users who issued the query."""

    window_s: float = Field(1800.0, gt=0)
    """Half the window, centred on the time of the query."""
    max_items: int = Field(100, ge=1)
    """Items that one user may add to one query, nearest in time first."""
    relevance: float = Field(0.6, ge=0, le=1)
    """alpha: lowest calibrated P(relevant) of (q, d)."""


class KnowledgeConfig(Section):
    """P3: documents that an LLM wrote for the query."""

    max_per_query: int = Field(4, ge=1)
    max_pairs: int = Field(35_000_000, ge=0)
    """Most generated positives in all; the paper has 35M beside 500M samples: set about 7 % of yours."""
    min_users: int = Field(20, ge=1)
    """Only queries of at least this many users are ever sent to an LLM."""


class BotConfig(Section):
    """Who is left out as bot-like: nobody searches or watches that much in a day."""

    max_searches_per_day: int = Field(1000, ge=1)
    max_feed_events_per_day: int = Field(20_000, ge=1)


class DecayConfig(Section):
    """What is left of a pair's weight per day of age, by the source that earned its label: our choice."""

    search: float = Field(0.9, gt=0, le=1)
    p1: float = Field(0.9, gt=0, le=1)
    p2: float = Field(0.8, gt=0, le=1)
    """What people watch changes faster than what they mean by a query."""
    p3: float = Field(1.0, gt=0, le=1)
    """Generated documents do not age."""


class DailyConfig(Section):
    """Daily builds: days mined one by one, and the window that merges the last of them."""

    window: int = Field(7, ge=1)
    """Days in the window; what is older is dropped."""
    decay: DecayConfig = DecayConfig()


class EngineConfig(Section):
    """The data engine: logs to graded samples."""

    engine: Literal["duckdb", "spark"] = "duckdb"
    """`duckdb` inside this process, or an existing `spark` cluster."""
    master: str = "local[*]"
    """Spark's master: local[n], spark://host:port, k8s://https://host:port or yarn."""
    days: tuple[str, ...] | None = None
    """Days to mine (YYYY-MM-DD); all when absent."""
    sources: tuple[str, ...] = ("search", "p1", "p2", "p3")
    memory: str = "2GB"
    """Memory limit of the process that mines; theta's model comes on top."""
    group_by: Literal["query", "event"] = "query"
    """A training group: all events of a normalised query, or one query event (the paper's record)."""
    min_users: int = Field(1, ge=1)
    """Only queries of at least this many users become training samples."""
    k: int = Field(20, ge=1)
    """Queries and trails that others than the logs' owner are told of stand for at least this many users."""
    max_positives_per_user: int = Field(50, ge=1)
    """P1 and P2 pairs one user may add to one query: nobody steers a query alone.
    P1 first, then by theta; among equals the seed draws."""
    bots: BotConfig = BotConfig()
    search: OnlineSearchConfig = OnlineSearchConfig()
    reformulation: ReformulationConfig = ReformulationConfig()
    feed: FeedConfig = FeedConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    daily: DailyConfig = DailyConfig()
