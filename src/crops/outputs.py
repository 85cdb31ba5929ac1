"""Outputs appear whole or not at all, and say what made them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from crops.errors import DISTRIBUTION, CropsError

console = Console(stderr=True)
"""Where progress and messages for people go; data goes to stdout or files."""

MANIFEST = "manifest.json"
RESOLVED_CONFIG = "config.toml"
_PACKAGES = ("duckdb", "numpy", "pyarrow", "sentence-transformers", "torch", "transformers")


@contextlib.contextmanager
def publish(target: str | Path, command: str) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends well and vanishes otherwise.

    Args:
        target: the folder to write; an earlier output of the same command is replaced.
        command: the command, as `write_manifest` is told.

    Raises:
        CropsError: `target` is a file, or holds anything but an output of this command.
    """
    target = Path(target)
    if target.exists():
        _refuse_foreign(target, command)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        _swap(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _refuse_foreign(target: Path, command: str) -> None:
    if not target.is_dir():
        raise CropsError(f"{target} is a file; name a folder for the output")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST).exists():
        raise CropsError(f"{target} holds files that crops did not write; name another folder")
    other = read_manifest(target, command)["command"]
    if other != command:
        raise CropsError(f"{target} is an output of `crops {other}`, not of `{command}`; name another folder")


def _swap(staging: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def versions() -> dict[str, str]:
    """Return the versions of crops and of the libraries that decide its results."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"crops": importlib.metadata.version(DISTRIBUTION), **found}


def write_manifest(
    folder: str | Path, command: str, *, config: dict[str, Any], seconds: dict[str, float], **facts: object
) -> None:
    """Write `manifest.json` (command, versions, timings, facts) and the resolved `config.toml`."""
    folder = Path(folder)
    manifest = {
        "command": command,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": config.get("seed"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        **facts,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, default=str) + "\n")
    (folder / RESOLVED_CONFIG).write_text(tomli_w.dumps(config))


def to_json(data: object) -> str:
    """Return data as indented JSON; numbers that are not finite, which JSON lacks, become null."""
    return json.dumps(finite(data), indent=2) + "\n"


def finite(data: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """Return data with null for numbers that are not finite."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def read_manifest(folder: str | Path, made_by: str) -> dict[str, Any]:
    """Return the manifest of an output folder.

    Raises:
        CropsError: the folder has none; `made_by` names the command that makes such a folder.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.exists():
        raise CropsError(f"{folder} is not an output of `crops {made_by}` (no {MANIFEST} in it)")
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the block's wall time to `seconds[name]` and say that it runs."""
    console.print(f"[dim]·[/dim] {name}")
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.3g}/s" if speed else "", style="progress.data.speed")


def progress() -> Progress:
    """Return a progress display with rate and time left; silent where no terminal shows it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def cache_folder() -> Path:
    """Return the folder for things worth keeping between runs: $XDG_CACHE_HOME/crops or ~/.cache/crops."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "crops"
