"""Reports: self-contained pages with tables and inline SVG charts."""

from crops.report.calibration import AlphaRow, CalibrationReport, ReliabilityBin
from crops.report.charts import Bar, Line
from crops.report.data import (
    Coverage,
    DemoReport,
    Difference,
    Estimate,
    Hit,
    MetricColumn,
    QueryCase,
    ResultRow,
    ResultTable,
    SourceCounts,
    SourceRow,
    TrainingCurve,
)
from crops.report.engine import Block, Disagreement, EngineReport, FrequencyRow, Influence
from crops.report.judge import JudgedSource, JudgeReport, RaterPair
from crops.report.realism import Cell, Curve, RealismReport, RealismRow
from crops.report.render import render_report, standalone, write_report
from crops.report.tables import BarFigure, LineFigure, Section, TablesReport, TextTable

__all__ = [
    "AlphaRow",
    "Bar",
    "BarFigure",
    "Block",
    "CalibrationReport",
    "JudgeReport",
    "JudgedSource",
    "Line",
    "LineFigure",
    "RaterPair",
    "ReliabilityBin",
    "Disagreement",
    "EngineReport",
    "FrequencyRow",
    "Influence",
    "Cell",
    "Coverage",
    "Curve",
    "DemoReport",
    "Difference",
    "Estimate",
    "Hit",
    "MetricColumn",
    "QueryCase",
    "RealismReport",
    "RealismRow",
    "ResultRow",
    "ResultTable",
    "Section",
    "SourceCounts",
    "SourceRow",
    "TablesReport",
    "TextTable",
    "TrainingCurve",
    "render_report",
    "standalone",
    "write_report",
]
