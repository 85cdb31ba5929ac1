"""Outputs appear whole or not at all, and say what made them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import glob
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import shutil
import tempfile
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

from crops.errors import DISTRIBUTION, CropsError, nearest_path

console = Console(stderr=True)
"""Where progress and messages for people go; data goes to stdout or files."""
MANIFEST = "manifest.json"
RESOLVED_CONFIG = "config.toml"
_PACKAGES = ("duckdb", "numpy", "pyarrow", "sentence-transformers", "torch", "transformers")


class BusyError(CropsError):
    """Another process writes to the folder."""


@contextlib.contextmanager
def publish(target: str | Path, command: str) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends well and vanishes otherwise.

    Where system and disk can exchange two names in one step, a reader always finds the former output or the
    new one; else it finds none between two renames. What a killed process left is put right first: its
    half-written folders go, and a former output that it had moved away is back in its place.

    Args:
        target: the folder to write; an earlier output of the same command is replaced.
        command: the command, as `write_manifest` is told.

    Raises:
        CropsError: `target` is a file or a mount point, names no folder of this machine, or holds anything
            but an output of this command; another process writes to it (BusyError); or the disk is full or
            read-only.
    """
    check_local(Path(target))
    place = Path(os.path.realpath(target))  # a link is followed: it is not what is to be replaced
    with writable(target):
        place.parent.mkdir(parents=True, exist_ok=True)
        if _is_mount(place):
            raise CropsError(f"{target} is a mount point, which cannot be replaced; name a folder inside it")
    with _alone(target, place):
        _clear(place)
        if place.exists():
            _refuse_foreign(place, command)
        staging = unique(place, "tmp")
        try:
            with writable(target):
                staging.mkdir()
            # An output inside another that is being written leaves its failures to that one.
            inside = place.parent.name.endswith(".tmp")
            with contextlib.nullcontext() if inside else writable(target, *_FULL):
                yield staging
            with writable(target):
                _swap(staging, place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_done(folder: Path) -> bool:
    """Return whether a step's folder was published: it appears whole or not at all."""
    return (folder / MANIFEST).exists()


def check_local(path: Path) -> None:
    """Raise `CropsError` if a path is the address of another store: it would be a folder named `s3:`."""
    if _SCHEME.match(str(path)):
        raise CropsError(
            f"{path} is no path of this machine: only the logs of `crops check` and `crops mine` may be "
            "URIs, as text; mount or copy it, and name the folder"
        )


def unique(path: Path, kind: str) -> Path:
    """Return a hidden name next to `path` that no other process, here or in another container, has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the name of a file that becomes `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = unique(path, "tmp")
    try:
        yield staging
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file, and its folder, that appears whole or not at all; `errors` as of `str.encode`."""
    with whole_file(path) as staging:
        staging.write_text(text, encoding="utf-8", errors=errors)


def link_file(file: Path, target: Path) -> None:
    """Have a file under a second name; a copy where the disk knows no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


@contextlib.contextmanager
def writable(target: str | Path, *numbers: int) -> Iterator[None]:
    """Turn failures of the disk (with one of `numbers`, if any is given) into a sentence."""
    try:
        yield
    except OSError as error:
        if numbers and error.errno not in numbers:
            raise
        raise CropsError(
            f"{target} cannot be written, nothing was published: {error}; free disk space, or name another "
            "folder"
        ) from error


@contextlib.contextmanager
def _alone(target: str | Path, place: Path) -> Iterator[None]:
    """Be the only writer of a folder; the lock dies with its process."""
    path = place.with_name(f".{place.name}.lock")
    while True:
        with writable(target):
            lock = path.open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.close()
                raise BusyError(f"another process writes to {target}; wait until it has ended") from error
            if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                break
            lock.close()  # its owner has just removed it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        fcntl.flock(lock, fcntl.LOCK_UN)  # a child process may have it open, too
        lock.close()


def _clear(place: Path) -> None:
    left = f".{glob.escape(place.name)}.{'[0-9a-f]' * 16}"
    for old in place.parent.glob(f"{left}.old"):
        if not place.exists():
            old.rename(place)
    for path in [*place.parent.glob(f"{left}.old"), *place.parent.glob(f"{left}.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def _is_mount(place: Path) -> bool:
    if place.is_mount():
        return True
    with contextlib.suppress(OSError):  # a folder of the same disk, as containers have: only Linux tells
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            escaped = line.split()[4]
            if re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), escaped) == os.fsencode(place):
                return True
    return False


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
    """Give a folder the place of another: whoever reads meanwhile finds the old one or the new one."""
    if target.exists() and _exchange(staging, target):
        return  # what was there has the name of the staging folder, which is removed
    old = unique(target, "old")
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


_AT_CWD, _RENAME_EXCHANGE = -100, 2


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (Linux's renameat2); return False where system or disk cannot."""
    function = getattr(ctypes.CDLL(None), "renameat2", None)
    names = _AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other)
    return function is not None and function(*names, _RENAME_EXCHANGE) == 0


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder; those of its kind that killed processes left go when the next is made."""

    def __init__(self, prefix: str) -> None:
        """Make a folder whose name begins with `prefix`."""
        for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError):  # in use, of another user, or gone
                if time.time() - path.stat().st_mtime > _FRESH_S:
                    _remove_unlocked(path)
        super().__init__(prefix=prefix)
        self._lock = os.open(self.name, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def cleanup(self) -> None:
        """Remove the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        super().cleanup()


_FRESH_S = 60
"""A folder may be so many seconds old before its maker has locked it."""


def _remove_unlocked(path: Path) -> None:
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    finally:
        os.close(lock)


@functools.cache
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
        "made_in": str(folder.absolute().parent),
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
        raise CropsError(
            f"{folder} is not an output of `crops {made_by}` (no {MANIFEST} in it){nearest_path(folder)}"
        )
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def recorded(path: str, folder: str | Path, made_in: str | None) -> Path:
    """Return where a path is now that an output recorded.

    Args:
        path: as it was recorded, absolute.
        folder: the output, where it is now.
        made_in: the folder that it was made in, as its manifest says.

    Returns:
        `path` if it is there; else what lies now where it lay, as seen from the output: they were moved
        together. `path` if that is not there either.
    """
    if made_in and not Path(path).exists():
        moved = Path(os.path.abspath(Path(folder).parent / os.path.relpath(path, made_in)))
        if moved.exists():
            return moved
    return Path(path)


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the block's wall time to `seconds[name]`, and say that it runs, the first time."""
    if name not in seconds:
        console.print(f"[dim]·[/dim] {name}")
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the steps of the block to ourselves: they are part of one that was told."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def ended(made: str, then: str | None = None) -> None:
    """Say in the last lines of a command what it made (console markup), and what comes next.

    Neither line is broken, so that both can be copied.
    """
    console.print(made, soft_wrap=True)
    if then is not None:
        console.print(f"next: {then}", soft_wrap=True, markup=False, highlight=False)


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
