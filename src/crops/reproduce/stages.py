"""What a cell is made with: the commands' own functions, handed in by the command line.

They are module-level functions, so that worker processes can be given them; each writes its folder whole or
not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crops.config import RunConfig
from crops.evaluation import ScoringRetriever, TestSets
from crops.protocols import PairScorer


@dataclass(frozen=True)
class Stages:
    """From nothing to a retriever on its test sets."""

    simulate: Callable[[Path, RunConfig], None]
    """Writes a world into a folder: logs/, truth/ and deployed_model/."""
    check: Callable[[Path, Path, str], object]
    """Writes accepted/ and rejects/ of a logs folder, within so much memory."""
    mine: Callable[[Path, Path, RunConfig, Path | None], dict[str, Any]]
    """Writes the samples of accepted logs, with documents that an LLM wrote or without."""
    testsets: Callable[[Path, str | None, Path | None, Path | None, RunConfig], TestSets]
    """Returns the test sets of logs on a day, by truth and samples: refuses a day that was mined."""
    retriever: Callable[..., ScoringRetriever]
    """Returns a retriever: model folder, item ids, their texts, item table."""
    theta: Callable[[Path, RunConfig], tuple[PairScorer | None, PairScorer | None]]
    """Returns relevance and similarity scorers of a run on logs."""
