"""Daily builds: each day mined once into a folder of its own, the last K merged into a window.

`OUT/day=YYYY-MM-DD/` and `OUT/window/` are folders as `crops mine` writes them. Each appears whole or not at
all and is made from what is before it (logs, scores, days), so a build that was killed at any point resumes
when it is started again, and ends with the same rows.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from rich.markup import escape

from crops.config import DocumentConfig, EngineConfig
from crops.engine.documents import COUNTED
from crops.engine.events import NoSearchError
from crops.engine.midnight import Beside
from crops.engine.mine import mine
from crops.engine.mined import BESIDE, BUILD, CATALOGUE, REPORT, WINDOW
from crops.engine.scoring import CachedScorer, scorer_names
from crops.engine.window import add_reports, write_window
from crops.engine.without import Without, held
from crops.errors import CropsError
from crops.logs import Logs, is_uri, open_logs
from crops.logs.days import days_before, spans, today, usual_days
from crops.outputs import (
    MANIFEST,
    RESOLVED_CONFIG,
    console,
    publish,
    read_manifest,
    recorded,
    timed,
    write_manifest,
)
from crops.protocols import PairScorer
from crops.schema import FEED_EVENTS, SEARCH_IMPRESSIONS

_LOCK = ".lock"
_DAY_S = 86_400
_FREE = ("days", "holdout", "gap", "engine", "master", "memory", "k", "daily")
"""Settings that leave the samples of a day as they are."""


@dataclass(frozen=True)
class Job:
    """What a day is mined with (see `crops.engine.mine`)."""

    config: EngineConfig
    relevance: PairScorer | CachedScorer | None
    similarity: PairScorer | CachedScorer | None
    generated: Path | None = None
    seed: int = 0
    without: Without | None = None
    document: DocumentConfig | None = None

    def mine(
        self,
        logs: Logs,
        out: Path,
        days: Sequence[str] | None,
        history: Mapping[str, Logs] | None = None,
        beside: Beside | None = None,
        *,
        used_items: bool = False,
        **noted: object,
    ) -> dict[str, Any]:
        """Mine some days (all when None) of the logs, see `mine`; `noted` are entries of the manifest."""
        return mine(
            logs,
            out,
            self.config.model_copy(update={"days": None if days is None else tuple(days)}),
            relevance=self.relevance,
            similarity=self.similarity,
            generated=self.generated,
            seed=self.seed,
            without=self.without,
            document=self.document,
            history=history,
            beside=beside,
            used_items=used_items,
            noted=noted,
        )

    @property
    def counts_clicks(self) -> bool:
        """Whether the click queries of a day's items are counted on days before."""
        return self.document is not None and self.document.counts_clicks

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples of a day besides its logs, by dotted name."""
        engine = self.config.model_dump(mode="json", exclude_none=True)
        document = self.document.model_dump(mode="json") if self.document and self.counts_clicks else {}
        return _settings(self.seed, engine, scorer_names(self.relevance, self.similarity), document)


def mine_daily(
    logs: Logs, out: Path, job: Job, days: Sequence[str] = (), *, rebuild: bool = False
) -> dict[str, Any]:
    """Add days to a daily build and merge its window: the last `config.daily.window` calendar days.

    A day sees its own rows only, with `config.daily.lookback` also those of the days beside it near midnight;
    all caps hold per day. Days that are built already are not mined again, unless their logs hold other users
    or items to leave out than they were mined without or, with a lookback, the rows that they see have
    changed. Folders of days that left the window are removed.

    Args:
        logs: accepted logs that hold the days.
        out: the folder of the build.
        job: settings and scorers, the same for all days of a window.
        days: the days to add, YYYY-MM-DD; when empty all days of the logs that fall into the window, but none
            after today or more than a window's length after the day before it.
        rebuild: mine these days again, from other settings or logs than before.

    Returns:
        the report of the window (see `crops.engine.daily.merge_window`).

    Raises:
        CropsError: a day is no day, not in the logs, before the window, or built from other settings or logs;
            no day is named and which are meant is not clear;
            another build is at work; what `job` leaves out is not what a day was mined without, and its logs
            are gone; or as `crops.engine.mine`.
    """
    _check_windows(job.config)
    with exclusive(out):
        wanted = _wanted_days(logs, out, job.config, days)
        new = [day for day in wanted if rebuild or not day_folder(out, day).exists()]
        sources = _Sources(logs, out, wanted, new)
        due = {day: (logs, job) for day in new} | _due_again(sources, job)
        if not due:
            console.print(f"[dim]·[/dim] {spans(wanted)}: built already, nothing is mined")
        while due:  # the newest first where days see the next: none that is left without a search
            day = (max if job.config.daily.lookback else min)(due)
            source, of_day = due.pop(day)
            console.print(f"[dim]·[/dim] day {day}")
            _build_day(source, out, day, of_day, sources)
            before = days_before(day, 1)
            if day not in sources.days and job.config.daily.lookback and before in built_days(out):
                due.setdefault(before, sources.again(before, job))
        there = {day: sources.of(day) for day in _in_window(built_days(out), job.config)}
        return merge_window(out, job.config, there, job.without)


def _check_windows(config: EngineConfig) -> None:
    for name in ("reformulation", "feed"):
        if config.daily.lookback and getattr(config, name).window_s > _DAY_S:
            raise CropsError(
                f"engine.{name}.window_s = {getattr(config, name).window_s:g} is more than a day, and "
                "engine.daily.lookback sees one day to each side; lower it, or set the lookback to 0"
            )


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


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CropsError(f"{out} is a file; name a folder for the daily build")
    for path in out.iterdir() if out.exists() else ():
        if not path.name.startswith((".", "day=")) and path.name != WINDOW:
            raise CropsError(f"{out} is no daily build: it holds {path.name}; name another folder")


def _clear(out: Path) -> None:
    for old in out.glob(".*.old"):
        target = out / old.name[1:].rsplit(".", 2)[0]
        if not target.exists():  # killed between the two renames of a publish
            old.rename(target)
    for path in [*out.glob(".*.old"), *out.glob(".*.tmp"), *out.glob(".*.lock")]:
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
    return f"; {future[0]} is after today: delete it if a wrong clock made it" if future else ""


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


_REBUILD = "name another folder, or mine these days again with --rebuild"


class _Sources:
    """Where the rows of each day of a build are, and what a day sees of the days beside it."""

    def __init__(self, logs: Logs, out: Path, wanted: Sequence[str], new: Sequence[str]) -> None:
        """Begin with the logs that are given; they hold the `wanted` days, of which `new` ones are due."""
        self.logs, self.out, self.wanted, self.new = logs, out, wanted, new
        self.days = sorted({*built_days(out), *wanted})
        """Of the build, when it will be done."""
        self._opened: dict[str, Logs | None] = {str(logs.path): logs}

    def of(self, day: str) -> Logs | None:
        """Return the logs of a day of the build; None if they are gone."""
        return self.logs if day in self.wanted else self.recorded(day)

    def recorded(self, day: str) -> Logs | None:
        """Return the logs that a built day was mined from; None if they are gone, or hold it no longer."""
        before = read_manifest(day_folder(self.out, day), "mine")
        logs = self._open(before["logs"], day, before)
        return logs if logs is not None and day in logs.search_days else None

    def again(self, day: str, job: Job) -> tuple[Logs, Job]:
        """Return what a built day is mined again from.

        Raises:
            CropsError: its logs are gone.
        """
        folder, source = day_folder(self.out, day), self.of(day)
        before = read_manifest(folder, "mine")
        if source is None:
            raise CropsError(
                f"{before['logs']}: the logs that {folder} was mined from are gone, or hold {day} no longer; "
                f"put them back, or delete {folder}"
            )
        generated = before["generated"] and recorded(before["generated"], folder, before.get("made_in"))
        return source, replace(job, generated=generated)

    def _open(self, path: str, day: str, before: Mapping[str, Any]) -> Logs | None:
        """Open the logs that the manifest of a day names; None if there are none any more."""
        found = path if is_uri(path) else recorded(path, day_folder(self.out, day), before.get("made_in"))
        if str(found) not in self._opened:
            if not (is_uri(str(found)) or Path(found).is_dir()):
                return None
            try:
                self._opened[str(found)] = open_logs(found)
            except CropsError as error:  # emptied, say, or refused
                console.print(
                    f"[yellow]days that were mined from them stay as they are:[/yellow] {escape(str(error))}",
                    soft_wrap=True,
                )
                self._opened[str(found)] = None
        return self._opened[str(found)]

    def beside(self, day: str) -> dict[str, Logs | None]:
        """Return where the days beside a day are that it sees: None for logs that are gone.

        The day after it is seen once it is a day of the build, for it may be kept for evaluation. The day
        before it is seen wherever it is: in the build, where the day saw it before, or in the logs given.
        """
        before, after = days_before(day, 1), days_before(day, -1)
        folder = day_folder(self.out, day)
        manifest = read_manifest(folder, "mine") if folder.exists() else {}
        found: dict[str, Logs | None] = {}
        for other in (before, after):
            seen = manifest.get(BESIDE, {}).get(other)
            if other in self.days:
                logs = self.of(other)
            elif other == before:
                logs = self.logs if seen is None else self._open(seen["logs"], day, manifest)
            else:
                continue
            held: set[str] = set()
            if logs is not None:
                held = {*logs.feed_days, *(logs.search_days if other == after else ())}
            if other in held:
                found[other] = logs
            elif logs is None or seen is not None:
                found[other] = None
        return found


def _beside_inputs(day: str, beside: Mapping[str, Logs | None]) -> dict[str, dict[str, int | str] | None]:
    """Return what changes with the rows that a day sees of the days beside it; None where they are gone."""
    found: dict[str, dict[str, int | str] | None] = {}
    for other, logs in beside.items():
        tables = (FEED_EVENTS, SEARCH_IMPRESSIONS) if other > day else (FEED_EVENTS,)
        found[other] = None
        if logs is not None:
            seen = replace(logs, tables={table.name: logs.tables[table.name] for table in tables})
            found[other] = seen.inputs(other)
    return found


def _sees_other(day: str, before: Mapping[str, Any], beside: Mapping[str, Logs | None]) -> str:
    """Say which of the days beside a built day have other rows than when it was mined; empty if none."""
    was = {other: seen["inputs"] for other, seen in before.get(BESIDE, {}).items()}
    now = _beside_inputs(day, beside)
    # Of logs that are gone nothing new can be said.
    other = [
        one for one in sorted({*was, *now}) if was.get(one) != now.get(one) and now.get(one, {}) is not None
    ]
    return f"it sees other rows of {' and '.join(other)} than before" if other else ""


def _due_again(sources: _Sources, job: Job) -> dict[str, tuple[Logs, Job]]:
    """Return the built days that hold other rows than they should, each with its logs and its job.

    Raises:
        CropsError: a day that is not new was built from other settings or logs; or without ids, and none are
            named now; or its logs are gone.
    """
    out, lookback, due = sources.out, job.config.daily.lookback, {}
    in_window = _in_window(sources.days, job.config)
    for day in built_days(out):
        folder = day_folder(out, day)
        before = read_manifest(folder, "mine")
        if day in sources.new:
            continue
        was, now = _settings_of(folder, before), job.settings()
        if changed := [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]:
            what = "; ".join(f"{name} was {was.get(name)}, now {now.get(name)}" for name in changed)
            raise CropsError(f"{folder} was built from other settings: {what}; give these again, {_REBUILD}")
        other = f"{folder} was built from other logs of that day; {_REBUILD}"
        may_be_late = lookback > 0 and day >= days_before(sources.days[-1], lookback)
        if day in sources.wanted and before.get("inputs") != sources.logs.inputs(day) and not may_be_late:
            raise CropsError(other)
        if day not in in_window or (job.without is None and not before.get("without") and not lookback):
            continue
        if job.without is None and before.get("without"):
            raise CropsError(
                f"{folder} was mined without some users or items; give their lists again (--without), or an "
                "empty list, which takes them in again"
            )
        source = sources.of(day)
        late = source is not None and before.get("inputs") != source.inputs(day)
        why = "its files have changed" if late else ""
        if lookback and not late:
            why = _sees_other(day, before, sources.beside(day))
        if source is None and (why or job.without is not None):
            sources.again(day, job)  # says that they are gone
        if late and not may_be_late and (why or job.without is not None):
            raise CropsError(other)
        if source is None:
            continue
        if why:
            console.print(f"[yellow]{day} is mined again:[/yellow] {why}", soft_wrap=True)
        if why or _left_out(source, day, job).digest() != before.get("without", ""):
            due[day] = sources.again(day, job)
    return due


def _settings_of(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decided the samples of a mined folder, as `Job.settings`."""
    run = tomllib.loads((folder / RESOLVED_CONFIG).read_text())
    return _settings(run["seed"], run["engine"], manifest.get("scorers", {}), run.get("document", {}))


