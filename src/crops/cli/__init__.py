"""The commands. Each is a typed function: `crops mine ...` in a shell is `crops.mine(...)` in Python."""

from crops.cli.analyse import analyse
from crops.cli.app import main
from crops.cli.bubble_loop import bubble_loop
from crops.cli.calibrate import calibrate
from crops.cli.demo import demo
from crops.cli.engine_report import engine_report
from crops.cli.evaluate import evaluate
from crops.cli.experiment import experiment
from crops.cli.generate import generate
from crops.cli.index import encode, index
from crops.cli.judge import judge_llm, judge_report, judge_sheet, judge_truth
from crops.cli.logs import check, import_logs
from crops.cli.mine import mine
from crops.cli.mined import explain, export
from crops.cli.platform_report import platform_report
from crops.cli.power import power
from crops.cli.reproduce import reproduce
from crops.cli.search import search
from crops.cli.serve import serve
from crops.cli.simulate import simulate
from crops.cli.train import train

__all__ = [
    "analyse",
    "bubble_loop",
    "calibrate",
    "check",
    "demo",
    "engine_report",
    "encode",
    "evaluate",
    "experiment",
    "explain",
    "export",
    "generate",
    "import_logs",
    "index",
    "judge_llm",
    "judge_report",
    "judge_sheet",
    "judge_truth",
    "main",
    "mine",
    "platform_report",
    "power",
    "reproduce",
    "search",
    "serve",
    "simulate",
    "train",
]
