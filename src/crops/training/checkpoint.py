"""Checkpoints of a run: whole or ignored, and only for the configuration and data that made them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crops.errors import CropsError

RUN = "run.json"
WHOLE = "whole"
"""The last file that is written into a checkpoint: without it, the writing was interrupted."""


def work_folder(out: Path) -> Path:
    """Return the folder beside an output that holds what an interrupted run needs to go on."""
    return out.with_name(f".{out.name}.training")


def mark_whole(checkpoint: Path) -> None:
    """Say that a checkpoint is complete."""
    (checkpoint / WHOLE).touch()


def last_checkpoint(work: Path) -> Path | None:
    """Return the newest complete checkpoint, if there is one."""
    whole = [path.parent for path in work.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def drop_partial(work: Path) -> None:
    """Remove checkpoints whose writing was interrupted."""
    for path in work.glob("checkpoint-*"):
        if not (path / WHOLE).exists():
            shutil.rmtree(path)


def same_run(work: Path, settings: Mapping[str, Any], data: str) -> str:
    """Note what run a work folder belongs to, or hold its checkpoints against it.

    Args:
        work: the folder.
        settings: all that decides the result, flat.
        data: fingerprint of the training data.

    Returns:
        A name for the pair of settings and data.

    Raises:
        CropsError: there are checkpoints of other settings or of other data.
    """
    described = json.loads(json.dumps({"settings": settings, "data": data}))
    checkpoint = last_checkpoint(work)
    if checkpoint is not None:
        _compare(checkpoint, json.loads((work / RUN).read_text()), described)
    work.mkdir(parents=True, exist_ok=True)
    written = json.dumps(described, indent=2)
    (work / RUN).write_text(written + "\n")
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def _compare(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    remedy = f"pass --fresh to drop {checkpoint.parent} and start over, or name another output folder"
    keys = sorted(before["settings"].keys() | now["settings"].keys())
    changed = [
        f"{key}: {before['settings'].get(key)} -> {now['settings'].get(key)}"
        for key in keys
        if before["settings"].get(key) != now["settings"].get(key)
    ]
    if changed:
        raise CropsError(
            f"{checkpoint} was made with another configuration ({', '.join(changed)}); repeat its settings "
            f"to go on, {remedy}"
        )
    if before["data"] != now["data"]:
        raise CropsError(f"{checkpoint} was made from other training data than there is now; {remedy}")
