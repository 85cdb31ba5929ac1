"""`crops judge`: are the mined positives relevant? Asked of people, of an LLM, and of a simulator's truth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from crops.cli.generate import ENDPOINT, RetryOption, budget_of, open_endpoint
from crops.cli.options import DEFAULTS, Options, command
from crops.config import RunConfig
from crops.engine.mined import read_mined
from crops.errors import CropsError
from crops.evaluation import MIN_QUERIES
from crops.evaluation.raters import (
    GRADE_NAMES,
    SOURCES,
    Agreement,
    Ratings,
    agreements,
    common_counts,
    fleiss_kappa,
    middle_grades,
    read_key,
    read_rating_sheet,
    read_ratings,
    write_grades,
    write_rating_sheet,
)
from crops.evaluation.source_precision import source_precision
from crops.labels import Source
from crops.llm import Exemplar, JudgePair, judge_pairs, load_rubric
from crops.outputs import cache_folder, console, publish, write_manifest
from crops.relevance import pair_scorer
from crops.report import JudgedSource, JudgeReport, RaterPair, write_report
from crops.retrieval import BM25Retriever, load_items

COMMAND = "judge"
ALPHAS = (0.5, DEFAULTS.engine.feed.relevance, 0.7)


@command
def judge_sheet(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`.")],
    out: Annotated[Path, typer.Argument(help="CSV for raters; OUT.key.csv is what they must not know.")],
    each: Annotated[int, typer.Option(help="Pairs of each source.", min=1)] = 100,
    *,
    run: Annotated[RunConfig, Options(seed="seed")],
) -> int:
    """Draw positives into a blind rating sheet: give every rater a copy, and fill the column `grade`.

    Only queries of at least engine.k users are drawn, as set in --config; else of the mining.
    """
    k = run.engine.k if "k" in run.engine.model_fields_set else read_mined(samples).config.k
    pairs = write_rating_sheet(samples, out, each=each, k=k, seed=run.seed)
    console.print(f"{pairs} pairs in {out}; grades: {', '.join(reversed(GRADE_NAMES))}")
    return pairs


@command
def judge_llm(
    sheet: Annotated[Path, typer.Argument(help="A rating sheet, filled or not: its grades are not read.")],
    out: Annotated[Path, typer.Argument(help="CSV with the grades of the LLM.")],
    rubric: Annotated[str, typer.Option(help="Rubric: judge-en, or the path of an own one.")] = "judge-en",
    retry_refused: RetryOption = False,
    *,
    run: Annotated[RunConfig, Options(**ENDPOINT)],
) -> dict[str, int]:
    """Let an LLM grade a rating sheet; OUT.jsonl keeps its answers, a second run asks for the rest only."""
    if out.resolve() == sheet.resolve():
        raise CropsError(f"{out} is the sheet itself; name another file for the LLM's grades")
    pairs = [
        JudgePair(
            row.pair,
            row.query,
            row.users,
            Exemplar(0, {"ocr_cover": row.title, "photo_caption": row.description or row.keywords}),
        )
        for row in read_rating_sheet(sheet)
    ]
    with open_endpoint(run.llm) as endpoint:
        grades, counts = judge_pairs(
            pairs,
            load_rubric(rubric),
            endpoint,
            out.with_suffix(".jsonl"),
            min_users=run.engine.knowledge.min_users,
            budget=budget_of(run.llm),
            retry_refused=retry_refused,
        )
    write_grades(sheet, out, grades)
    console.print(", ".join(f"{name} {count:,}" for name, count in counts.items()))
    return counts


@command
def judge_report(
    sheets: Annotated[list[Path], typer.Argument(help="Filled rating sheets, one per person.")],
    key: Annotated[Path, typer.Option(help="The key of the sheet (SHEET.key.csv).")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and judge.json.")],
    llm: Annotated[Path | None, typer.Option(help="The sheet that `crops judge llm` wrote.")] = None,
) -> dict[str, Any]:
    """Report grades by source, and how far raters agree with each other and with the LLM."""
    raters = {sheet.stem: read_ratings(sheet) for sheet in sheets}
    if len(raters) < len(sheets):
        raise CropsError("two sheets have the same file name, which names the rater; rename one")
    sources, by_llm = read_key(key), read_ratings(llm) if llm else {}
    middle = middle_grades(list(raters.values()))
    strangers = sorted((middle.keys() | by_llm.keys()) - sources.keys())
    if strangers:
        raise CropsError(f"{key}: knows no pair {strangers[0]}; name the key of these sheets")
    people = _by_source(middle, sources)
    report = JudgeReport(
        title="Are the positives relevant?",
        headline=_headline(people or _by_source(by_llm, sources)),
        facts=[
            ("raters", ", ".join(raters)),
            ("pairs", f"{len(middle):,}"),
            ("LLM", llm.stem if llm else "none"),
            ("Fleiss' kappa of all raters", _fleiss(raters)),
            (
                "The paper, P3 (Qwen2.5-14B, 1,000 generations)",
                "81.3 % very relevant, 14.5 % relevant, 4.2 % irrelevant",
            ),
        ],
        people=people,
        llm=_by_source(by_llm, sources),
        agreement=_agreement(raters, middle, by_llm),
    )
    with publish(out, COMMAND) as folder:
        write_report(report, folder / "report.html")
        (folder / "judge.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
        write_manifest(folder, COMMAND, config={}, seconds={}, sheets=[str(sheet) for sheet in sheets])
    console.print(f"open [bold]{out / 'report.html'}[/bold]")
    return asdict(report)


def _by_source(grades: Ratings, sources: dict[str, Source]) -> list[JudgedSource]:
    rows = []
    for name, source in SOURCES.items():
        counts = Counter(grade for pair, grade in grades.items() if sources[pair] & source)
        if total := sum(counts.values()):
            low, high = _interval(counts[1] + counts[2], total)
            rows.append(JudgedSource(name, (counts[0], counts[1], counts[2]), low, high))
    return rows


def _interval(useful: int, total: int) -> tuple[float | None, float | None]:
    """Return the 95 % interval of a share (Wilson); a handful of pairs carries none."""
    if total < MIN_QUERIES:
        return None, None
    from scipy.stats import binomtest  # slow to import: not for --help

    interval = binomtest(useful, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _headline(rows: Sequence[JudgedSource]) -> list[str]:
    return [
        f"{row.name}: {100 * row.useful:.1f} % of {row.pairs} pairs are relevant or better {_ends(row)}."
        for row in rows
    ]


def _ends(row: JudgedSource) -> str:
    if row.low is None or row.high is None:
        return f"(no interval below {MIN_QUERIES} pairs)"
    return f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"


def _agreement(raters: dict[str, Ratings], middle: Ratings, by_llm: Ratings) -> list[RaterPair]:
    found: list[Agreement] = agreements(raters)
    if by_llm:
        found += agreements({"people": middle, "the LLM": by_llm})
    return [
        RaterPair(f"{one.first}, {one.second}", one.pairs, one.same, one.kappa, one.weighted_kappa)
        for one in found
    ]


def _fleiss(raters: dict[str, Ratings]) -> str:
    if len(raters) < 2:
        return "one rater"
    counts = common_counts(raters, len(GRADE_NAMES))
    if not len(counts):
        return "no pair that all graded"
    kappa = fleiss_kappa(counts)
    return "all grades equal" if kappa is None else f"{kappa:.2f} over {len(counts)} pairs"


@command
def judge_truth(
    samples: Annotated[Path, typer.Argument(help="A mining with both relevance thresholds at 0.")],
    truth: Annotated[Path, typer.Argument(help="The folder `truth` of `crops simulate`.")],
    *,
    run: Annotated[RunConfig, Options(relevance="relevance.model")],
) -> list[dict[str, Any]]:
    """Print the precision of each source by a simulator's truth, before theta and after.

    Mine with engine.reformulation.relevance = 0 and engine.feed.relevance = 0, so that what theta rejects is
    still there with its score. A generated document counts as the real item nearest to it (BM25).
    """
    rows = source_precision(
        samples,
        truth,
        ALPHAS,
        catalogue=BM25Retriever(*load_items(samples)),
        theta=pair_scorer("relevance", run.relevance, cache_folder() / "relevance"),
    )
    table = Table("source", "theta above", "pairs", "right, %", title="Precision by truth")
    for row in rows:
        share = "–" if row.share is None else f"{100 * row.share:.1f}"
        above = "before" if row.alpha is None else f"{row.alpha:.1f}"
        table.add_row(row.source, above, f"{row.pairs:,}", share)
    console.print(table)
    return [{**asdict(row), "share": row.share} for row in rows]
