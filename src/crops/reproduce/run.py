"""Makes many cells: first what they share, then each of them, in as many processes as are wanted."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crops.errors import CropsError
from crops.outputs import console, progress
from crops.reproduce.cells import Cell, mined_name, sets_name, world_name
from crops.reproduce.figures import make_precision
from crops.reproduce.folder import CELLS, is_done, naming_full_disk
from crops.reproduce.measure import make_cell, make_samples, make_testsets, make_world
from crops.reproduce.results import Measured, read_measured
from crops.reproduce.stages import Stages
from crops.reproduce.worlds import World

Make = Callable[[], Path]


@dataclass(frozen=True)
class Outcome:
    """What became of the cells."""

    measured: list[Measured]
    failed: dict[str, str]
    """Why a cell could not be made, by its name."""


def make_cells(
    cells: Sequence[Cell], out: Path, stages: Stages, generated: Mapping[str, Path], jobs: int
) -> Outcome:
    """Make all cells that are not there yet.

    A cell that fails with an error of its own (a loss that is not finite, say) is reported and the others go
    on. What a killed run has finished is kept: the next one goes on from it.

    Args:
        cells: the cells, repeated at will.
        out: an opened folder of a reproduction.
        stages: what they are made with.
        generated: files of documents that an LLM wrote, by their hash.
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
            for what, shared in _shared(missing, out, stages, generated).items():
                _run(what, shared, executor, None)
            own = {
                cell.name(): partial(make_cell, cell, out, stages, generated.get(cell.generated))
                for cell in missing
            }
            _run("cells", own, executor, failed)
    done = [out / CELLS / cell.name() for cell in distinct if is_done(out / CELLS / cell.name())]
    return Outcome([read_measured(folder) for folder in done], failed)


def make_precisions(
    cells: Mapping[World, Cell], out: Path, stages: Stages, generated: Mapping[str, Path], jobs: int
) -> dict[World, Path]:
    """Return the folders of `make_precision` of each world; measure what is not there yet.

    Raises:
        CropsError: as `make_cells`.
    """
    tasks = {
        f"precision in {world.label}": partial(
            make_precision, cell, out, stages, generated.get(cell.generated)
        )
        for world, cell in cells.items()
    }
    with naming_full_disk(out), _workers(jobs) as executor:
        _run("precisions", tasks, executor, None)
    return {world: tasks[f"precision in {world.label}"]() for world in cells}


def _shared(
    cells: Sequence[Cell], out: Path, stages: Stages, generated: Mapping[str, Path]
) -> dict[str, dict[str, Make]]:
    """Return what has to be made before the cells, in its order: each once, so that no two processes meet."""
    worlds: dict[str, Make] = {}
    mined: dict[str, Make] = {}
    tests: dict[str, Make] = {}
    for cell in cells:
        documents = generated.get(cell.generated)
        worlds.setdefault(world_name(cell.world), partial(make_world, cell.world, out, stages))
        mined.setdefault(mined_name(cell), partial(make_samples, cell, out, stages, documents))
        tests.setdefault(sets_name(cell), partial(make_testsets, cell, out, stages, documents))
    return {"worlds": worlds, "minings": mined, "test sets": tests}


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
        for name, make in tasks.items():
            yield name, partial(quietly, make)
        return
    futures: dict[Future[Path], str] = {executor.submit(quietly, make): name for name, make in tasks.items()}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result
    finally:
        for future in futures:
            future.cancel()


def quietly(make: Make) -> Path:
    """Do a task without the lines that its parts print."""
    before, console.quiet = console.quiet, True
    try:
        return make()
    finally:
        console.quiet = before


def _told(name: str, folder: Path) -> str:
    if folder.parent.name != CELLS:
        return name
    facts = read_measured(folder).facts
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