def _settings(
    seed: int, engine: dict[str, Any], scorers: dict[str, str], document: dict[str, Any]
) -> dict[str, Any]:
    kept = {name: value for name, value in engine.items() if name not in _FREE}
    # How far back is free to change; whether a day sees over midnight is not.
    kept["daily"] = {"lookback": min(1, engine.get("daily", {}).get("lookback", 0))}
    return dict(_flat({"seed": seed, "engine": kept, "scorers": scorers, "document": document}))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _build_day(logs: Logs, out: Path, day: str, job: Job, sources: _Sources) -> None:
    """Mine one day into its folder, or remove the folder where no search is left on it."""
    found = _left_out(logs, day, job)
    noted = {
        BUILD: secrets.token_hex(8),
        "inputs": logs.inputs(day),
        CATALOGUE: logs.catalogue(),
        "without": found.digest(),
    }
    beside = None
    if job.config.daily.lookback:
        seen = sources.beside(day)
        if gone := [other for other, source in seen.items() if source is None]:
            folders = [day_folder(out, one) for one in (gone[0], day)]
            raise CropsError(
                f"the logs of {gone[0]} are gone, and {day} sees their rows near midnight; put them back "
                "(raw logs of single days replace each other where mine checks them: check each into its own "
                f"folder), or delete {next((one for one in folders if one.exists()), folders[0])}"
            )
        there = {other: source for other, source in seen.items() if source is not None}
        beside = Beside.of(there, job.config)
        inputs = _beside_inputs(day, there)
        noted[BESIDE] = {
            other: {"logs": str(source.path), "inputs": inputs[other]} for other, source in there.items()
        }
    history = _history(logs, out) if job.counts_clicks else None
    try:
        job.mine(logs, day_folder(out, day), [day], history, beside, used_items=True, **noted)
    except NoSearchError:
        if not found:
            raise
        discard(day_folder(out, day))
        sources.days.remove(day)  # no other day sees it
        console.print(f"{day}: no search is left, its folder is gone")


