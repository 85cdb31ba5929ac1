"""The folder of a reproduction: what is in it, who may write it, and whether it is ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from crops.errors import CropsError
from crops.outputs import MANIFEST, unique
from crops.platform import platform_version
from crops.reproduce.version import RESULTS_VERSION

_FACTS = "reproduce.json"
_LOCK = ".lock"
CELLS, WORLDS, MINED, TESTS, MODELS, FIGURES = "cells", "worlds", "mined", "tests", "models", "figures"
TUNED = "tuned"
_STAGES = (CELLS, WORLDS, MINED, TESTS, MODELS, FIGURES)


def is_done(folder: Path) -> bool:
    """Return whether a stage's folder was published: it appears whole or not at all."""
    return (folder / MANIFEST).exists()


@contextlib.contextmanager
def opened(out: Path) -> Iterator[Path]:
    """Hold the folder of a reproduction for one process, and sweep up what a killed one left.

    Raises:
        CropsError: it is a file, holds other things, was made by another version of the platform or of the
            results, or another process is at work in it.
    """
    if out.exists() and not out.is_dir():
        raise CropsError(f"{out} is a file; name a folder for the cells and tables")
    facts = {"platform": platform_version(), "results": RESULTS_VERSION}
    with naming_full_disk(out):
        out.mkdir(parents=True, exist_ok=True)
        with (out / _LOCK).open("w") as lock:
            _take(lock.fileno(), out)
            _identify(out, facts)
            _sweep(out)
            yield out


def _take(lock: int, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CropsError(
            f"another `crops reproduce` is at work in {out}; wait for it, or name another --out"
        ) from error


def _identify(out: Path, facts: dict[str, object]) -> None:
    """Write the facts into a new folder; compare them with those of an old one."""
    path = out / _FACTS
    if not path.exists():
        if strangers := [file.name for file in out.iterdir() if file.name != _LOCK]:
            raise CropsError(
                f"{out} holds files that `crops reproduce` did not write ({strangers[0]}); name another"
            )
        write_atomically(path, json.dumps(facts, indent=2) + "\n")
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CropsError(
            f"{path} is damaged: {error}; remove it if the folder is from this version"
        ) from error
    for name, value in facts.items():
        if found.get(name) != value:
            raise CropsError(
                f"{out} was made by {name} version {found.get(name)}, this is {value}: their cells must not "
                "stand in one table; name another --out, or run the version that made it"
            )


def _sweep(out: Path) -> None:
    """Remove half-written folders of a killed process; checkpoints stay, a training goes on from them."""
    for stage in _STAGES:
        for pattern in (".*.tmp", ".*.old", "*/.*.tmp", "*/.*.old"):
            for left in (out / stage).glob(pattern):
                shutil.rmtree(left, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = unique(path, "tmp")
    try:
        staging.write_text(text)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


@contextlib.contextmanager
def naming_full_disk(out: Path) -> Iterator[None]:
    """Turn "no space left" into an error that says how to go on.

    Raises:
        CropsError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CropsError(
            f"the disk of {out} is full ({error}); free space and run the same command again: "
            "finished cells are kept"
        ) from error
