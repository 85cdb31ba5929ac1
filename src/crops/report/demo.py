"""What the demo measured, in the form that the report shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crops.config import EvaluationConfig, RunConfig
from crops.database import Connection, open_database, path_literal
from crops.engine.backend import DuckDBBackend, id_sql
from crops.engine.events import load_events
from crops.engine.evidence import Trail, tell_trails, told_queries_sql
from crops.engine.mined import name_searchers, read_mined
from crops.evaluation import Evaluation, compare
from crops.labels import POSITIVE_ORIGINS, Source
from crops.logs import Judged, open_logs
from crops.logs.tables import add_texts
from crops.outputs import versions
from crops.protocols import Retriever
from crops.report.data import (
    DemoReport,
    Difference,
    Estimate,
    Hit,
    MetricColumn,
    QueryCase,
    ResultRow,
    ResultTable,
    TrainingCurve,
)
from crops.report.pages import source_counts
from crops.text import query_id


@dataclass(frozen=True)
class Arm:
    """A trained arm of the ablation."""

    name: str
    folder: Path
    sources: Source


def demo_report(
    run: RunConfig,
    mined: dict[str, Any],
    arms: Sequence[Arm],
    results: dict[str, Evaluation],
    not_tested: dict[str, str],
    bubble: ResultTable,
    cases: Sequence[QueryCase],
    seconds: dict[str, float],
) -> DemoReport:
    """Return the report of a simulated run.

    Args:
        run: its settings.
        mined: report of the mining.
        arms: the arms, the baseline first and the fullest last.
        results: evaluation by model name; holds the arms' names.
        not_tested: arms that were left out, with the reason.
        bubble: what the logs show of the bubble, day by day.
        cases: queries side by side.
        seconds: wall time by part, with `total`.
    """
    columns = _simulated_columns(run.evaluation)
    coverage = coverage_text(mined)
    table = result_table("What each source adds", columns, results, arms[0].name, run, not_tested, coverage)
    return DemoReport(
        title="Does the filter bubble break?",
        headline=_headline(table, arms, mined),
        facts=[
            *_facts(run, seconds),
            ("platform", f"{run.platform.size}, {run.platform.days} days"),
            (
                "training day",
                f"{mined['input']['searches']:,} searches, {mined['input']['queries']:,} queries",
            ),
            ("relevance (θ)", f"{run.relevance.model}, calibrated on public judgements"),
        ],
        tables=[table, bubble],
        sources=source_counts(mined),
        curves=[_curve(arm) for arm in arms],
        cases=cases,
        notes=[
            *mined["notes"],
            "One world and one seed: intervals cover the choice of queries, not of worlds or seeds.",
            "Grades, topics and true recall come from the simulator's truth, which training never read.",
        ],
    )


def judged_report(
    run: RunConfig, judged: Judged, results: dict[str, Evaluation], seconds: dict[str, float]
) -> DemoReport:
    """Return the report of a judged collection; the binary loss is the reference row."""
    k, m = run.evaluation.recall_k, run.evaluation.ndcg_k
    columns = [
        MetricColumn(
            f"recall@{k}", f"Recall@{k}", f"share of the documents of grade {judged.positive_label}+ found"
        ),
        MetricColumn(
            f"ndcg_exp2@{m}/catalogue", f"NDCG@{m}", "order of the top results against human grades"
        ),
        MetricColumn("ndcg_exp2@10/catalogue", "NDCG@10", "the same, ten results deep"),
        MetricColumn(
            "ndcg_exp2@10/judged", "NDCG@10, judged", "only the query's judged documents are ranked"
        ),
    ]
    table = result_table("Real queries, human grades", columns, results, "infonce_binary", run, {})
    differences = table.rows[-1].differences
    gains = [f"{c.label} {_points(differences[c.key])}" for c in columns if c.key in differences]
    headline = [
        f"{len(judged.queries)} queries, {len(judged.texts):,} documents, {len(judged.judgements):,} human "
        "grades; each query is tested by a model that did not train on it.",
        f"H-InfoNCE against binary InfoNCE: {'; '.join(gains)}.",
    ]
    facts = [*_facts(run, seconds), ("document text", " + ".join(judged.text_columns))]
    notes = [f"rows left out: {judged.rejects}"] if judged.rejects else []
    return DemoReport("Graded labels on a judged collection", headline, facts, [table], notes=notes)


def result_table(
    title: str,
    columns: Sequence[MetricColumn],
    results: Mapping[str, Evaluation],
    reference: str,
    run: RunConfig,
    not_tested: dict[str, str],
    note: str = "",
) -> ResultTable:
    """Return models against metrics, with paired differences to the reference model."""
    rows = []
    for name, one in results.items():
        against = (
            {} if name == reference else compare(one, results[reference], run.evaluation.resamples, run.seed)
        )
        cells = {c.key: e for c in columns if c.key in one.summary and (e := Estimate.of(one.summary[c.key]))}
        differences = {c.key: d for c in columns if c.key in against and (d := Difference.of(against[c.key]))}
        rows.append(ResultRow(name, cells, differences, is_reference=name == reference))
    rows += [ResultRow(name, not_tested=reason) for name, reason in not_tested.items()]
    return ResultTable(
        title, f"Means over queries in %, with 95 % bootstrap intervals. {note}".strip(), columns, rows
    )


def _simulated_columns(config: EvaluationConfig) -> list[MetricColumn]:
    k, m = config.recall_k, config.ndcg_k
    return [
        MetricColumn(
            f"recall@{k}/ct", f"CT recall@{k}", "share of the items clicked on the test day that are found"
        ),
        MetricColumn(
            f"recall@{k}/qr",
            f"QR recall@{k}",
            "share of the items consumed after rewording, kept by θ, that the first wording finds",
        ),
        MetricColumn(
            f"recall@{k}/qr_truth",
            f"QR recall@{k}, truth",
            "the same, kept by truth in place of θ",
            plotted=False,
        ),
        MetricColumn(
            f"ndcg_exp2@{m}/pool",
            f"NDCG@{m}",
            "order of the old system's 50 results against true grades",
            plotted=False,
        ),
        MetricColumn(
            f"true_recall@{k}", f"true recall@{k}", "share of all that answers the searcher's need, found"
        ),
    ]


def _headline(table: ResultTable, arms: Sequence[Arm], mined: dict[str, Any]) -> list[str]:
    rows = {row.name: row for row in table.rows}
    first, last = rows[arms[0].name], rows[arms[-1].name]
    fullest = arms[-1].name.rpartition("= ")[2]
    sentences = []
    for column in (table.columns[-1], table.columns[1], table.columns[0]):
        if column.key in last.differences:
            sentences.append(
                f"{column.label}: {100 * first.cells[column.key].mean:.1f} % with search labels only, "
                f"{100 * last.cells[column.key].mean:.1f} % with {fullest} "
                f"({_points(last.differences[column.key])}): {_verdict(last.differences[column.key])}."
            )
    added = {name: mined["novelty"][name] for name in ("p1", "p2") if mined["novelty"][name]["positives"]}
    if added:
        shares = " and ".join(f"{100 * row['share']:.0f} % of {name.upper()}" for name, row in added.items())
        sentences.append(f"{shares} positives had never been shown for their query.")
    return sentences


def _verdict(difference: Difference) -> str:
    if difference.p is None:
        return "too few queries to tell"
    if not difference.significant:
        return "no significant difference"
    return "a significant gain" if difference.mean > 0 else "a significant loss"


def _points(difference: Difference) -> str:
    interval = f"no interval: n = {difference.n}"
    if difference.low is not None and difference.high is not None:
        interval = f"95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    return f"{100 * difference.mean:+.1f} points, {interval}"


def _facts(run: RunConfig, seconds: dict[str, float]) -> list[tuple[str, str]]:
    found = versions()
    return [
        ("seed", str(run.seed)),
        ("encoder", run.training.encoder),
        ("training", f"{run.training.steps} steps of {run.training.batch_queries} queries"),
        ("minutes", f"{seconds['total'] / 60:.1f}"),
        ("versions", ", ".join(f"{name} {found[name]}" for name in ("crops", "torch", "duckdb"))),
    ]


def coverage_text(mined: dict[str, Any]) -> str:
    """Return how far the generated documents reach: P3 cannot be judged without it."""
    coverage = mined["p3_coverage"]
    return (
        f"P3 covers {coverage['with_generation']:,} of {coverage['queries']:,} training queries "
        f"({100 * (coverage['share_of_queries'] or 0):.1f} %) and is "
        f"{100 * (coverage['share_of_samples'] or 0):.1f} % of the samples."
    )


def _curve(arm: Arm) -> TrainingCurve:
    from crops.training import LOG  # torch takes seconds to import: not for --help

    lines = [json.loads(line) for line in (arm.folder / LOG).read_text().splitlines()]
    return TrainingCurve(
        arm.name,
        [line["step"] for line in lines],
        [line["loss"] for line in lines],
        [line["temperature"] for line in lines],
    )


# ------------------------------------------------------------------------------
# Side by side: what two models answer to a query, and the evidence behind each answer.


SHOWN = 8

"""Results per column."""

LINES = 3

"""Lines of evidence per result."""

SIMULATED_USERS = 5

"""What is told of a simulation stands for this many users: they are nobody."""


@dataclass(frozen=True)
class CaseQuery:
    """A query to show, and why it was chosen."""

    text: str
    note: str
    need_id: int | None
    """The need behind its searches on the test day; None where they had several."""


def choose_cases(
    logs: Path, truth: Path, train_day: str, test_day: str, k: int = SIMULATED_USERS
) -> list[CaseQuery]:
    """Return three queries of the test day, picked by a fixed rule and not by their results.

    The most searched query that stands for several senses; the most searched query that was also searched on
    the training day and names a single need; and the most searched one that was not: of those that at least k
    people searched on the days of the logs, so there may be fewer than three.
    """
    with open_database() as db:
        impressions = _impressions(db, logs)
        db.execute(f"""
            create table events as
            select query, day, search_id, user_id, need_id, head, sense
            from (select distinct query, day, search_id, user_id from ({impressions}))
            join {_file(truth, "searches")} using (search_id) join {_file(truth, "needs")} using (need_id);
            create table test as
            select query, count(*) as n, count(distinct sense) as senses, count(distinct need_id) as needs,
                   mode(need_id order by need_id) as need_id,
                   query in (select query from events where day = '{train_day}') as seen
            from events where day = '{test_day}' and query in (
                select query from events group by query having count(distinct user_id) >= {k}
            ) group by query;
        """)
        rules = [
            ("senses > 1", "ambiguous: its searchers meant {senses} different things"),
            ("needs = 1 and seen", "one need, also searched on the training day"),
            ("needs = 1 and not seen", "one need, never searched on the training day"),
        ]
        cases = []
        for rule, note in rules:
            row = db.execute(
                f"select query, senses, need_id from test where {rule} order by n desc, query limit 1"
            ).fetchone()
            if row is not None:
                # What is relevant to an ambiguous query depends on the searcher: it gets topics, not grades.
                cases.append(CaseQuery(row[0], note.format(senses=row[1]), row[2] if row[1] == 1 else None))
        return cases


def _impressions(db: Connection, logs: Path) -> str:
    """Return the SELECT of the impressions, their queries normalised."""
    select = open_logs(logs).sql("search_impressions")
    add_texts(db, f"select query from ({select})")
    return f"select l.* replace (t.query as query) from ({select}) l join texts t on t.raw = l.query"


def _file(folder: Path, name: str) -> str:
    return path_literal(folder / f"{name}.parquet")


class Evidence:
    """Looks up, for a result, why the training data or the old system knew it."""

    def __init__(
        self, samples: Path, logs: Path, truth: Path, until_day: str, k: int = SIMULATED_USERS
    ) -> None:
        """Open the mined evidence and the logs up to the training day; what is told stands for k people."""
        self._k = k
        mined, found = read_mined(samples), open_logs(logs)
        self._db = DuckDBBackend(mined.config.memory)
        load_events(self._db, found, [day for day in found.search_days if day <= until_day], keep=False)
        self._db.table(
            "shown",
            "select distinct group_id as query_id, item_id from impressions "
            f"where source in ({Source.CLICKED.value}, {Source.EXPOSED.value})",
        )
        self._db.drop_tables("queries")  # the mining has its own
        mined.open(self._db)
        name_searchers(self._db, mined.open_logs(logs))
        self._db.table("asked", told_queries_sql(k))
        self._db.table("own", "select e.* from evidence e join asked a on a.query_id = e.query_id")
        tell_trails(self._db, mined, k)
        self._db.view("grades", f"from {_file(truth, 'grades')}")
        topics = f"{_file(truth, 'items')} join {_file(truth, 'needs')} using (need_id)"
        self._db.view("topics", f"select item_id, sense from {topics}")

    def __enter__(self) -> Evidence:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.__exit__(None, None, None)

    def text(self, item: int) -> tuple[str, str]:
        """Return the title of an item, and the rest of its text."""
        row = self._db.rows(f"select ocr_cover, photo_caption, keyword from items where item_id = {item}")[0]
        title, *parts = [str(part) for part in row.values() if part]
        return title, " · ".join(parts)

    def was_shown(self, query: str, item: int) -> bool:
        """Return whether the system had shown the item for this query."""
        where = f"query_id = {id_sql(query_id(query))} and item_id = {item}"
        return bool(self._db.rows(f"select 1 from shown where {where} limit 1"))

    def grade(self, need: int | None, item: int) -> int | None:
        """Return the true grade 0..3 of the item for the need; None where the need is not known."""
        if need is None:
            return None
        rows = self._db.rows(f"select grade from grades where need_id = {need} and item_id = {item}")
        return int(rows[0]["grade"]) if rows else 0

    def topic(self, item: int) -> str | None:
        """Return the sense that the item is about."""
        rows = self._db.rows(f"select sense from topics where item_id = {item}")
        return str(rows[0]["sense"]) if rows else None

    def lines(self, query: str, item: int) -> list[str]:
        """Return what speaks for the pair itself; failing that, the queries whose positive the item is."""
        own = self._db.rows(
            f"select * from trails where query_id = {id_sql(query_id(query))} and item_id = {item} "
            f"order by source desc, users desc, via limit {LINES}"
        )
        if own:
            return [_sentence(Trail.of(row), self._k) for row in own]
        rows = self._db.rows(
            "select a.query, t.source, sum(t.events) as events "
            f"from trails t join asked a on a.query_id = t.query_id where t.item_id = {item} "
            f"group by all order by events desc, a.query, t.source limit {LINES - 1}"
        )
        return [
            f"no event of this query; {_NAMES[Source(row['source'])]} positive of “{row['query']}”"
            + ("" if row["events"] is None else f" ({row['events']}×)")
            for row in rows
        ] or [f"no evidence of at least {self._k} people's queries names this item"]


_NAMES = {row.bit: row.stage or row.name for row in POSITIVE_ORIGINS}


def _sentence(trail: Trail, k: int) -> str:
    who = f"by fewer than {k} people" if trail.users is None else f"by {trail.users} people"
    if trail.source is Source.REFORMULATION:
        via = "".join(f" to “{query}”" for query in trail.via)
        return f"P1: consumed after rewording{via}, {who}"
    if trail.source is Source.FEED:
        return f"P2: consumed in the feed around the search, {who}"
    return f"clicked or liked, {who}"


def side_by_side(
    case: CaseQuery,
    before: tuple[str, Retriever],
    after: tuple[str, Retriever],
    evidence: Evidence,
) -> QueryCase:
    """Return the best results of two models for one query.

    Args:
        case: the query.
        before: name and retriever of the reference.
        after: name and retriever of the model to look at.
        evidence: where reasons are looked up.
    """
    lists = [retriever.search([case.text], SHOWN) for _, retriever in (before, after)]
    old = {int(item) for item in lists[0][0][0]}
    columns = []
    for ids, scores in lists:
        hits = zip(ids[0].tolist(), scores[0].tolist(), strict=True)
        columns.append(
            [
                _hit(case, rank, item, score, old, evidence)
                for rank, (item, score) in enumerate(hits, 1)
                if item >= 0
            ]
        )
    return QueryCase(
        query=case.text,
        note=case.note,
        before_name=before[0],
        after_name=after[0],
        before=columns[0],
        after=columns[1],
    )


def _hit(case: CaseQuery, rank: int, item: int, score: float, old: set[int], evidence: Evidence) -> Hit:
    title, text = evidence.text(item)
    return Hit(
        rank=rank,
        title=title,
        text=text,
        score=score,
        grade=evidence.grade(case.need_id, item),
        topic=evidence.topic(item),
        is_new=item not in old,
        never_shown=not evidence.was_shown(case.text, item),
        evidence=evidence.lines(case.text, item),
    )
