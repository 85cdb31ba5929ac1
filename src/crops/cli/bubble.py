"""How the bubble forms: what the platform's own logs show of it, day by day."""

from __future__ import annotations

from pathlib import Path

from crops.online.bubble import Evidence, measure_days
from crops.platform import ROUTES
from crops.report import Estimate, MetricColumn, ResultRow, ResultTable
from crops.retrieval import load_items

_COLUMNS = (
    MetricColumn("own", "found by the own model", "share of shown results that the deployed retriever found"),
    MetricColumn(
        "again", "shown again", "share of shown results that this query had already been shown before"
    ),
    MetricColumn(
        "top", "shown from 1 % of items", "share of all exposures that goes to the most shown 1 % of items"
    ),
    MetricColumn(
        "unseen", "relevant, never shown", "share of what answers the query's needs that it was never shown"
    ),
)


def bubble_table(logs: Path, truth: Path) -> ResultTable:
    """Return the observables of the bubble per simulated day, over that day's shown results.

    Args:
        logs: accepted logs of a simulation.
        truth: its truth; tells what the searchers needed.
    """
    evidence = Evidence(
        logs=(logs,),
        searches=(f"{truth}/searches.parquet",),
        truth=truth,
        items=load_items(logs)[0].size,
        route=ROUTES.index("dense"),
    )
    measured = measure_days(evidence, [column.key for column in _COLUMNS])
    rows = [
        ResultRow(
            day,
            {
                key: Estimate(one.value, None, None, one.n)
                for key, one in measured[day].items()
                if one.value is not None
            },
        )
        for day in sorted(measured)
    ]
    note = "The first day has no own model; one is then trained on that day's clicks and deployed."
    return ResultTable("How the bubble forms", note, _COLUMNS, rows, subject="Day", contest=False)
