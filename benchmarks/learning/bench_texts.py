"""What the text of a document is worth: click queries, expansion, label weights, sampling per event.

One simulated world, all arms on its test day; each is compared with another arm, paired by query. What is
there is not made again. Seeds of published tables are 0 to 4.

    python benchmarks/learning/bench_texts.py --out out/texts-41 --seed 41
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from crops.config import DocumentConfig, ExpansionConfig, RunConfig
from crops.engine.documents import expand
from crops.evaluation import Evaluation, build_slices, compare, evaluate
from crops.evaluation.testsets import load_testsets, save_testsets
from crops.labels import DEFAULT_LABELS, SEARCH_SOURCES, Source
from crops.outputs import cache_folder, console, is_done
from crops.pipeline import day_testsets, load_documents, load_retriever, mine_day
from crops.simulation import make_world
from crops.text import CLICK_QUERY, DOCUMENT_FIELDS
from crops.training import Samples, train

RESAMPLES = 4000
METRICS = (
    "recall@100/ct",
    "recall@100/qr",
    "recall@100/qr_truth",
    "ndcg_exp2@4/pool",
    "true_recall@100",
    "recall@100/ct|age=new",
)
P12 = SEARCH_SOURCES | Source.REFORMULATION | Source.FEED
PLAIN, TEXT = DocumentConfig(), DocumentConfig(fields=(*DOCUMENT_FIELDS, CLICK_QUERY))
EXPANSIONS = {
    "expanded": ("rewordings", {}),
    "expanded, of 1 person": ("rewordings", {"users": 1}),
    "expanded, of 20 people": ("rewordings", {"users": 20}),
    "expanded, one query": ("rewordings", {"queries": 1}),
    "expanded, theta": ("rewordings", {"relevance": 0.6}),
    "expanded, theta, P2 too": ("mined", {"sources": ("p1", "p2")}),
}
GAIN, LOWER = {"label_weights": "gain"}, {"loss": "softmax_ce_lower"}
WHOLE = {"docs_per_source": 64, "docs_per_query": 64}
TRAININGS = {
    "baseline": ("mined", SEARCH_SOURCES, PLAIN, {}),
    "P1 + P2": ("mined", P12, PLAIN, {}),
    "P1 + P2, gain": ("mined", P12, PLAIN, GAIN),
    "baseline, clicks": ("clicks", SEARCH_SOURCES, TEXT, {}),
    "P1 + P2, clicks": ("clicks", P12, TEXT, {}),
    "P1 + P2, clicks, gain": ("clicks", P12, TEXT, GAIN),
    "P1 + P2, clicks, Softmax-CE over lower": ("clicks", P12, TEXT, LOWER),
    "P1 + P2, clicks, by event": ("events", P12, TEXT, {}),
    "P1 + P2, clicks, by event, whole lists": ("events", P12, TEXT, WHOLE),
}
ARMS: tuple[tuple[str, DocumentConfig, str | None, str | None], ...] = (
    # a model, its text, an expansion, and the arm that it is compared with
    ("bm25", PLAIN, None, None),
    *(("bm25", TEXT.changed(click_users=users), None, "bm25") for users in (1, 2, 3, 5, 20)),
    *(("bm25", PLAIN, name, "bm25") for name in EXPANSIONS),
    *(("bm25", TEXT, name, "bm25, clicks of 3") for name in ("expanded", "expanded, theta")),
    ("baseline", PLAIN, None, None),
    ("baseline, clicks", TEXT, None, "baseline"),
    ("P1 + P2", PLAIN, None, "baseline"),
    ("P1 + P2, gain", PLAIN, None, "P1 + P2"),
    ("P1 + P2, clicks", TEXT, None, "baseline, clicks"),
    *((name, TEXT, None, "P1 + P2, clicks") for name in list(TRAININGS)[5:]),
    ("baseline", PLAIN, "expanded", "baseline"),
    ("P1 + P2", PLAIN, "expanded", "P1 + P2"),
    *((name, TEXT, "expanded", name) for name in list(TRAININGS)[3:7] if "gain" not in name),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--size", default="small")
    args = parser.parse_args()
    bench(args.out, RunConfig(seed=args.seed, platform={"size": args.size}))


def bench(out: Path, run: RunConfig) -> None:
    """Make what is missing and print the arms."""
    engine = run.engine.model_copy(update={"sources": ("search", "p1", "p2")})
    loose = engine.reformulation.model_copy(update={"relevance": 0.0})
    minings = {
        "mined": run.model_copy(update={"engine": engine}),
        "clicks": run.model_copy(update={"engine": engine, "document": TEXT}),
        "events": run.model_copy(
            update={"engine": engine.model_copy(update={"group_by": "event"}), "document": TEXT}
        ),
        "rewordings": run.model_copy(
            update={"engine": engine.model_copy(update={"sources": ("p1",), "reformulation": loose})}
        ),
    }
    run_arms(out, run, minings, EXPANSIONS, TRAININGS, ARMS)


def run_arms(
    out: Path,
    run: RunConfig,
    minings: Mapping[str, RunConfig],
    expansions: Mapping[str, tuple[str, dict[str, Any]]],
    trainings: Mapping[str, tuple[str, Source, DocumentConfig, dict[str, Any]]],
    arms: Sequence[tuple[str, DocumentConfig, str | None, str | None]],
    generated: Path | None = None,
) -> None:
    """Make what is missing of a world, its minings and trainings, and print the arms.

    `labels` among a training's settings are those of sources.
    """
    world = make_world(out, run)
    for name, settings in minings.items():
        if not is_done(out / name):
            mine_day(world.logs, world.day("train"), out / name, settings, generated)
    if not (out / "tests" / "testsets.json").exists():
        testsets = day_testsets(world.logs, world.day("test"), world.truth, out / next(iter(minings)), run)
        (out / "tests").mkdir(exist_ok=True)
        save_testsets(testsets, out / "tests")
    testsets = load_testsets(out / "tests")
    slices = build_slices(world.logs, world.day("train"), testsets, world.truth, run.engine.memory)
    for name, (mined, settings) in expansions.items():
        if not is_done(out / name):
            expand(out / mined, out / name, ExpansionConfig(**settings))
    for name, (mined, sources, document, settings) in trainings.items():
        if not is_done(out / "models" / name):
            own = {key: value for key, value in settings.items() if key != "labels"}
            labels = {**DEFAULT_LABELS, **settings.get("labels", {})}
            data = Samples(out / mined, sources, labels=labels, fields=document.fields)
            model = out / "models" / name
            train(data, model, run.training.changed(**own), seed=run.seed, cache=cache_folder())

    @cache
    def texts(document: DocumentConfig, expansion: str | None):
        settings = run.model_copy(update={"document": document})
        expanded = None if expansion is None else out / expansion
        day, ids = testsets.days[0], testsets.candidate_ids()
        return load_documents(world.logs, settings, day, ids, expanded=expanded)

    done: dict[str, Evaluation] = {}
    for model, document, expansion, against in arms:
        own = f", clicks of {document.click_users}" if model == "bm25" and document.counts_clicks else ""
        name = model + own + (f", {expansion}" if expansion else "")
        place = model if model == "bm25" else str(out / "models" / model)
        retriever = load_retriever(place, *texts(document, expansion), world.logs)
        done[name] = evaluate(retriever, testsets, run.evaluation, run.seed, slices)
        means = " ".join(f"{100 * done[name].summary[metric].mean:5.1f}" for metric in METRICS)
        console.print(f"[bold]{name}[/bold] {means}", soft_wrap=True)
        if against is not None:
            found = compare(done[name], done[against], RESAMPLES, 0)
            told = (f"{100 * found[one].mean:+.1f} {found[one].ends('+.1f')}" for one in METRICS)
            console.print(f"    against {against}: {', '.join(told)}", soft_wrap=True)


if __name__ == "__main__":
    main()
