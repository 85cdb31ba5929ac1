"""Finished cells as figures: one value per query, brought together over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.errors import CropsError
from crops.evaluation import Difference, Interval
from crops.evaluation.significance import Resampled, nested_bootstrap
from crops.reproduce.cells import read_cell

RESAMPLES = 4000
"""Enough that the smallest p-value, 2 / 4001, stays below 0.05 when corrected for a hundred comparisons."""


@dataclass(frozen=True)
class Measured:
    """A finished cell."""

    folder: Path
    facts: dict[str, Any]

    @property
    def method(self) -> str:
        """Return the method."""
        return str(self.facts["method"])

    @property
    def seed(self) -> int:
        """Return the seed of its world."""
        return int(self.facts["seed"])

    @cached_property
    def values(self) -> pa.Table:
        """Return the values per query (`crops.evaluation.evaluate.VALUES`)."""
        return pq.read_table(self.folder / "values.parquet")

    @cached_property
    def queries(self) -> pa.Table:
        """Return query_id, frequency, senses, seen."""
        return pq.read_table(self.folder / "queries.parquet")

    def of(self, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the queries that have a value of the metric, ascending, and the values."""
        rows = self.values.filter((pc.field("metric") == metric) & pc.field("value").is_valid())
        return rows["query_id"].to_numpy(), rows["value"].to_numpy()


def read_measured(folder: Path) -> Measured:
    """Return a finished cell.

    Raises:
        CropsError: its files are damaged.
    """
    try:
        return Measured(folder, read_cell(folder))
    except (OSError, ValueError) as error:
        raise CropsError(f"{folder} is damaged: {error}; remove it, and it is made again") from error


@dataclass(frozen=True)
class Group:
    """The cells of a table in one world: methods against seeds, all there."""

    methods: tuple[str, ...]
    cells: Mapping[tuple[str, int], Measured]
    """By method and seed."""
    seeds: tuple[int, ...]
    known: dict[tuple[str, str], Resampled | None] = field(default_factory=dict, repr=False)
    """What was resampled already."""

    def folders(self, *methods: str) -> list[str]:
        """Return the names of the cells of the methods: what a verdict rests on."""
        return [self.cells[method, seed].folder.name for method in methods for seed in self.seeds]

    def facts(self, method: str) -> list[dict[str, Any]]:
        """Return the facts of a method's cells, seed by seed."""
        return [self.cells[method, seed].facts for seed in self.seeds]

    def resampled(self, metric: str, part: Mapping[str, str] | None = None) -> Resampled | None:
        """Return the resampled means of all methods over the queries that have a value of each.

        Args:
            metric: name.
            part: only queries with these values of a column of `Measured.queries`, as text.

        Returns:
            None where a world has no such query.
        """
        key = (metric, str(part))
        if key not in self.known:
            worlds = [self._matrix(metric, seed, part or {}) for seed in self.seeds] if self.methods else []
            empty = not worlds or any(not len(matrix) for matrix in worlds)
            self.known[key] = None if empty else nested_bootstrap(worlds, RESAMPLES, seed=0)
        return self.known[key]

    def weights(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """Return weights by method as a row for `Resampled`."""
        return np.array([weights.get(method, 0.0) for method in self.methods])

    def _matrix(self, metric: str, seed: int, part: Mapping[str, str]) -> NDArray[np.float64]:
        columns = [self.cells[method, seed].of(metric) for method in self.methods]
        common = columns[0][0]
        for ids, _ in columns[1:]:
            common = np.intersect1d(common, ids, assume_unique=True)
        if part:
            common = np.intersect1d(common, _part(self.cells[self.methods[0], seed].queries, part))
        return np.column_stack([values[np.searchsorted(ids, common)] for ids, values in columns])


def group(cells: Sequence[Measured], methods: Sequence[str], seeds: Sequence[int]) -> Group:
    """Return the cells of some methods; a method without a cell for each seed is left out."""
    found = {(cell.method, cell.seed): cell for cell in cells}
    whole = tuple(method for method in methods if all((method, seed) in found for seed in seeds))
    return Group(whole, {key: found[key] for key in found if key[0] in whole}, tuple(seeds))


def means(resampled: Resampled, group: Group) -> dict[str, Interval]:
    """Return each method's mean."""
    return {method: resampled.interval(group.weights({method: 1.0})) for method in group.methods}


def differences(resampled: Resampled, group: Group, reference: str) -> dict[str, Difference]:
    """Return each method's paired difference to the reference."""
    return {
        method: resampled.contrast(group.weights({method: 1.0, reference: -1.0}))
        for method in group.methods
        if method != reference
    }


def _part(queries: pa.Table, part: Mapping[str, str]) -> NDArray[np.int64]:
    keep = np.ones(len(queries), dtype=np.bool_)
    for column, wanted in part.items():
        keep &= np.array([str(value) == wanted for value in queries[column].to_pylist()])
    return np.asarray(queries["query_id"].to_numpy()[keep])
