"""Bring logs in: import those of other formats, open a logs folder, check it, put rejected rows aside."""

from crops.logs.check import CheckReport, LogSummary, RowFault, TableCounts, check, render
from crops.logs.importing import FORMATS, ImportCounts, ImportReport, import_logs, render_import
from crops.logs.judged import Judged, load_judged
from crops.logs.lake import is_uri
from crops.logs.mapping import TOKENS, Dataset, Importer, MappedTable
from crops.logs.tables import Logs, open_logs, text_kind

__all__ = [
    "Judged",
    "FORMATS",
    "TOKENS",
    "CheckReport",
    "Dataset",
    "LogSummary",
    "ImportCounts",
    "ImportReport",
    "Importer",
    "Logs",
    "MappedTable",
    "RowFault",
    "TableCounts",
    "check",
    "import_logs",
    "is_uri",
    "load_judged",
    "open_logs",
    "render",
    "render_import",
    "text_kind",
]
