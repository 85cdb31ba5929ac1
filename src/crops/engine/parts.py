"""A job in parts that fit into memory: mining by user, merging by query.

Every query is in one part only and the parts follow each other in the order of the output, so results do not
depend on their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crops.config import EngineConfig
from crops.engine.backend import Backend, id_sql
from crops.engine.memory import SEARCH_ROW, merge_parts, shards


@dataclass(frozen=True)
class Part:
    """The queries of a part: `low` to `high` of their ids, all when None."""

    min_users: int
    low: int | None = None
    high: int | None = None

    def of(self, table: str) -> str:
        """Return the SELECT of the part's rows of a table with a column `query_id`."""
        tests = ["1 = 1"]
        if self.low is not None and self.high is not None:
            tests = [f"query_id between {id_sql(self.low)} and {id_sql(self.high)}"]
        if self.min_users > 1:
            tests.append(f"query_id in (select query_id from queries where users >= {self.min_users})")
        return f"select * from {table} where {' and '.join(tests)}"


def user_conditions(backend: Backend) -> list[str]:
    """Return SQL conditions on `user_id` that cut all users into parts by user_id modulo their number."""
    number = shards(backend.count("searches"), SEARCH_ROW, backend.memory)
    if number == 1:
        return ["1 = 1"]
    # SQL's % keeps the sign of the dividend.
    return [f"(user_id % {number} + {number}) % {number} = {part}" for part in range(number)]


def query_parts(backend: Backend, config: EngineConfig) -> Iterator[Part]:
    """Yield the parts by query, lowest ids first; query ids are hashes, so this is a cut by hash(query)."""
    rows = sum(backend.count(table) for table in ("impressions", "p1_similar", "p2_near"))
    number = merge_parts(rows, backend.memory)
    if number == 1:
        yield Part(config.min_users)
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
        yield Part(config.min_users, row["low"], row["high"])
