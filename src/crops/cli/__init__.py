"""The commands. Each is a typed function: `crops mine ...` in a shell is `crops.mine(...)` in Python.

Only their table is here, so that `crops --help` imports none of them; `crops.cli.app` runs them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

LOGS = "Your logs"
LEARNING = "Train and evaluate"
SERVING = "Serve"
SIMULATION = "Simulate and reproduce"
ONLINE = "Online"
GROUPS = {
    "judge": (LOGS, "Are the positives relevant? By people, by an LLM, by truth."),
    "theta": (LOGS, "Teach the relevance model by judgements."),
}
"""What commands of two words begin with: panel and help."""


class Command(NamedTuple):
    """A command of the shell, and the function behind it."""

    words: str
    """What is typed after `crops`."""
    place: str
    """module:function, below `crops.cli`."""
    panel: str
    """Where `crops --help` lists it."""
    help: str
    """A line for `crops --help`; the function's docstring says more."""

    @property
    def name(self) -> str:
        """Return the name of the function."""
        return self.place.partition(":")[2]

    def function(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.place.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(f"crops.cli.{module}"), name)
        return found


COMMANDS = (
    Command("import", "logs:import_logs", LOGS, "Bring your logs, or a public data set, into our tables."),
    Command("check", "logs:check", LOGS, "Test every row of the logs; rejected ones go aside."),
    Command("mine", "logs:mine", LOGS, "Turn logs into graded training samples."),
    Command("expand", "logs:expand", LOGS, "Let items be found by the first wording of a search."),
    Command("explain", "logs:explain", LOGS, "Show why each positive of a query is one."),
    Command("engine-report", "logs:engine_report", LOGS, "Report what a mining found, by source."),
    Command("export", "logs:export", LOGS, "Write samples in other formats."),
    Command("generate", "llm:generate", LOGS, "Have an LLM write documents for mined queries."),
    Command("judge sheet", "llm:judge_sheet", LOGS, "Draw positives for people to grade, blind."),
    Command("judge llm", "llm:judge_llm", LOGS, "Have an LLM grade them, too."),
    Command("judge report", "llm:judge_report", LOGS, "Report grades by source, and how far raters agree."),
    Command("judge truth", "llm:judge_truth", LOGS, "Grade the sources by a simulator's truth."),
    Command("theta calibrate", "theta:theta_calibrate", LOGS, "Fit what the scores of a text model mean."),
    Command("theta fit", "theta:theta_fit", LOGS, "Fit a theta that reads the evidence of logs, too."),
    Command("split", "models:split", LEARNING, "Write samples in buckets, for training on several machines."),
    Command("train", "models:train", LEARNING, "Train a retriever on mined samples."),
    Command("evaluate", "models:evaluate", LEARNING, "Compare models on a later day of the logs."),
    Command("index", "serve:index", SERVING, "Build or change an index of a catalogue."),
    Command("encode", "serve:encode", SERVING, "Write vectors for any other store."),
    Command("search", "serve:search", SERVING, "Ask a model."),
    Command("serve", "serve:serve", SERVING, "Search over HTTP and in a browser, with the evidence."),
    Command("demo", "simulate:demo", SIMULATION, "See a filter bubble form and break, in minutes."),
    Command("simulate", "simulate:simulate", SIMULATION, "Simulate search and feed logs, with their truth."),
    Command("annotate", "simulate:annotate", SIMULATION, "Have a simulated editor judge mined pairs."),
    Command(
        "platform-report",
        "simulate:platform_report",
        SIMULATION,
        "Compare the simulation with public figures.",
    ),
    Command("reproduce", "simulate:reproduce", SIMULATION, "Make the paper's tables, and judge its claims."),
    Command("experiment", "experiment:experiment", ONLINE, "Test retrievers on simulated users (A/B)."),
    Command("analyse", "analyse:analyse", ONLINE, "Test the effects of an experiment in its logs."),
    Command("power", "analyse:power", ONLINE, "Say what effect an experiment could see."),
    Command("bubble-loop", "experiment:bubble_loop", ONLINE, "Retrain every day, and watch the bubble."),
)


def main() -> None:
    """Run the command line."""
    from crops.cli.app import run

    run()
