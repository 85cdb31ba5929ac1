"""The cells behind a page of results as one CSV: what each was, and what it found."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crops.config import RunConfig
from crops.reproduce.results import Measured
from crops.reproduce.tables import DIVERSITY, RESULTS

_FACTS = ("method", "world", "size", "seed", "encoder", "validated", "code", "platform", "test_day")
_TRAINING = ("queries_seen", "documents_seen", "cpu_seconds", "loss", "temperature")


def cells_csv(cells: Sequence[Measured]) -> str:
    """Return a row for each cell, ordered by name; a verdict of the page names the cells that it rests on.

    `settings` are those that differ from the defaults of crops, `point` the tuned ones of the method. A
    metric has two columns, its mean over queries in [0, 1] and, as `n <metric>`, their number; empty where a
    world has no such query. Of a folder or file only the name is told: the record is read on other machines.
    """
    text = io.StringIO()
    head = ["cell", *_FACTS, "point", "settings", "p3_share_of_queries", *_TRAINING]
    metrics = [*RESULTS, *DIVERSITY]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*head, *(name for metric in metrics for name in (metric, f"n {metric}"))])
    defaults = RunConfig().model_dump(mode="json")
    for cell in sorted(cells, key=lambda one: one.folder.name):
        facts, training = cell.facts, cell.facts["training"]
        row = [cell.folder.name, *(_portable(facts[name]) for name in _FACTS), json.dumps(facts["point"])]
        row += [json.dumps(_changed(facts["settings"], defaults)), facts["p3_coverage"]["share_of_queries"]]
        row += [training.get(name) for name in _TRAINING]
        found = [facts["metrics"].get(metric, {}) for metric in metrics]
        rows.writerow(row + [value for one in found for value in (one.get("mean"), one.get("n"))])
    return text.getvalue()


def _changed(settings: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings that are not the defaults, by their dotted name."""
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            changed |= _changed(value, default, f"{prefix}{name}.")
        elif value != default:
            changed[prefix + name] = _portable(value)
    return changed


def _portable(value: object) -> object:
    """Return a value, or the name alone if it is the absolute path of a file or folder."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
