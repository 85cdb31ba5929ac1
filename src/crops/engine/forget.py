"""Forgetting users and items: what they touched is mined again from the logs without their rows.

Taking rows out of samples would not be exact: a removed positive makes room under a cap, a removed click
makes a negative of a pair that others were shown, a removed search changes who counts as a later search. So
each affected day is built as if the logs had never held them, which is exact by construction; scores come
from the cache.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crops.engine.daily import (
    FORGET_REPORT,
    Job,
    build_day,
    built_days,
    complete,
    day_folder,
    differences,
    exclusive,
    explained,
    merge_window,
    mine_into,
    settings_of,
)
from crops.engine.mined import mined_folder
from crops.engine.subtract import Forgotten, finish_forgotten, holds, read_forgotten, without, write_forgotten
from crops.errors import CropsError
from crops.logs import Logs, open_logs
from crops.outputs import MANIFEST, publish, read_manifest, recorded

LEFT = (
    "the logs still hold them: a new mining from there brings them back, but for builds of this folder",
    "exports and reports made before still hold them: make them again",
)


@dataclass(frozen=True)
class ForgetReport:
    """What a forget did, as written to forget-report.json."""

    users: tuple[int, ...]
    items: tuple[int, ...]
    rebuilt: tuple[str, ...]
    """Days (of a plain mining: its folder) that held them and were mined again."""
    retrain: tuple[str, ...]
    """Models whose manifest names these samples."""
    left: tuple[str, ...] = LEFT
    """What the owner has to see to."""


def forget(
    out: Path,
    job: Job,
    *,
    users: Collection[int] = (),
    items: Collection[int] = (),
    logs: Path | None = None,
    models: Sequence[Path] = (),
) -> ForgetReport:
    """Remove users and items from a daily build or a mined folder, and list what must be retrained.

    The result equals a build from logs that never held them. A forget that was killed is finished by the same
    call; until then no day can be added. Later builds of the same folder leave them out too.

    Args:
        out: folder of `crops mine`, daily or not.
        job: the settings and scorers that it was mined with.
        users: ids of the logs.
        items: likewise.
        logs: the accepted logs; where the folder says it was mined from when None.
        models: folders to search for models that were trained on it.

    Raises:
        CropsError: there is nothing to forget, `out` is no mining, it was mined with other settings or
            scorers, or the logs lack a day that must be mined again. Then nothing was changed.
    """
    if not users and not items:
        raise CropsError("name at least one --user or --item to forget")
    if (out / MANIFEST).exists():
        rebuilt = _forget_folder(out, job, users, items, logs)
    elif built_days(out):
        with exclusive(out):
            rebuilt = _forget_days(out, job, users, items, logs)
    else:
        mined_folder(out)
        raise CropsError(f"{out} has no days; name the folder of the daily build, not its window")
    report = ForgetReport(
        tuple(sorted(users)), tuple(sorted(items)), tuple(rebuilt), tuple(_trained_on(out, models))
    )
    ids = {name: [str(one) for one in getattr(report, name)] for name in ("users", "items")}
    (out / FORGET_REPORT).write_text(json.dumps(asdict(report) | ids, indent=2) + "\n")
    return report


def mined_with(out: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder with the settings of a mining (the last day's of a daily build), and its manifest.

    Raises:
        CropsError: `out` is no mining, or one of a version that did not note its scorers.
    """
    days = built_days(out)
    folder = day_folder(out, days[-1]) if days else mined_folder(out)
    manifest = read_manifest(folder, "mine")
    if "scorers" not in manifest:
        raise CropsError(f"{folder} was mined by an older version; mine it again")
    return folder, manifest


def _forget_days(
    out: Path, job: Job, users: Collection[int], items: Collection[int], logs: Path | None
) -> list[str]:
    before = read_forgotten(out)
    forgotten = before.plus(users, items)
    # What was forgotten before is in no day any more, unless that forget did not finish.
    searched = forgotten if before.pending else Forgotten(tuple(users), tuple(items))
    due = {}
    for day in built_days(out):
        folder = day_folder(out, day)
        source = _logs_of(folder, logs)
        if day not in source.search_days:
            raise CropsError(f"{source.path} has no {day}, which {folder} was built from; give --logs")
        done = read_manifest(folder, "mine")["forgotten"] == forgotten.digest()
        if not done and holds(source, day, searched):
            due[day] = (source, _job_of(folder, job))
    write_forgotten(out, forgotten)
    for day, (source, of_day) in due.items():
        build_day(source, out, day, of_day, forgotten)
    merge_window(out, job.config)
    finish_forgotten(out)
    return list(due)


def _forget_folder(
    out: Path, job: Job, users: Collection[int], items: Collection[int], logs: Path | None
) -> list[str]:
    if read_manifest(out, "mine").keys() & {"inputs", "parts"}:
        raise CropsError(f"{out} is a part of a daily build; name {out.parent}")
    forgotten = read_forgotten(out).plus(users, items)
    source, job = _logs_of(out, logs), _job_of(out, job)
    days = job.config.days or tuple(sorted({*source.search_days, *source.feed_days}))
    if not any(holds(source, day, Forgotten(tuple(users), tuple(items))) for day in days):
        return []
    with explained(out), without(source, days, forgotten, out.parent, job.config.memory) as remaining:
        if remaining is None:
            raise CropsError(f"{out}: no search is left without them; delete the folder")
        with publish(out, "mine") as folder:
            mine_into(folder, remaining, job.config.days, job)
            write_forgotten(folder, replace(forgotten, pending=False))
            complete(folder, job, {"logs": str(source.path.absolute())})
    return [str(out)]


def _logs_of(folder: Path, logs: Path | None) -> Logs:
    manifest = read_manifest(folder, "mine")
    path = logs or recorded(manifest["logs"], folder, manifest.get("made_in"))
    if not path.is_dir():
        raise CropsError(f"{path}: the logs that {folder} was mined from are gone; give --logs")
    return open_logs(path)


def _job_of(folder: Path, job: Job) -> Job:
    """Return the job with the generated documents that the folder was mined with."""
    if changed := differences(settings_of(folder), job.settings()):
        raise CropsError(
            f"{folder} was mined otherwise: {'; '.join(changed)}; give the same --relevance and --config"
        )
    manifest = read_manifest(folder, "mine")
    if (generated := manifest["generated"]) is None:
        return replace(job, generated=None)
    return replace(job, generated=recorded(generated, folder, manifest.get("made_in")))


def _trained_on(out: Path, roots: Sequence[Path]) -> Iterator[str]:
    for root in roots:
        for place, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if MANIFEST in files and _names(Path(place), out.resolve()):
                yield place


def _names(folder: Path, out: Path) -> bool:
    manifest = read_manifest(folder, "train")
    samples = manifest.get("samples")
    if manifest["command"] != "train" or samples is None:
        return False
    return recorded(samples, folder, manifest.get("made_in")).resolve().is_relative_to(out)
