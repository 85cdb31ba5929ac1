"""The counts of a mining in the form that reports show."""

from __future__ import annotations

from typing import Any

from crops.report import Coverage, SourceCounts, SourceRow


def source_counts(mined: dict[str, Any]) -> SourceCounts:
    """Return where the samples come from, by the report of a mining."""
    sources, novelty, coverage = mined["sources"], mined["novelty"], mined["p3_coverage"]
    p1, p2, p3 = sources["p1"], sources["p2"], sources["p3"]
    clicked = sources["search"]["clicked"]
    shown = {name: row["never_shown"] for name, row in novelty.items()}
    p1_filters = (p1["after_similarity"], p1["after_relevance"])
    return SourceCounts(
        rows=[
            SourceRow(
                "clicks",
                "clicked or liked in the search",
                clicked["candidates"],
                clicked["kept"],
                never_shown=shown["p0"],
            ),
            SourceRow(
                "P1",
                "consumed after the query was reworded",
                p1["candidates"],
                p1["kept"],
                *p1_filters,
                shown["p1"],
            ),
            SourceRow(
                "P2",
                "consumed in the feed by its searchers",
                p2["candidates"],
                p2["kept"],
                None,
                p2["after_relevance"],
                shown["p2"],
            ),
            SourceRow("P3", "written by an LLM", p3["candidates"], p3["kept"]),
        ],
        labels={int(label): count for label, count in mined["labels"].items()},
        p3=Coverage(
            queries=coverage["queries"],
            with_generation=coverage["with_generation"],
            samples=sum(mined["labels"].values()),
            generated=coverage["samples"],
        ),
        rescued={int(label): count for label, count in mined["rescued"].items() if label != "pairs"},
    )
