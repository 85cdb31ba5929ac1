"""Makes many cells: first what they share, then each of them, in as many processes as are wanted."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from crops.config import with_settings
from crops.errors import CropsError
from crops.evaluation.source_precision import source_precision
from crops.outputs import cache_folder, console, is_done, progress, publish, quietly, write_manifest
from crops.pretrained import theta
from crops.report import Bar, Figure, Line, Section, Table
from crops.report.page import percent
from crops.reproduce.design import (
    FIG6,
    FIG7,
    Cell,
    World,
    expansion_name,
    mined_name,
    named,
    sets_name,
    world_name,
)
from crops.reproduce.make import (
    CELLS,
    COMMAND,
    FIGURES,
    TUNED,
    make_cell,
    make_expansion,
    make_samples,
    make_testsets,
    make_world,
    naming_full_disk,
)
from crops.reproduce.tables import Measured, read_measured
from crops.retrieval import BM25Retriever, load_items
from crops.simulation import Simulated

Make = Callable[[], Path | Simulated]


@dataclass(frozen=True)
class Outcome:
    """What became of the cells."""

    measured: list[Measured]
    failed: dict[str, str]
    """Why a cell could not be made, by its name."""


def make_cells(cells: Sequence[Cell], out: Path, generated: Mapping[str, Path], jobs: int) -> Outcome:
    """Make all cells that are not there yet.

    A cell that fails with an error of its own (a loss that is not finite, say) is reported and the others go
    on. What a killed run has finished is kept: the next one resumes from it.

    Args:
        cells: the cells, repeated at will.
        jobs: processes; 1 works in this one.

    Raises:
        CropsError: a world, a mining or a test set cannot be made, the disk is full, or a process was killed.
    """
    distinct = list({cell.name(): cell for cell in cells}.values())
    missing = [cell for cell in distinct if not is_done(out / CELLS / cell.name())]
    failed: dict[str, str] = {}
    if missing:
        console.print(f"{len(distinct)} cells, {len(distinct) - len(missing)} of them there already")
        with naming_full_disk(out), _workers(jobs) as executor:
            for what, shared in _shared(missing, out, generated).items():
                # Where there is nothing to expand with, the cells that want it say so.
                _run(what, shared, executor, {} if what == "expansions" else None)
            own = {
                cell.name(): partial(make_cell, cell, out, generated.get(cell.generated)) for cell in missing
            }
            _run("cells", own, executor, failed)
    done = [out / CELLS / cell.name() for cell in distinct if is_done(out / CELLS / cell.name())]
    return Outcome([read_measured(folder) for folder in done], failed)


def make_precisions(
    cells: Mapping[World, Cell], out: Path, generated: Mapping[str, Path], jobs: int
) -> dict[World, Path]:
    """Return the folders of `make_precision` of each world; measure what is not there yet."""
    tasks = {
        f"precision in {world.label}": partial(make_precision, cell, out, generated.get(cell.generated))
        for world, cell in cells.items()
    }
    with naming_full_disk(out), _workers(jobs) as executor:
        _run("precisions", tasks, executor, None)
    return {world: tasks[f"precision in {world.label}"]() for world in cells}


def _shared(cells: Sequence[Cell], out: Path, generated: Mapping[str, Path]) -> dict[str, dict[str, Make]]:
    """Return what has to be made before the cells, in its order: each once, so that no two processes meet."""
    worlds: dict[str, Make] = {}
    mined: dict[str, Make] = {}
    expanded: dict[str, Make] = {}
    tests: dict[str, Make] = {}
    for cell in cells:
        documents = generated.get(cell.generated)
        worlds.setdefault(world_name(cell.world), partial(make_world, cell.world, out))
        mined.setdefault(mined_name(cell), partial(make_samples, cell, out, documents))
        if cell.rewordings is not None:
            expanded.setdefault(expansion_name(cell), partial(make_expansion, cell, out))
        tests.setdefault(sets_name(cell), partial(make_testsets, cell, out, documents))
    return {"worlds": worlds, "minings": mined, "expansions": expanded, "test sets": tests}


def _run(
    what: str, tasks: Mapping[str, Make], executor: Executor | None, failed: dict[str, str] | None
) -> None:
    """Do the tasks; note those that fail in `failed`, or stop at the first where that is None."""
    display = progress()
    task = display.add_task(what, total=len(tasks))
    with display:
        for number, (name, result) in enumerate(_results(tasks, executor), 1):
            try:
                folder = result()
            except BrokenProcessPool as error:
                raise CropsError(
                    f"a process was killed while it made {what} (out of memory?); finished ones are kept: "
                    "run the same command again, with fewer --jobs"
                ) from error
            except CropsError as error:
                if failed is None:
                    raise
                failed[name] = str(error)
                console.print(f"[red]{name} failed:[/red]", str(error), markup=True, highlight=False)
            else:
                console.print(f"{what} {number}/{len(tasks)}: {_told(name, folder)}", highlight=False)
            display.advance(task)


def _results(tasks: Mapping[str, Make], executor: Executor | None) -> Iterator[tuple[str, Make]]:
    """Yield each task's name and what returns or raises its result, as they end."""
    if executor is None:
        yield from ((name, partial(_alone, make)) for name, make in tasks.items())
        return
    futures: dict[Future[Path | Simulated], str] = {
        executor.submit(_alone, make): name for name, make in tasks.items()
    }
    try:
        for future in as_completed(futures):
            yield futures[future], future.result
    finally:
        for future in futures:
            future.cancel()


