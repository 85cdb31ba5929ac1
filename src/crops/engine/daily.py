"""Daily builds: each day mined once into a folder of its own, the last K merged into a window.

`OUT/day=YYYY-MM-DD/` and `OUT/window/` are folders as `crops mine` writes them. Each appears whole or not at
all and is made from what lies before it (logs, scores, days), so a build that was killed at any point goes on
when it is started again, and ends with the same content.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from crops.config import EngineConfig
from crops.engine.content import write_content
from crops.engine.job import mine
from crops.engine.scoring import CachedScorer, scorer_names
from crops.engine.subtract import FORGOTTEN, SCRATCH, Forgotten, read_forgotten, without
from crops.engine.window import WINDOW, built_days, day_folder, discard, merge_window
from crops.errors import CropsError
from crops.logs import Logs
from crops.logs.days import days_before, spans, today, usual_days
from crops.outputs import MANIFEST, RESOLVED_CONFIG, console, publish, read_manifest
from crops.protocols import PairScorer

FORGET_REPORT = "forget-report.json"
_LOCK = ".lock"
_FREE = ("days", "engine", "master", "memory", "k", "daily")
"""Settings that leave the samples of a day as they are."""


@dataclass(frozen=True)
class Job:
    """What a day is mined with (see `crops.engine.mine`)."""

    config: EngineConfig
    relevance: PairScorer | CachedScorer | None
    similarity: PairScorer | CachedScorer | None
    generated: Path | None = None
    seed: int = 0

    def mine(self, logs: Logs, out: Path, days: Sequence[str] | None) -> dict[str, Any]:
        """Mine some days (all when None) of the logs."""
        return mine(
            logs,
            out,
            self.config.model_copy(update={"days": None if days is None else tuple(days)}),
            relevance=self.relevance,
            similarity=self.similarity,
            generated=self.generated,
            seed=self.seed,
        )

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples of a day beside its logs, by dotted name."""
        engine = self.config.model_dump(mode="json", exclude_none=True)
        return _settings(self.seed, engine, scorer_names(self.relevance, self.similarity))


def mine_daily(
    logs: Logs, out: Path, job: Job, days: Sequence[str] = (), *, rebuild: bool = False
) -> dict[str, Any]:
    """Add days to a daily build and merge its window: the last `config.daily.window` calendar days.

    A day sees its own rows only: nothing reaches over midnight, and all caps hold per day. Days that are
    built already are not mined again. Folders of days that left the window are removed.

    Args:
        logs: accepted logs that hold the days.
        out: the folder of the build.
        job: settings and scorers, the same for all days of a window.
        days: the days to add, YYYY-MM-DD; when empty all days of the logs that fall into the window, but none
            after today or more than a window's length after the day before it.
        rebuild: mine these days anew, from other settings or logs than before.

    Returns:
        the report of the window (see `crops.engine.window.merge_window`).

    Raises:
        CropsError: a day is no day, not in the logs, before the window, or built from other settings or logs;
            no day is named and which are meant is not clear;
            another build is at work; a forget was not finished; or as `crops.engine.mine`.
    """
    with exclusive(out):
        forgotten = read_forgotten(out)
        if forgotten.pending:
            raise CropsError(f"{out}: `crops forget` did not finish; run it again before adding days")
        wanted = _wanted_days(logs, out, job.config, days)
        due = [day for day in wanted if rebuild or not day_folder(out, day).exists()]
        _check_built(logs, out, job, set(wanted), set(due))
        for day in due:
            console.print(f"[dim]·[/dim] day {day}")
            if not build_day(logs, out, day, job, forgotten):
                console.print(f"{day}: no search is left, its folder is gone")
        return merge_window(out, job.config)


def build_day(logs: Logs, out: Path, day: str, job: Job, forgotten: Forgotten) -> bool:
    """Mine one day into its folder; return whether it holds a search, or else remove the folder."""
    target = day_folder(out, day)
    with explained(out), without(logs, [day], forgotten, out, job.config.memory) as remaining:
        if remaining is None:
            discard(target)
            return False
        with publish(target, "mine") as folder:
            mine_into(folder, remaining, [day], job)
            facts = {"inputs": _inputs(logs, day), "forgotten": forgotten.digest()}
            complete(folder, job, {"logs": str(logs.path.absolute()), **facts})
    return True


def mine_into(folder: Path, logs: Logs, days: Sequence[str] | None, job: Job) -> None:
    """Mine into an empty folder that is not published yet."""
    job.mine(logs, folder / "mined", days)
    for path in (folder / "mined").iterdir():
        path.rename(folder / path.name)
    (folder / "mined").rmdir()


def complete(folder: Path, job: Job, facts: dict[str, Any]) -> None:
    """Add facts to the manifest of a mined folder, and its content manifest."""
    manifest = {**read_manifest(folder, "mine"), "made_in": str(folder.absolute().parent), **facts}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    write_content(folder, job.config.memory)


