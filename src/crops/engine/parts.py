"""A job in parts that fit into memory: mining by user, merging by query.

Every query is in one part only and the parts follow each other in the order of the output, so results do not
depend on their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crops.config import EngineConfig
from crops.engine.backend import Backend
from crops.engine.memory import FEED_ROW, MERGE_ROW, shards, small_parts


@dataclass(frozen=True)
class Part:
    """The queries of a part: `low` to `high` of their ids, all when None."""

    by_event: bool
    min_users: int
    low: int | None = None
    high: int | None = None

    def of(self, table: str) -> str:
        """Return the SELECT of the rows of a table (impressions, p1_similar, p2_found, generated_groups)."""
        if table == "impressions" and not self.by_event:
            return f"select * from impressions where {self._holds('group_id')}"
        if table == "impressions":
            return (
                "select i.* from impressions i join searches s on s.search_id = i.search_id "
                f"where {self._holds('s.query_id')}"
            )
        return f"select * from {table} where {self._holds('query_id')}"

    def _holds(self, query: str) -> str:
        tests = ["1 = 1"]
        if self.low is not None:
            # The lowest id of 64 bits cannot be written as a number.
            tests = [f"{query} between cast('{self.low}' as BIGINT) and cast('{self.high}' as BIGINT)"]
        if self.min_users > 1:
            tests.append(f"{query} in (select query_id from queries where users >= {self.min_users})")
        return " and ".join(tests)


def user_conditions(backend: Backend) -> list[str]:
    """Return SQL conditions on `user_id` that cut all users into parts by user_id modulo their number."""
    number = shards(backend.count("log_feed"), FEED_ROW, backend.memory)
    if number == 1:
        return ["1 = 1"]
    # SQL's % keeps the sign of the dividend.
    return [f"(user_id % {number} + {number}) % {number} = {part}" for part in range(number)]


def query_parts(backend: Backend, config: EngineConfig) -> Iterator[Part]:
    """Yield the parts by query, lowest ids first; query ids are hashes, so this is a cut by hash(query)."""
    by_event = config.group_by == "event"
    rows = sum(backend.count(table) for table in ("impressions", "p1_similar", "p2_found"))
    number = max(shards(rows, MERGE_ROW, backend.memory), small_parts(rows, backend.memory))
    if number == 1:
        yield Part(by_event, config.min_users)
        return
    total = backend.rows("select sum(searches) as n from queries")[0]["n"]
    bounds = backend.rows(
        f"""
        select part, min(query_id) as low, max(query_id) as high from (
            select query_id, cast(floor((sum(searches) over (order by query_id) - 1) * {number} / {total}) as
            BIGINT)
                as part
            from queries
        ) q group by part order by part
        """
    )
    for row in bounds:
        yield Part(by_event, config.min_users, row["low"], row["high"])