def _left_out(logs: Logs, day: str, job: Job) -> Without:
    """Return the ids that a day is mined without; click queries reach back, to days with others of them."""
    if not job.without or job.counts_clicks:
        return job.without or Without()
    return held(logs, day, job.without, job.config.memory)


def _history(logs: Logs, out: Path) -> dict[str, Logs]:
    """Return the logs of each day that click queries may be counted on, also of former builds."""
    history = dict.fromkeys(logs.search_days, logs)
    opened = {logs.path: logs}
    for day in built_days(out):
        manifest = read_manifest(day_folder(out, day), "mine")
        named = manifest["logs"]
        path = named if is_uri(named) else recorded(named, day_folder(out, day), manifest.get("made_in"))
        if day not in history and (is_uri(named) or Path(path).is_dir()):
            opened[path] = opened.get(path) or open_logs(path)
            history[day] = opened[path]
    return history


def _in_window(days: Iterable[str], config: EngineConfig) -> list[str]:
    """Return the days that lie in the window that ends with the last of them, sorted."""
    days = sorted(set(days))
    return [day for day in days if day >= days_before(days[-1], config.daily.window - 1)]


_DAY = re.compile(r"day=(\d{4}-\d\d-\d\d)")


def day_folder(out: Path, day: str) -> Path:
    """Return the folder of a day of a daily build."""
    return out / f"day={day}"


