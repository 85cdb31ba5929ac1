"""What changed for the training queries between two indexes, by the truth where a simulation knows it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from crops.database import open_database, path_literal
from crops.engine.evidence import TrainingEvidence, TrainingQuery
from crops.engine.mined import read_mined
from crops.errors import CropsError
from crops.report.side_by_side import RELEVANT_GRADE
from crops.serving.searcher import Job, Searcher
from crops.text import normalise_query, query_id

DEPTH = 10
"""Results that are compared."""
_QUERIES = 500
"""Training queries that are compared, the most searched ones."""
_AT_ONCE = 100
_SEEN = 0.05
"""A smaller gain is 0.0 in the one decimal that is shown."""


class Truth:
    """What only a simulation knows: what items are about, and how well they answer."""

    def __init__(self, truth: Path, samples: Path | None = None, logs: Path | None = None) -> None:
        """Read the truth folder of `crops simulate`.

        Args:
            truth: the folder.
            samples: output of `crops mine`: what its searchers needed; grades are known with it only.
            logs: the logs of that mining, where they are not where it found them.

        Raises:
            CropsError: there is no truth, or as `crops.engine.mined.read_mined`.
        """
        for name in ("items", "needs"):
            if not (truth / f"{name}.parquet").is_file():
                raise CropsError(f"{truth} is no truth folder of `crops simulate` (no {name}.parquet in it)")
        needs = pq.read_table(truth / "needs.parquet", columns=["need_id", "sense"]).to_pydict()
        sense = dict(zip(needs["need_id"], needs["sense"], strict=True))
        items = pq.read_table(truth / "items.parquet", columns=["item_id", "need_id"]).to_pydict()
        self._sense = {
            item: sense[need] for item, need in zip(items["item_id"], items["need_id"], strict=True)
        }
        self._needs: Mapping[int, Mapping[int, int]] = {}
        if samples is not None and (truth / "grades.parquet").is_file():
            self._needs = _needs_by_query(truth, samples, logs)
            grades = pq.read_table(truth / "grades.parquet").sort_by("need_id")
            self._graded = {name: grades[name].to_numpy() for name in ("need_id", "item_id", "grade")}

    def of(self, item_id: int) -> str | None:
        """Return what an item is about."""
        return self._sense.get(item_id)

    def answers(self, query: int, items: Sequence[int]) -> Answers | None:
        """Return how well items answer a query (its id); None where nobody asked it on the days mined."""
        if not (needs := self._needs.get(query)):
            return None
        best, relevant = dict.fromkeys(items, 0), 0.0
        for need, searches in needs.items():
            begin, end = np.searchsorted(self._graded["need_id"], [need, need + 1])
            own = self._graded["item_id"][begin:end].tolist()
            grades = dict(zip(own, self._graded["grade"][begin:end].tolist(), strict=True))
            found = {item: grades.get(item, 0) for item in items}
            best = {item: max(best[item], grade) for item, grade in found.items()}
            relevant += searches * sum(grade >= RELEVANT_GRADE for grade in found.values())
        return Answers(relevant / sum(needs.values()), best)


@dataclass(frozen=True)
class Answers:
    """How well items answer those who asked."""

    relevant: float
    """Items of at least `RELEVANT_GRADE`, mean over the searches."""
    grades: Mapping[int, int]
    """By item, for the need that it fits best."""


def _needs_by_query(truth: Path, samples: Path, logs: Path | None) -> dict[int, Counter[int]]:
    """Return the searches of the days mined by query id and need."""
    found: dict[int, Counter[int]] = defaultdict(Counter)
    searches = path_literal(truth / "searches.parquet")
    with open_database() as db:
        for source, days in read_mined(samples).open_logs(logs):
            logged = source.sql("search_impressions", days)
            rows = db.execute(
                "select query, need_id, count(distinct search_id) "
                f"from ({logged}) join {searches} using (search_id) group by all"
            ).fetchall()
            for query, need, count in rows:
                found[query_id(normalise_query(query))][need] += count
    return found


@dataclass(frozen=True)
class Change:
    """What changed in the first results of a query."""

    query: TrainingQuery
    new: int
    """Results that were not there before."""
    gain: float | None
    """More relevant ones for its mean searcher, by the truth."""


@dataclass(frozen=True)
class Changes:
    """What changed for the training queries that were compared."""

    compared: Sequence[Change]
    """The most searched first; so are equal ones below."""

    @property
    def mean_gain(self) -> float | None:
        """Return the mean over the queries whose gain is known; None where none is."""
        known = [one.gain for one in self.compared if one.gain is not None]
        return sum(known) / len(known) if known else None

    @property
    def gained(self) -> list[Change]:
        """Return the queries that gained, by at least `_SEEN`, the most first."""
        return sorted(
            (one for one in self.compared if (one.gain or 0) >= _SEEN), key=lambda one: -(one.gain or 0)
        )

    @property
    def lost(self) -> list[Change]:
        """Return the queries that lost, by at least `_SEEN`, the most first."""
        return sorted(
            (one for one in self.compared if (one.gain or 0) <= -_SEEN), key=lambda one: one.gain or 0
        )

    @property
    def renewed(self) -> list[Change]:
        """Return the queries with new results, the most first."""
        return sorted((one for one in self.compared if one.new), key=lambda one: -one.new)


def compare_answers(
    before: Searcher, after: Searcher, evidence: TrainingEvidence, truth: Truth | None
) -> Changes:
    """Search for the most frequent training queries in two indexes, and compare what they find."""
    queries = evidence.queries[:_QUERIES]
    jobs = [Job(DEPTH, query.text, texts=False) for query in queries]
    old, new = (
        [
            answer.ids if not isinstance(answer, Exception) else []
            for start in range(0, len(jobs), _AT_ONCE)
            for answer in searcher.answer(jobs[start : start + _AT_ONCE])
        ]
        for searcher in (before, after)
    )
    compared = []
    for query, first, second in zip(queries, old, new, strict=True):
        gain = None
        if truth is not None and (answers := truth.answers(query.query_id, second)):
            known = truth.answers(query.query_id, first)
            gain = answers.relevant - known.relevant if known else None
        compared.append(Change(query, len(set(second) - set(first)), gain))
    return Changes(compared)
