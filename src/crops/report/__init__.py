"""Reports: self-contained pages with tables and inline SVG charts."""

from crops.report.charts import Bar, Dot, Figure, Line, SplitBar
from crops.report.page import Page, Section, Table, printed, render_page, standalone, write_page

__all__ = [
    "Bar",
    "Dot",
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
