"""The commands. Each is a typed function: `crops mine ...` in a shell is `crops.mine(...)` in Python."""

from crops.cli.app import main
from crops.cli.calibrate import calibrate
from crops.cli.check import check
from crops.cli.demo import demo
from crops.cli.engine_report import engine_report
from crops.cli.evaluate import evaluate
from crops.cli.explain import explain
from crops.cli.export import export
from crops.cli.export_onnx import export_onnx
from crops.cli.forget import forget
from crops.cli.generate import generate
from crops.cli.import_logs import import_logs
from crops.cli.judge import judge_llm, judge_report, judge_sheet, judge_truth
from crops.cli.mine import mine
from crops.cli.search import search
from crops.cli.simulate import simulate
from crops.cli.train import train

__all__ = [
    "calibrate",
    "check",
    "demo",
    "engine_report",
    "evaluate",
    "explain",
    "export",
    "export_onnx",
    "forget",
    "generate",
    "import_logs",
    "judge_llm",
    "judge_report",
    "judge_sheet",
    "judge_truth",
    "main",
    "mine",
    "search",
    "simulate",
    "train",
]
