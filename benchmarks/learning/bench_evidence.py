"""What an evidence theta and the fourth source are worth, beside what the truth would choose.

One simulated world that no published table has seen, all arms on its test day, each compared with another
arm, paired by query. A simulated editor judges 2,000 pairs of the training day, one in ten wrongly. What is
there is not made again.

    python benchmarks/learning/bench_evidence.py --out out/evidence-43 --seed 43
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from crops.cli.simulate import annotate
from crops.cli.theta import theta_fit
from crops.config import RunConfig
from crops.engine.mined import read_mined
from crops.evaluation import compare, evaluate
from crops.evaluation.source_precision import source_precision
from crops.evaluation.testsets import (
    RELEVANT_GRADE,
    build_slices,
    load_slices,
    load_testsets,
    save_slices,
    save_testsets,
)
from crops.labels import SEARCH_SOURCES, Source
from crops.outputs import console, is_done, read_manifest
from crops.pipeline import (
    EVIDENCE_COMMAND,
    day_testsets,
    evidence_of,
    load_documents,
    load_retriever,
    mine_day,
    train_model,
)
from crops.platform import query_grades
from crops.relevance.evidence import FEATURES, fitted, recall_at_precision
from crops.reproduce.design import ORACLE_SOURCE, ORACLE_THETA, ORACLES
from crops.reproduce.make import mine_oracle
from crops.simulation import make_world

RESAMPLES = 4000
P12 = SEARCH_SOURCES | Source.REFORMULATION | Source.FEED
METRICS = {
    "CT": "recall@100/ct",
    "QR truth": "recall@100/qr_truth",
    "QR editor": "recall@100/qr_editor",
    "QR theta": "recall@100/qr",
    "NDCG@4": "ndcg_exp2@4/pool",
    "true": "true_recall@100",
    "CT wordy": "recall@100/ct|words=some",
    "CT wordless": "recall@100/ct|words=none",
    "CT this text": "recall@100/ct|shown=text",
    "CT this meaning": "recall@100/ct|shown=meaning",
    "CT never": "recall@100/ct|shown=never",
}
ARMS = {
    # mining, sources, and the arm that it is compared with
    "baseline": ("mined", SEARCH_SOURCES, None),
    "P1 + P2, text theta": ("mined", P12, "baseline"),
    "P4": ("evidence", SEARCH_SOURCES | Source.PROMOTED, "baseline"),
    "P1 + P2, evidence theta": ("evidence", P12, "P1 + P2, text theta"),
    "oracle source": (ORACLE_SOURCE, SEARCH_SOURCES | Source.PROMOTED, "baseline"),
    "P1 + P2 + P4": ("evidence", P12 | Source.PROMOTED, "P1 + P2, text theta"),
    "oracle theta": (ORACLE_THETA, P12, "baseline"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--size", default="small")
    args = parser.parse_args()
    bench(args.out, RunConfig(seed=args.seed, platform={"size": args.size}))


def bench(out: Path, run: RunConfig) -> None:
    """Make what is missing and print the arms."""
    world = make_world(out, run)
    paper = run.engine.model_copy(update={"sources": ("search", "p1", "p2")})
    loose = {
        part: getattr(paper, part).model_copy(update={"relevance": 0.0}) for part in ("reformulation", "feed")
    }
    theta = run.relevance.model_copy(update={"evidence": str(out / "theta")})
    four = paper.model_copy(update={"sources": (*paper.sources, "p4")})
    settings = {
        "wide": {"engine": paper.model_copy(update=loose)},
        "mined": {"engine": paper},
        "evidence": {"engine": four, "relevance": theta},
    }
    for name, changes in settings.items():
        if name == "evidence" and not is_done(out / "theta"):
            judgements = out / "judgements.csv"
            annotate(out / "world", out / "wide", out=judgements)
            theta_fit(judgements, samples=out / "wide", out=out / "theta")
        if not is_done(out / name):
            mine_day(world.logs, world.day("train"), out / name, run.model_copy(update=changes))
    if not (out / "tests" / "testsets.json").exists():
        testsets = day_testsets(world.logs, world.day("test"), world.truth, out / "mined", run)
        (out / "tests").mkdir(exist_ok=True)
        slices = build_slices(world.logs, world.day("train"), testsets, world.truth, run.engine.memory)
        save_slices(slices, out / "tests")
        save_testsets(testsets, out / "tests")
    tell_theta(out, run, world.truth)
    for name in ("mined", "evidence"):
        for one in source_precision(out / name, world.truth, []):
            told = f"{100 * (one.share or 0):.1f} and {100 * (one.share_for_query or 0):.1f} % right"
            console.print(f"{name} {one.source}: {one.pairs:,} pairs, {told} for the searcher, the query")
    testsets, slices = load_testsets(out / "tests"), load_slices(out / "tests")
    ids, texts = load_documents(world.logs, run, testsets.days[0], testsets.candidate_ids())

    @cache
    def evaluated(name: str):
        mined, sources, _ = ARMS[name]
        model = out / "models" / name
        if mined in ORACLES and not is_done(out / mined):
            mine_oracle(mined, world, out / mined, run)
        if not is_done(model):
            train_model(out / mined, model, run.training, run.seed, sources)
        retriever = load_retriever(str(model), ids, texts, world.logs)
        return evaluate(retriever, testsets, run.evaluation, run.seed, slices)

    for name, (_, _, against) in ARMS.items():
        one = evaluated(name)
        means = (f"{told} {100 * one.summary[metric].mean:.1f}" for told, metric in METRICS.items())
        console.print(f"[bold]{name}[/bold]: {', '.join(means)}", soft_wrap=True)
        if against is not None:
            found = compare(one, evaluated(against), RESAMPLES, 0)
            told = (
                f"{title} {100 * found[metric].mean:+.1f} {found[metric].ends('+.1f')}"
                for title, metric in METRICS.items()
            )
            console.print(f"    against {against}: {', '.join(told)}", soft_wrap=True)


def tell_theta(out: Path, run: RunConfig, truth: Path) -> None:
    """Print what theta is worth by truth, for the query, on all pairs of P1 and P2 that were not judged."""
    mined = read_mined(out / "wide")
    days = mined.report["days"]
    ((logs, _), *_) = mined.open_logs(None)
    evidence, _ = evidence_of(logs.path, days, run)
    model = fitted(out / "theta", read_manifest(out / "theta", EVIDENCE_COMMAND)["model"])
    pairs = pq.read_table(out / "wide" / "samples.parquet", columns=["query_id", "item_id", "sources"])
    judged = pq.read_table(out / "theta" / "judged.parquet", columns=["query_id", "item_id"])
    pairs = pairs.join(judged, ["query_id", "item_id"], join_type="left anti")
    pairs = pairs.join(query_grades(logs.path, days, truth), ["query_id", "item_id"], join_type="left outer")
    for name, bit in (("P1", Source.REFORMULATION), ("P2", Source.FEED)):
        own = pairs.filter((pairs["sources"].to_numpy() & bit) != 0)
        features = evidence.features(own["query_id"].to_numpy(), own["item_id"].to_numpy())
        right = own["grade"].fill_null(0).to_numpy() >= RELEVANT_GRADE
        scores = {
            "text": features[:, FEATURES.index("cosine")],
            "evidence": model.predict_proba(features)[:, 1],
        }
        for kind, score in scores.items():
            auc, recall = roc_auc_score(right, score), recall_at_precision(score, right)
            share = f"{len(right):,} pairs, {100 * np.mean(right):.1f} % right"
            console.print(
                f"{name}, {kind} theta: {share}, AUC {auc:.3f}, recall at precision .9 {recall:.3f}"
            )


if __name__ == "__main__":
    main()