def settings_of(folder: Path) -> dict[str, Any]:
    """Return what decided the samples of a mined folder, as `Job.settings`."""
    run = tomllib.loads((folder / RESOLVED_CONFIG).read_text())
    return _settings(run["seed"], run["engine"], read_manifest(folder, "mine").get("scorers", {}))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a phrase for each setting that is not the same."""
    return [
        f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


@contextlib.contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold the folder of a daily build alone, and clear what a killed one left in it.

    Raises:
        CropsError: another process holds it, or it holds other things than a daily build.
    """
    _refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK).open("w") as lock:  # the system gives the lock back even after kill -9
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CropsError(f"{out}: another build is at work in this folder; wait for it") from error
        _clear(out)
        yield


@contextlib.contextmanager
def explained(out: Path) -> Iterator[None]:
    """Turn failures of the disk into errors that a user can act on."""
    try:
        yield
    except OSError as error:
        raise CropsError(f"{out}: writing failed, nothing was published: {error}; free disk space") from error


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CropsError(f"{out} is a file; name a folder for the daily build")
    known = (WINDOW, FORGOTTEN, FORGET_REPORT)
    for path in out.iterdir() if out.exists() else ():
        if not path.name.startswith((".", "day=")) and path.name not in known:
            raise CropsError(f"{out} is no daily build: it holds {path.name}; name another folder")


def _clear(out: Path) -> None:
    for old in out.glob(".*.old"):
        target = out / old.name[1:].rsplit(".", 2)[0]
        if not target.exists():  # killed between the two renames of a publish
            old.rename(target)
    for path in [*out.glob(".*.old"), *out.glob(".*.tmp"), *out.glob(".*.lock"), *out.glob(f"{SCRATCH}*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _wanted_days(logs: Logs, out: Path, config: EngineConfig, days: Sequence[str]) -> list[str]:
    for day in days:
        _check_day(logs, day)
    window, built = config.daily.window, built_days(out)
    wanted = days or _unasked_days(logs, out, built, window)
    last = max([*wanted, *built])
    first = days_before(last, window - 1)
    for day in days:
        if day < first:
            raise CropsError(
                f"{day} is before the window ({first} to {last}); set engine.daily.window above {window} to "
                f"keep more days{_wrong_clock(out, built)}"
            )
    return sorted({day for day in wanted if day >= first})


def _unasked_days(logs: Logs, out: Path, built: Sequence[str], window: int) -> list[str]:
    """Return the days of the logs that are added where none is named.

    Raises:
        CropsError: none can be: what is built, or what is new, may come from a wrong clock.
    """
    if remedy := _wrong_clock(out, built):
        raise CropsError(f"{out}: no day can be added{remedy}, or name days with --day")
    usual = usual_days(logs.path, logs.search_days, window, built[-1] if built else None)
    jumps = [day for day in logs.search_days if day not in usual and day <= today()]
    if jumps and not set(usual) - set(built):
        raise CropsError(
            f"{logs.path}: nothing was added: {spans(jumps)} is more than {window} days after {built[-1]}, "
            "the newest day built; name the days that you mean with --day"
        )
    return usual


def _wrong_clock(out: Path, built: Sequence[str]) -> str:
    future = [day_folder(out, day) for day in built if day > today()]
    return f"; {future[0]} lies after today: delete it if a wrong clock made it" if future else ""


def _check_day(logs: Logs, day: str) -> None:
    try:
        valid = date.fromisoformat(day).isoformat() == day
    except ValueError:
        valid = False
    if not valid:
        raise CropsError(f"'{day}' is no day: write YYYY-MM-DD")
    if day not in logs.search_days:
        days = ", ".join(logs.search_days) or "none"
        raise CropsError(f"{logs.path}: no search_impressions on {day}; the days there are: {days}")


def _check_built(logs: Logs, out: Path, job: Job, wanted: set[str], due: set[str]) -> None:
    """Raise where a day that stays was built from something else."""
    remedy = "name another folder, or mine these days anew with --rebuild"
    for day in built_days(out):
        folder = day_folder(out, day)
        if day in due:
            continue
        if changed := differences(settings_of(folder), job.settings()):
            raise CropsError(f"{folder} was built from other settings: {'; '.join(changed)}; {remedy}")
        if day in wanted and read_manifest(folder, "mine")["inputs"] != _inputs(logs, day):
            raise CropsError(f"{folder} was built from other logs of that day; {remedy}")


def _inputs(logs: Logs, day: str) -> dict[str, int]:
    """Return the bytes of the files that hold nothing but the day's rows."""
    return {
        str(file.relative_to(logs.path)): file.stat().st_size
        for files in logs.tables.values()
        if files.table.partitioned and files.partitioned
        for file in files.on([day]).files
    }


def _settings(seed: int, engine: dict[str, Any], scorers: dict[str, str]) -> dict[str, Any]:
    kept = {name: value for name, value in engine.items() if name not in _FREE}
    return dict(_flat({"seed": seed, "engine": kept, "scorers": scorers}))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