def built_days(out: Path) -> list[str]:
    """Return the days of a daily build, YYYY-MM-DD, sorted."""
    found = (_DAY.fullmatch(path.name) for path in out.glob("day=*"))
    return sorted(match[1] for match in found if match)


def merge_window(
    out: Path, config: EngineConfig, logs: Mapping[str, Logs | None], without: Without | None = None
) -> dict[str, Any]:
    """Merge the last `config.daily.window` calendar days of a build into `out`/window, if they changed.

    Per pair the sources of all days are united and the highest label wins. Its weight is that of its freshest
    reason: the largest w * decay(s) ^ age over the days and sources s that earned this label, where w is the
    weight on that day, age its distance to the last day in days. `searches` of a query is the sum over the
    days; `users`, where the days cannot be told apart, the largest of a day: a lower bound. Items are those
    of the catalogues of the days' logs, each read once, and those that the days name; the latest row counts.
    Folders of days before the window are removed, and named.

    Args:
        out: folder of the daily build.
        config: window, decay and memory.
        logs: of each day of the window; None where they are gone: only the items that the day names are then
            known of it.
        without: whose items are left out of the catalogues.

    Returns:
        the report: labels and `p3_coverage` of the window, other counts summed over days.

    Raises:
        CropsError: memory or disk is not enough (the old window stays).
    """
    built = built_days(out)
    if not built:
        discard(out / WINDOW)
        return {}
    days = _in_window(built, config)
    first = days_before(built[-1], config.daily.window - 1)
    left = {day: f"{day} left the window ({first} to {built[-1]})" for day in built if day not in days}
    for day, what in left.items():
        console.print(f"[yellow]{day_folder(out, day)} is removed:[/yellow] {what}", soft_wrap=True)
    window = out / WINDOW
    manifest = read_manifest(window, "mine") if (window / MANIFEST).exists() else {}
    there = {day: of_day for day in days if (of_day := logs.get(day)) is not None}
    made_of = {
        # No other mining of a day has its manifest.
        "parts": {day: _hash(day_folder(out, day) / MANIFEST) for day in days},
        "daily": config.daily.model_dump(mode="json", exclude={"lookback"}),
        CATALOGUE: {day: of_day.catalogue() for day, of_day in there.items()},
    }
    # Of logs that are gone nothing new can be said: that alone is no reason to merge again.
    was = {**manifest, CATALOGUE: {day: v for day, v in manifest.get(CATALOGUE, {}).items() if day in there}}
    if any(was.get(name) != value for name, value in made_of.items()):
        folders = {day: day_folder(out, day) for day in days}
        _publish_window(window, folders, config, made_of, [*left.values()], there, without)
    for day in left:
        discard(day_folder(out, day))
    report: dict[str, Any] = json.loads((window / REPORT).read_text())
    return report


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def discard(folder: Path) -> None:
    """Remove a folder of a build, if it is there: for a reader it goes as a whole."""
    if folder.exists():
        gone = folder.rename(folder.with_name(f".{folder.name}.tmp"))
        shutil.rmtree(gone)


