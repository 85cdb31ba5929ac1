"""Reports: self-contained pages with tables and inline SVG charts."""

from crops.report.calibration import AlphaRow, CalibrationReport, ReliabilityBin
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
from crops.report.render import render_report, write_report

__all__ = [
    "AlphaRow",
    "Block",
    "CalibrationReport",
    "JudgeReport",
    "JudgedSource",
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
    "SourceCounts",
    "SourceRow",
    "TrainingCurve",
    "render_report",
    "write_report",
]
