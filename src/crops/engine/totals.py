"""The report of a window from those of its days."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from crops.engine.report import pair_counts, share

_SUMMED = "sources, novelty and rescued are sums over days: a pair found on two days counts twice"
_LARGEST = "users is that of the day with the most: who came on two days is not counted twice"


def add_reports(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sum of mining reports of single days: counts are added, settings kept, shares worked out.

    `users` of the input is the largest of a day (days cannot tell whether they saw the same people), `items`
    that of the last day.

    Args:
        reports: see `crops.engine.report.build_report`; of days with the same settings, in their order.
    """
    total: dict[str, Any] = _add(reports)
    total["days"] = [day for report in reports for day in report["days"]]
    total["input"]["users"] = max(report["input"]["users"] for report in reports)
    total["input"]["items"] = reports[-1]["input"]["items"]
    total["pairs"] = _add_pairs(reports)
    for row in total["novelty"].values():
        row["share"] = share(row["never_shown"], row["positives"])
    notes = dict.fromkeys(note for report in reports for note in report["notes"])
    total["notes"] = [*notes, *((_SUMMED, _LARGEST) if len(reports) > 1 else ())]
    return total


def _add(values: Sequence[Any]) -> Any:  # noqa: ANN401  (any part of a JSON document)
    first = values[0]
    if isinstance(first, dict):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _add([value[name] for value in values if name in value]) for name in names}
    return sum(values) if isinstance(first, int) and not isinstance(first, bool) else first


def _add_pairs(reports: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    counts: Counter[tuple[int, int]] = Counter()
    for report in reports:
        for row in report["pairs"]:
            counts[row["considered"], row["sources"]] += row["pairs"]
    return pair_counts(counts)
