"""Stages of a job on a cluster: each of its tables is Parquet beside the output, on the disk that all share.

A worker that is lost costs its tasks. After the driver was killed, the same command takes what is there and
goes on after it. A stage is known by its build (what is read, settings, code) and by what it was asked; it is
there whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from crops.engine import probe
from crops.engine.backend import check_rows
from crops.outputs import console

RECORD = "_stage.json"
"""Schema of a stage, and the bytes of each file by name: written last."""


def work_folder(out: Path) -> Path:
    """Return where the stages of the jobs that write an output are: hidden, beside it."""
    return out.with_name(f".{out.name}.work")


def build_key(logs: Iterable[Path | str], others: Iterable[Path], *settings: object) -> str:
    """Return the name of a build: a hash of the code, the settings and the files that it reads.

    A file is known by its path, bytes and time of change; one of a store by its URI.
    """
    files = sorted([*logs, *others], key=str)
    read = [
        (str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) if isinstance(file, Path) else (file,)
        for file in files
    ]
    return hashlib.sha256(repr((probe.versions(), settings, read)).encode()).hexdigest()[:16]


class Stages:
    """The stages of one build; those of others go when it begins."""

    def __init__(self, work: Path, build: str) -> None:
        """Clear what killed jobs left half-written in `work`, and the stages of other builds."""
        self.folder = work / build
        for path in [*work.glob("*"), *self.folder.glob("*.tmp")]:
            if path != self.folder:
                shutil.rmtree(path, ignore_errors=True)
        self.taken = 0
        """Stages that a killed job has left."""
        self._asked: Counter[tuple[str, str]] = Counter()
        self._within: Path | None = None

    def place(self, name: str, key: str) -> Path:
        """Return the folder of a table; what is asked again under its name and key is another one."""
        self._asked[name, key] += 1
        asked = repr((name, key, self._asked[name, key]))
        return (self._within or self.folder) / f"{name}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"

    def is_there(self, place: Path) -> bool:
        """Return whether a stage is there with all its bytes; one that is damaged is removed."""
        try:
            sizes = json.loads((place / RECORD).read_text())["bytes"]
            whole = all((place / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError):
            whole = False
        if place.exists() and not whole:
            console.print(f"[yellow]{place} is damaged:[/yellow] it is made again", soft_wrap=True)
            shutil.rmtree(place)
        if whole and not self.taken:
            console.print("[dim]·[/dim] goes on where a job like this one was stopped")
        self.taken += whole
        return whole

    def schema(self, place: Path) -> str:
        """Return the schema of a stage that is there, as it was given."""
        schema: str = json.loads((place / RECORD).read_text())["schema"]
        return schema

    def writing(self, place: Path) -> Path:
        """Return where a stage is written: a task of a killed job that writes on has another folder."""
        return self.folder / f"{place.name}.{secrets.token_hex(8)}.tmp"

    def keep(self, written: Path, place: Path, rows: int, schema: str) -> None:
        """Give a written stage its place.

        Raises:
            CropsError: its files do not hold so many rows.
        """
        files = sorted(written.glob("part-*.parquet"))
        check_rows(files, rows, place)
        sizes = {file.name: file.stat().st_size for file in files}
        (written / RECORD).write_text(json.dumps({"schema": schema, "bytes": sizes}))
        place.parent.mkdir(parents=True, exist_ok=True)
        written.rename(place)

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        """Keep the tables of this block for its time only."""
        around, counted = self._within, self._asked.copy()
        self._within = own = self.writing(self.folder)
        try:
            yield
        finally:
            shutil.rmtree(own, ignore_errors=True)
            self._within, self._asked = around, counted