def _publish_window(
    window: Path,
    folders: Mapping[str, Path],
    config: EngineConfig,
    made_of: Mapping[str, Any],
    left: Sequence[str],
    there: Mapping[str, Logs],
    without: Without | None,
) -> None:
    days = list(folders)
    span = (date.fromisoformat(days[-1]) - date.fromisoformat(days[0])).days
    missing = sorted({days_before(days[-1], age) for age in range(span)} - {*days})
    if missing:
        console.print(f"[yellow]no build of {', '.join(missing)}:[/yellow] the window is made without it")
    manifests = {day: read_manifest(folder, "mine") for day, folder in folders.items()}
    # Days of former releases hold their whole catalogue.
    gone = [day for day, manifest in manifests.items() if day not in there and CATALOGUE in manifest]
    no_logs = [f"the logs of {day} are gone: of its items only those that it names are known" for day in gone]
    for what in no_logs:
        console.print(f"[yellow]{what}[/yellow]", soft_wrap=True)
    logs = {
        day: manifest["logs"]
        if is_uri(manifest["logs"])
        else str(recorded(manifest["logs"], folders[day], manifest.get("made_in")))
        for day, manifest in manifests.items()
    }
    seconds: dict[str, float] = {}
    with publish(window, "mine") as target:
        with timed(seconds, f"window of {len(days)} days"):
            counted = manifests[days[0]].get(COUNTED)
            coverage, labels = write_window(
                folders,
                target,
                window,
                config,
                clicks=counted is not None,
                logs=there,
                without=without,
            )
        reports = [json.loads((folder / REPORT).read_text()) for folder in folders.values()]
        report = {**add_reports(reports), "labels": labels, "p3_coverage": coverage}
        report["input"]["queries"] = coverage["queries"]
        report["notes"] += [f"no build of {day}: the window is made without it" for day in missing]
        report["notes"] += [*no_logs, *left]
        (target / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        last = manifests[days[-1]]
        beside = {
            day: seen
            for one in manifests.values()
            for day, seen in one.get(BESIDE, {}).items()
            if day not in days
        }
        engine = config.model_copy(update={"days": tuple(days)}).model_dump(mode="json", exclude_none=True)
        write_manifest(
            target,
            "mine",
            config={"seed": last["seed"], "engine": engine},
            **({} if counted is None else {COUNTED: counted}),
            seconds=seconds,
            **{name: last[name] for name in ("generated", "scorers")},
            logs=logs[days[-1]],
            days=days,
            missing_days=missing,
            logs_of_days=logs,
            **({BESIDE: beside} if beside else {}),
            **made_of,
        )
