"""Which code made a cell."""

from __future__ import annotations

import hashlib
import importlib.resources

RESULTS_VERSION = 1
"""Raised by hand when a change of the code changes results: cells of another number are not read."""
_ROOMS = ("encoders", "engine", "evaluation", "losses", "negatives", "relevance", "retrieval", "training")


def code_hash() -> str:
    """Return 12 hex digits over the code that turns logs into figures.

    Every cell notes it. It does not name the cell: a changed comment would else cost a night of training.
    """
    digest = hashlib.sha256()
    root = importlib.resources.files("crops")
    for room in _ROOMS:
        folder = root / room
        if not folder.is_dir():
            continue
        for file in sorted(folder.iterdir(), key=lambda one: one.name):
            if file.name.endswith(".py"):
                digest.update(f"{room}/{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
