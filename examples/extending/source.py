"""A source of positives of one's own: what a searcher consumed in the feed right after a search in vain (P5).

It takes three files: this one, as crops/engine/vain.py, and the lines of `LABELS` and `SETTINGS` below. All
else (commands, caps, labels, evidence, reports, ablations) reads the row in crops/labels.py.
"""

from crops.engine.backend import Backend
from crops.engine.candidates import COLUMNS, Miner
from crops.labels import Source
from crops.schema import MICROSECONDS

LABELS = {
    "class Source(IntFlag):": "    VAIN = 256",
    "ORIGINS = (": """    Origin(
        Source.VAIN,
        group="p5",
        section="vain",
        label=4,
        meaning="consumed in the feed after a search in vain",
        key="p5",
        name="P5",
        human="after a search in vain",
        tone=6,
    ),""",
}
"""Lines to add to crops/labels.py, each after the line that is named."""

SETTINGS = {
    "class DecayConfig(Section):": "    p5: float = Field(0.9, gt=0, le=1)",
    "class EngineConfig(Section):": "    vain: VainConfig = VainConfig()",
}
"""Lines to add to crops/config.py likewise, and `SECTION` before its `EngineConfig`."""

SECTION = '''class VainConfig(Section):
    """P4: consumed in the feed after a search without a click."""

    window_s: float = Field(60.0, gt=0)
    relevance: float = Field(0.6, ge=0, le=1)


'''


def found_sql(config, users: str) -> str:  # noqa: ANN001
    """Return the SELECT of what searchers who clicked nothing consumed in the feed within the window."""
    return f"""
    select distinct s.query_id, s.search_id, s.user_id, f.item_id, f.watched_at
    from (select * from searches where {users}) s join feed f on f.user_id = s.user_id
        and f.watched_at > s.searched_at
        and f.watched_at <= s.searched_at + {round(config.window_s * MICROSECONDS)}
    where not exists (
        select 1 from impressions i where i.search_id = s.search_id and i.source = {Source.CLICKED.value}
    )
    """


def candidates_sql(backend: Backend, config, found: str) -> str:  # noqa: ANN001
    """Return them as candidates."""
    return f"""
    select {COLUMNS} from (
        select f.*, cast({Source.VAIN.value} as INTEGER) as source, cast(null as BIGINT) as via_query_id
        from ({found}) f
    ) c
    """


MINER = Miner(found_sql, candidates_sql)
