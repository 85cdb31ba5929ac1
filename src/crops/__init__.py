"""crops: an open CroPS. Mine graded positives from logs, train with H-InfoNCE, break the filter bubble.

The commands are functions of this module: `crops.simulate`, `crops.check`, `crops.mine`, `crops.train`,
`crops.evaluate`, `crops.search` and the others of `dir(crops)`. Paths may be text, and one value will do for
a list; arguments are checked before anything is written. The functions are loaded on first use, so that
`import crops.losses` costs no more than the losses need. (`crops reproduce` is `crops.cli.reproduce`:
`crops.reproduce` is the room.)
"""

from __future__ import annotations

import importlib
from typing import Any

_COMMANDS = (
    "analyse",
    "bubble_loop",
    "calibrate",
    "check",
    "demo",
    "encode",
    "engine_report",
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
    "mine",
    "platform_report",
    "power",
    "search",
    "serve",
    "simulate",
    "train",
)
__all__ = list(_COMMANDS)


def __getattr__(name: str) -> Any:  # noqa: ANN401  (a module attribute can be anything)
    if name not in _COMMANDS:
        raise AttributeError(f"module 'crops' has no attribute '{name}'")
    return getattr(importlib.import_module("crops.cli"), name)


def __dir__() -> list[str]:
    return sorted({*_COMMANDS, *globals()} - {"Any", "annotations", "importlib"})
