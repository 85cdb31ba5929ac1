"""Reports: self-contained pages with tables and inline SVG charts."""

from crops.report.charts import Bar, Figure, Line, SplitBar
from crops.report.page import Page, Section, Table, printed, render_page, standalone, write_page

__all__ = [
    "Bar",
    "Figure",
    "Line",
    "Page",
    "Section",
    "SplitBar",
    "Table",
    "printed",
    "render_page",
    "standalone",
    "write_page",
]
