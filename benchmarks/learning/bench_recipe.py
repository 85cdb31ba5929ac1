"""What `recommended` is chosen by: one change at a time, on worlds that no published table sees.

The rule, written before these worlds were simulated: CT, QR by truth and true recall at 100 count alike. A
change is kept if their sum gains on the mean of the worlds and none of them falls by more than a point.

    python benchmarks/learning/bench_recipe.py --out out/recipe-42 --seed 42

What was chosen, against the paper, on worlds that did not choose:

    python benchmarks/learning/bench_recipe.py --out out/recipe-43 --seed 43 --chosen
    python benchmarks/learning/bench_recipe.py --out out/recipe-v2 --seed 0 --edition v2 --chosen
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench_texts import LOWER, P12, PLAIN, TEXT, run_arms

from crops.config import RECIPES, RunConfig, with_recipe
from crops.labels import ALL_SOURCES, SEARCH_SOURCES, Source
from crops.pipeline import packaged_documents

CLICKS = "P1 + P2, clicks"
BASE = f"{CLICKS}, Softmax-CE over lower"
LOOSE = f"{BASE}, P1 without theta"
MORE = {
    f"{BASE}, without P2": ("mined", SEARCH_SOURCES | Source.REFORMULATION, TEXT, LOWER),
    f"{BASE}, P2 at 3": ("mined", P12, TEXT, {**LOWER, "labels": {Source.FEED: 3}}),
    f"{BASE}, P3": ("mined", ALL_SOURCES, TEXT, LOWER),
    LOOSE: ("loose", P12, TEXT, LOWER),
    f"{BASE}, 2 documents a source": ("mined", P12, TEXT, {**LOWER, "docs_per_source": 2}),
    f"{BASE}, 8 documents a source": ("mined", P12, TEXT, {**LOWER, "docs_per_source": 8}),
    f"{BASE}, twice the learning rate": ("mined", P12, TEXT, {**LOWER, "learning_rate": 4e-3}),
    f"{BASE}, three times the steps": ("mined", P12, TEXT, {**LOWER, "steps": 900}),
}
TRAININGS = {
    "baseline": ("mined", SEARCH_SOURCES, PLAIN, {}),
    "paper": ("mined", ALL_SOURCES, PLAIN, {}),
    "baseline, clicks": ("mined", SEARCH_SOURCES, TEXT, {}),
    CLICKS: ("mined", P12, TEXT, {}),
    f"{CLICKS}, gain": ("mined", P12, TEXT, {"label_weights": "gain"}),
    f"{CLICKS}, high anchors": ("mined", P12, TEXT, {"min_anchor_label": 3}),
    BASE: ("mined", P12, TEXT, LOWER),
    **MORE,
}
ARMS = (
    ("bm25", PLAIN, None, None),
    ("bm25", TEXT, None, "bm25"),
    ("bm25", TEXT, "expanded", "bm25, clicks of 3"),
    ("baseline", PLAIN, None, None),
    ("paper", PLAIN, None, "baseline"),
    ("baseline, clicks", TEXT, None, "baseline"),
    (CLICKS, TEXT, None, "baseline, clicks"),
    (f"{CLICKS}, gain", TEXT, None, CLICKS),
    (f"{CLICKS}, high anchors", TEXT, None, CLICKS),
    (BASE, TEXT, None, CLICKS),
    *((name, TEXT, None, BASE) for name in MORE),
    ("paper", PLAIN, "expanded", "paper"),
    (BASE, TEXT, "expanded", BASE),
    (LOOSE, TEXT, "expanded", LOOSE),
)

CHOSEN_TRAININGS = {
    **{name: TRAININGS[name] for name in ("baseline", "paper", "baseline, clicks")},
    "paper, clicks": ("mined", ALL_SOURCES, TEXT, {}),
    "recommended": (
        "recommended",
        ALL_SOURCES,
        TEXT,
        {
            name.removeprefix("training."): value
            for name, value in RECIPES["recommended"].items()
            if name.startswith("training.")
        },
    ),
}
CHOSEN = (
    *ARMS[:6],
    ("paper, clicks", TEXT, None, "baseline, clicks"),
    ("baseline", PLAIN, "expanded", "baseline"),
    ("paper", PLAIN, "expanded", "paper"),
    ("paper, clicks", TEXT, "expanded", "paper, clicks"),
    ("recommended", TEXT, None, "paper"),
    ("recommended", TEXT, "expanded", "paper"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--size", default="small")
    parser.add_argument("--edition", default="v1")
    parser.add_argument("--chosen", action="store_true")
    args = parser.parse_args()
    platform = {"size": args.size, "edition": args.edition}
    run = RunConfig(seed=args.seed, platform=platform, document=TEXT)
    loose = run.engine.reformulation.model_copy(update={"relevance": 0.0})
    minings = {
        "mined": run,
        "loose": run.model_copy(update={"engine": run.engine.model_copy(update={"reformulation": loose})}),
    }
    if args.chosen:
        minings = {"mined": run, "recommended": with_recipe(run, "recommended")}
    expansions = {"expanded": ("recommended" if args.chosen else "loose", {})}
    trainings, arms = (CHOSEN_TRAININGS, CHOSEN) if args.chosen else (TRAININGS, ARMS)
    run_arms(args.out, run, minings, expansions, trainings, arms, packaged_documents())


if __name__ == "__main__":
    main()
