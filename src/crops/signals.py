"""What people did with a result, and how their searches follow each other: one definition each."""

from __future__ import annotations

LONG_PLAY_MS = 18_000
"""A play of this length, or of the whole item if that is shorter, is consumption."""
MICROSECONDS = 1_000_000
"""In a second."""


def is_long_play(play_ms: int | None, duration_ms: int | None) -> bool:
    """Return whether a play is long: 18 s, or the whole item if that is shorter.

    A length of 0 is as unknown as none: it asks for 18 s, or every exposure of the item would be consumed.
    """
    needed = min(duration_ms, LONG_PLAY_MS) if duration_ms else LONG_PLAY_MS
    return play_ms is not None and play_ms >= needed


def is_consumed(
    clicked: bool | None, liked: bool | None, play_ms: int | None, duration_ms: int | None
) -> bool:
    """Return whether a result or a feed item was clicked, liked or played long; none is no signal."""
    return bool(clicked) or bool(liked) or is_long_play(play_ms, duration_ms)


LONG_PLAY = f"""coalesce(play_ms >= case
    when duration_ms > 0 and duration_ms <= {LONG_PLAY_MS} then duration_ms
    else {LONG_PLAY_MS} end, false)"""
"""`is_long_play` as SQL over a row of the logs (DuckDB and Spark)."""
CONSUMED = f"(coalesce(clicked, false) or coalesce(liked, false) or {LONG_PLAY})"
"""`is_consumed` as SQL over a row of the logs (DuckDB and Spark)."""


def is_within(earlier_us: int, later_us: int, window_s: float) -> bool:
    """Return whether a search is soon enough after another to be its rewording: 0 < t_i - t_q <= window."""
    return earlier_us < later_us <= earlier_us + round(window_s * MICROSECONDS)


def within_sql(earlier: str, later: str, window_s: float) -> str:
    """Return `is_within` as SQL over two columns of times (DuckDB and Spark)."""
    return f"({later} > {earlier} and {later} <= {earlier} + {round(window_s * MICROSECONDS)})"