def _alone(make: Make) -> Path | Simulated:
    """Do a task without the lines that its parts print."""
    with quietly():
        return make()


def _told(name: str, made: Path | Simulated) -> str:
    if isinstance(made, Simulated) or made.parent.name != CELLS:
        return name
    facts = read_measured(made).info
    shown = {"recall@100/ct": "CT", "recall@100/qr": "QR", "ndcg_exp2@4/pool": "NDCG@4"}
    figures = [
        f"{title} {100 * facts['metrics'][metric]['mean']:.1f}"
        for metric, title in shown.items()
        if metric in facts["metrics"]
    ]
    cpu = facts["training"].get("cpu_seconds")
    return f"{name}: {', '.join(figures)}" + (f", {cpu:.0f} CPU-s" if cpu else "")


@contextmanager
def _workers(jobs: int) -> Iterator[Executor | None]:
    if jobs == 1:
        yield None
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_settle, initargs=(threads,)
    ) as executor:
        yield executor


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _settle(threads: int) -> None:
    """Prepare a worker: it takes its share of the cores, and ends when the process that started it does.

    A worker that went on after its parent was killed would write into the folders of the next run.
    """
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()

    torch.set_num_threads(threads)
    # DuckDB takes a main module without a file for a notebook, and draws progress bars there.
    sys.modules["__main__"].__file__ = __file__


# Figures 6 and 7: how often the sources are right, and where the temperature goes.


WINDOW = 60
"""Points of a drawn curve: means over as many equal windows, or the noise hides it."""


def above(cell: Cell, threshold: float) -> Cell:
    """Return the cell mined with another threshold of theta for P1 and P2; its test sets stay."""
    settings = {f"engine.{part}.relevance": threshold for part in ("reformulation", "feed")}
    return replace(cell, run=with_settings(cell.run, settings))


def make_precision(cell: Cell, out: Path, generated: Path | None) -> Path:
    """Return the folder with the precision of a world's sources by truth; measure it first if need be."""
    wide = replace(above(cell, 0.0), point={}, validated=False)  # what theta would reject is there, scored
    folder = out / FIGURES / mined_name(wide)
    if not is_done(folder):
        samples = make_samples(wide, out, generated)
        world = make_world(cell.world, out)
        relevance, _ = theta(world.logs, cell.run)
        found = source_precision(
            samples,
            world.truth,
            [cell.run.engine.feed.relevance],
            catalogue=BM25Retriever(*load_items(samples)),
            theta=relevance,
        )
        rows = [{**asdict(one), "share": one.share, "for_query": one.share_for_query} for one in found]
        with publish(folder, COMMAND) as staging:
            (staging / "precision.json").write_text(json.dumps(rows, indent=2) + "\n")
            write_manifest(staging, COMMAND, config=cell.run.dump(), seconds={})
    return folder


