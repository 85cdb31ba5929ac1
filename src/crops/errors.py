"""The errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

DISTRIBUTION = "crops-retrieval"
"""Our name on PyPI; the package `crops` there is another project."""


class CropsError(Exception):
    """Bad input or a missing part; the message says what, where and how to fix it."""

    exit_code = 2
    """What the command line ends with."""


class RegressionError(CropsError):
    """A model is significantly worse than the one that it should replace."""

    exit_code = 1


class RejectedError(CropsError):
    """More rows were rejected than may be."""

    exit_code = 1


class UnknownItemError(CropsError):
    """An item is not in a catalogue or an index."""

    def __init__(self, item_id: int, where: str, unknown: int = 1) -> None:
        super().__init__(f"item_id {item_id} is not in {where} ({unknown} unknown ids)")
        self.item_id = item_id


class MissingExtraError(CropsError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed. Install it with: pip install '{DISTRIBUTION}[{extra}]'"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def nearest_path(path: Path, *, files: bool = False) -> str:
    """Return a sentence of the folder, or also file, beside a path that is not there, or an empty string."""
    if path.exists() or not path.parent.is_dir():
        return ""
    beside = (
        one for one in path.parent.iterdir() if not one.name.startswith(".") and (files or one.is_dir())
    )
    hint = nearest(str(path), map(str, beside))
    return f".{hint}" if hint else ""
