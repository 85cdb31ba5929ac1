"""`crops generate` and `crops judge`: documents by an LLM (P3); grades by people, an LLM and a simulator."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import rich.table
import typer

from crops.cli.options import DEFAULTS, Options, command
from crops.config import LLMConfig, RunConfig
from crops.engine.mined import read_mined
from crops.errors import CropsError
from crops.evaluation import MIN_QUERIES
from crops.evaluation.raters import (
    GRADE_NAMES,
    SOURCES,
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
from crops.labels import POSITIVE_ORIGINS, Source
from crops.llm import (
    Budget,
    Endpoint,
    Exemplar,
    JudgePair,
    embedded_server,
    generate_documents,
    judge_pairs,
    load_rubric,
    smoke_model,
)
from crops.llm.batch import quarantine_path
from crops.llm.endpoint import API_KEY, NO_KEY, SMOKE_MODEL, SMOKE_SHA256
from crops.outputs import cache_folder, console, ended, publish, write_manifest
from crops.relevance import pair_scorer
from crops.report import Bar, Figure, Page, Section, Table, write_page
from crops.report.page import percent
from crops.retrieval import BM25Retriever, load_items, load_queries

_ASKED = "base_url model gguf sha256 token_budget cost_budget concurrency allow_remote"
ENDPOINT = {name: f"llm.{name}" for name in _ASKED.split()}
"""Options of the commands that ask an LLM."""
RetryOption = Annotated[
    bool, typer.Option("--retry-refused", help="Ask again for what was answered unusably before.")
]


@command
def generate(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`.")],
    out: Annotated[Path, typer.Argument(help="JSON lines of documents; resumes if interrupted.")],
    limit: Annotated[int | None, typer.Option(help="Most queries.", min=1, show_default="all")] = None,
    missing_only: Annotated[
        bool,
        typer.Option("--missing-only", help="Only for queries without a document in OUT, of any exemplar."),
    ] = False,
    retry_refused: RetryOption = False,
    *,
    run: Annotated[
        RunConfig,
        Options(
            **ENDPOINT,
            samples_per_query="llm.samples_per_query",
            prompt="llm.prompt",
            priority="llm.priority",
            seed="seed",
        ),
    ],
) -> dict[str, int]:
    """Write documents for training queries with an LLM: mine again with --generated OUT to use them.

    Only queries of at least engine.knowledge.min_users users are sent, with one logged positive as example,
    and nothing of a user. Without --base-url or --gguf a tiny smoke model tries the plumbing out. A run stops
    with an error when the endpoint does not answer or its answers are unusable; what was answered is kept.
    """
    settings, knowledge = run.llm, run.engine.knowledge
    if settings.samples_per_query > knowledge.max_per_query:
        raise CropsError(
            f"llm.samples_per_query = {settings.samples_per_query}, but engine.knowledge.max_per_query = "
            f"{knowledge.max_per_query} would be mined; lower the one or raise the other"
        )
    budget = budget_of(settings)
    with open_endpoint(settings) as endpoint:
        counts = generate_documents(
            samples,
            out,
            endpoint,
            limit=limit,
            min_users=knowledge.min_users,
            samples_per_query=settings.samples_per_query,
            seed=run.seed,
            prompt=fitting_prompt(samples, settings),
            priority=settings.priority,
            missing_only=missing_only,
            budget=budget,
            retry_refused=retry_refused,
        )
    console.print(", ".join(f"{name} {count:,}" for name, count in counts.items()))
    if any(name.startswith("refused") for name in counts):
        console.print(f"refused requests and answers, with reasons: {quarantine_path(out)}")
    ended(f"documents in [bold]{out}[/bold]", f"crops mine LOGS OUT --generated {out}")
    return counts


def fitting_prompt(samples: Path, settings: LLMConfig) -> str:
    """Return the named template; `zh` where none is named and most queries are Chinese (Han, no kana)."""
    if "prompt" in settings.model_fields_set:
        return settings.prompt
    queries = load_queries(samples)[1]
    han, kana = re.compile("[\u4e00-\u9fff]"), re.compile("[\u3040-\u30ff]")
    chinese = sum(bool(han.search(query)) and not kana.search(query) for query in queries)
    if 2 * chinese <= len(queries):
        return settings.prompt
    console.print("the prompt is zh: most queries are Chinese, and llm.prompt names none")
    return "zh"


# The LLM that the settings name: an OpenAI-compatible endpoint, or a model file served in this process.


def budget_of(config: LLMConfig) -> Budget:
    """Return what a run may use."""
    return Budget(
        config.token_budget, config.cost_budget, config.price_in, config.price_out, config.max_unusable
    )


@contextlib.contextmanager
def open_endpoint(config: LLMConfig) -> Iterator[Endpoint]:
    """Yield the endpoint that the settings name; an embedded server stops with the block."""
    if config.base_url and config.gguf:
        raise CropsError("llm.base_url and llm.gguf are both set; name one of them")
    if config.base_url:
        if not config.model:
            raise CropsError(f"{config.base_url}: name the model there with llm.model (--model)")
        yield _endpoint(config, config.base_url, config.model, config.sha256)
        return
    if config.gguf:
        file = Path(config.gguf)
        if not config.sha256:
            raise CropsError(f"{file}: pin the model with llm.sha256 (--sha256)")
        sha256, name = config.sha256, config.model or file.stem
    else:
        file, sha256, name = smoke_model(), SMOKE_SHA256, SMOKE_MODEL
        console.print(
            f"[yellow]no model named: {SMOKE_MODEL} tries the plumbing out. "
            "Its texts are worthless: never train on them and never publish a figure made with them.[/yellow]"
        )
    with embedded_server(file, sha256, name=name, slots=config.concurrency) as base_url:
        yield _endpoint(config, base_url, name, sha256)


def _endpoint(config: LLMConfig, base_url: str, model: str, sha256: str | None) -> Endpoint:
    return Endpoint(
        base_url,
        model,
        sha256,
        api_key=os.environ.get(API_KEY) or NO_KEY,
        concurrency=config.concurrency,
        timeout_s=config.timeout_s,
        retries=config.retries,
        max_tokens=config.max_tokens,
        allow_remote=config.allow_remote,
    )


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
    found = {
        "title": "Are the positives relevant?",
        "headline": _headline(people or _by_source(by_llm, sources)),
        "facts": [
            ("raters", ", ".join(raters)),
            ("pairs", f"{len(middle):,}"),
            ("LLM", llm.stem if llm else "none"),
            ("Fleiss' kappa of all raters", _fleiss(raters)),
            (
                "The paper, P3 (Qwen2.5-14B, 1,000 generations)",
                "81.3 % very relevant, 14.5 % relevant, 4.2 % irrelevant",
            ),
        ],
        "people": people,
        "llm": _by_source(by_llm, sources),
        "agreement": _agreement(raters, middle, by_llm),
    }
    with publish(out, COMMAND) as folder:
        write_page(judge_page(found), folder / "report.html")
        (folder / "judge.json").write_text(json.dumps(found, indent=2) + "\n")
        write_manifest(folder, COMMAND, config={}, seconds={}, sheets=[str(sheet) for sheet in sheets])
    ended(f"open [bold]{out / 'report.html'}[/bold]")
    return found


def judge_page(found: dict[str, Any]) -> Page:
    """Return the page of what `judge.json` holds."""
    sections, figures, agreement = [], [], found["agreement"]
    tones = {row.name: row.tone for row in POSITIVE_ORIGINS}
    leads = {
        "people": "The middle grade where several people graded a pair.",
        "the LLM": "Worth as much as its agreement with people, below.",
    }
    for (raters, lead), rows in zip(leads.items(), (found["people"], found["llm"]), strict=True):
        cells, bars = [], []
        for row in rows:
            pairs, name = sum(row["counts"]), row["name"]
            shares = (percent(count / pairs) for count in reversed(row["counts"]))
            cells.append([name, f"{pairs:,}", *shares])
            bars.append(Bar(name, _useful(row), row["low"], row["high"], tones[name]))
        head = ["Source", "Pairs", "Very relevant\n%", "Relevant\n%", "Irrelevant\n%"]
        if rows:
            table = Table(f"Grades by {raters}", head, cells, headed=False)
            sections.append(Section(f"By {raters}", lead, [table]))
            figures.append(Figure(f"Relevant or better, by {raters}", bars, upper=1.0))
    sections.append(Section("Drawn", figures=figures))
    lead = "" if agreement else "One rater alone: there is nobody to agree with."
    rows = []
    for row in agreement:
        kappas = ("–" if row[name] is None else f"{row[name]:.2f}" for name in ("kappa", "weighted_kappa"))
        rows.append([row["names"], f"{row['pairs']:,}", percent(row["same"]), *kappas])
    table = Table(
        "Agreement of raters",
        ["Raters", "Pairs", "Same grade\n%", "Kappa", "Weighted kappa"],
        rows,
        below="Kappa: agreement beyond chance, 1 is perfect and 0 is chance (Cohen; weighted: quadratic "
        "weights). – where all grades are equal.",
        headed=False,
    )
    sections.append(Section("Agreement", lead, [table] if agreement else []))
    return Page(found["title"], found["headline"], sections, found["facts"])


def _useful(row: dict[str, Any]) -> float:
    """Return the share that is relevant or better."""
    return float(sum(row["counts"][1:]) / sum(row["counts"]))


def _by_source(grades: Ratings, sources: dict[str, Source]) -> list[dict[str, Any]]:
    """Return the counts of the three grades, and the interval of the share of the upper two."""
    from scipy.stats import binomtest  # slow to import: not for --help

    rows = []
    for name, source in SOURCES.items():
        found = Counter(grade for pair, grade in grades.items() if sources[pair] & source)
        if not (total := sum(found.values())):
            continue
        low = high = None
        if total >= MIN_QUERIES:  # a handful of pairs carries no interval
            low, high = map(float, binomtest(found[1] + found[2], total).proportion_ci(method="wilson"))
        rows.append(
            {"name": name, "counts": tuple(found[grade] for grade in range(3)), "low": low, "high": high}
        )
    return rows


def _headline(rows: Sequence[dict[str, Any]]) -> list[str]:
    said = []
    for row in rows:
        ends = f"(no interval below {MIN_QUERIES} pairs)"
        if row["low"] is not None:
            ends = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        share = f"{100 * _useful(row):.1f} % of {sum(row['counts'])} pairs"
        said.append(f"{row['name']}: {share} are relevant or better {ends}.")
    return said


def _agreement(raters: dict[str, Ratings], middle: Ratings, by_llm: Ratings) -> list[dict[str, Any]]:
    found = agreements(raters)
    if by_llm:
        found += agreements({"people": middle, "the LLM": by_llm})
    rows = [asdict(one) for one in found]
    return [{"names": f"{row.pop('first')}, {row.pop('second')}", **row} for row in rows]


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
    heads = ("source", "theta above", "pairs", "right for the searcher, %", "for the query, %")
    table = rich.table.Table(*heads, title="Precision by truth")
    for row in rows:
        above = "before" if row.alpha is None else f"{row.alpha:.1f}"
        table.add_row(row.source, above, f"{row.pairs:,}", percent(row.share), percent(row.share_for_query))
    console.print(table)
    return [{**asdict(row), "share": row.share, "share_for_query": row.share_for_query} for row in rows]