def precision_section(folders: Sequence[Path]) -> Section:
    """Return Figure 6: the precision of each source before and after theta, the mean over worlds.

    `folders` are what `make_precision` wrote, one for each seed.
    """
    by_row: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for folder in folders:
        for row in json.loads((folder / "precision.json").read_text()):
            by_row.setdefault((row["source"], row["alpha"]), []).append(row)
    table, bars = [], []
    for (source, alpha), rows in by_row.items():
        shares = [one["share"] for one in rows]
        # What was measured before there were figures by query has none.
        told = [", ".join(percent(one.get(name)) for one in rows) for name in ("share", "for_query")]
        which = "all found" if alpha is None else f"theta above {alpha:g}"
        table.append([source, which, f"{mean(one['pairs'] for one in rows):,.0f}", *told])
        if known := [share for share in shares if share is not None]:
            name = f"{source}, {'all' if alpha is None else 'by theta'}"
            bars.append(Bar(name, mean(known), tone=1 if alpha is None else 2))
    published = ", ".join(f"{100 * share:.1f} % {name}" for name, share in FIG6.items())
    return Section(
        "Figure 6: how often the sources are right",
        f"The paper judged 1,000 generated documents: {published}. Here the truth of the simulation judges "
        "all pairs: right = grade 2 or 3 for a need behind the search; right for the query = for a need of "
        "any of its searches, all that theta or an editor could know; a generated document counts as the "
        "real item nearest to it (BM25): its figure says where it points, not whether its facts are true.",
        [
            Table(
                "Precision by truth",
                ["source", "filter", "pairs, mean", "right, %, by seed", "right for the query, %, by seed"],
                table,
            )
        ],
        [Figure("Share of pairs that are right, mean over worlds", bars)],
    )


def temperature_section(cells: Mapping[str, Sequence[Measured]]) -> Section:
    """Return Figure 7: the learnt temperature over the steps, by the name of the line."""
    from crops.training import read_log, settles  # torch takes seconds to import: not for --help

    rows, lines = [], []
    for tone, (name, own) in enumerate(cells.items(), 1):
        logs = [read_log(cell.folder) for cell in own]
        for cell, log in zip(own, logs, strict=True):
            value, step = settles(log)
            settled = "still moves" if step is None else f"step {step:,}"
            rows.append([f"{name}, seed {cell.seed}", f"{log.temperature[0]:.4f}", f"{value:.4f}", settled])
        steps = np.array_split(logs[0].step, min(WINDOW, len(logs[0].step)))
        tau = np.array_split(np.mean([log.temperature for log in logs], axis=0), len(steps))
        x, y = [float(part.mean()) for part in steps], [float(part.mean()) for part in tau]
        lines.append(Line(name, x, y, tone))
    head = ["training", "start", "mean of the last tenth", "within 1 % of that from"]
    return Section(
        "Figure 7: the temperature",
        f"In the paper it goes from {FIG7[0]} to about {FIG7[1]} and stays there.",
        [Table("Where the temperature goes", head, rows)],
        [Figure("Temperature, mean over worlds", lines, "step")],
    )


# `--tune`: each method's settings from its own stated grid, on held-out queries of the training day.


def tune(
    cells: Mapping[str, Sequence[Cell]], out: Path, generated: Mapping[str, Path], folds: int
) -> dict[str, dict[str, Any]]:
    """Return the best point of each method's grid; what an earlier run tried is read.

    The best one has the highest mean score over all folds of all worlds, the first one of equals.

    Args:
        cells: a cell of each method in each world; their test days are not read.
        out: an opened folder of a reproduction; each method's grid and scores stay in it as JSON.
        folds: how many folds of a world's queries are held out in turn (`training.methods.tune_method`).

    Raises:
        CropsError: a world cannot be made, or has no held-out query.
    """
    points = {}
    for method, own in cells.items():
        tried = [_tried(cell, method, out, generated, fold) for fold in range(folds) for cell in own]
        scores = np.mean([[one["metrics"]["score"] for one in grid] for grid in tried], axis=0)
        points[method] = dict(tried[0][int(np.argmax(scores))]["point"])
        console.print(f"best of {method}: {points[method]} ({max(scores):.4f}; worst {min(scores):.4f})")
    return points


def _tried(
    cell: Cell, method: str, out: Path, generated: Mapping[str, Path], fold: int
) -> list[dict[str, Any]]:
    """Return the points of a method's grid with their scores on a fold of a world."""
    from crops.training.methods import tune_method  # torch takes seconds to import: not for --help

    samples = make_samples(cell, out, generated.get(cell.generated))
    config, encoder = cell.run.training, cell.run.training.encoder.replace("/", "-")
    training = config.model_dump(mode="json")
    folder = out / TUNED / named(encoder, mined=samples.name, training=training, fold=fold)
    try:
        found: dict[str, Any] = json.loads((folder / f"{method}.json").read_text())
    except (OSError, ValueError):  # there is none, or a kill tore it off
        console.print(f"tune {method}: world of seed {cell.run.seed}, fold {fold}")
        found = tune_method(
            method,
            samples,
            folder,
            config,
            seed=cell.run.seed,
            cache=cache_folder(),
            fold=fold,
            fields=cell.run.document.fields,
        )
        shutil.rmtree(folder / "models", ignore_errors=True)
    points: list[dict[str, Any]] = found["points"]
    return points
