"""Bring logs in: open a logs folder, check it against the contracts, put the rejects aside."""

from crops.logs.check import check
from crops.logs.database import interruptible
from crops.logs.report import CheckReport, Facts, RowFault, TableCounts, render
from crops.logs.tables import Logs, open_logs

__all__ = [
    "CheckReport",
    "Facts",
    "Logs",
    "RowFault",
    "TableCounts",
    "check",
    "interruptible",
    "open_logs",
    "render",
]
