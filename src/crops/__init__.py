"""crops: an open CroPS. Mine graded positives from logs, train with H-InfoNCE, break the filter bubble.

The commands are functions of this module: `crops.simulate`, `crops.check`, `crops.mine`, `crops.train`,
`crops.evaluate`, `crops.search` and the others of `dir(crops)`. Paths may be text, and one value will do for
a list; arguments are checked before anything is written. The functions are loaded on first use, so that
`import crops.losses` costs no more than the losses need. The settings of a run are keywords of a command,
or resolved ones are: `run=crops.config.load_config("run.toml")`. (`crops reproduce` is
`crops.cli.simulate.reproduce`: `crops.reproduce` is the package.)
"""

from __future__ import annotations

from typing import Any

from crops.cli import COMMANDS

_FUNCTIONS = {row.name: row for row in COMMANDS if row.name != "reproduce"}
__all__ = sorted(_FUNCTIONS)


def __getattr__(name: str) -> Any:  # noqa: ANN401  (a module attribute can be anything)
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'crops' has no attribute '{name}'")
    return _FUNCTIONS[name].function()


def __dir__() -> list[str]:
    return sorted({*_FUNCTIONS, *globals()} - {"Any", "COMMANDS", "annotations"})
