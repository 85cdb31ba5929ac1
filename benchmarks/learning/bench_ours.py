"""Changes of ours to CroPS on held-out queries of the training days: cross-validation, never a test day.

Each arm is trained once per world and fold without the fold's queries, a tenth of all, and judged on them, so
that every query of the folds is looked at once. The differences to CroPS are paired by query. What is there
is not made again.

    python benchmarks/learning/bench_ours.py --out out/reproduce-small --size small --seeds 3 --folds 3
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from crops.config import RunConfig
from crops.encoders import rendering_for
from crops.evaluation.significance import nested_bootstrap
from crops.labels import DEFAULT_LABELS, Source
from crops.outputs import cache_folder, console
from crops.pipeline import packaged_documents
from crops.reproduce.design import (
    DEFAULT,
    Cell,
    Design,
    World,
    build_world,
    generated_files,
    parse_seeds,
    stored_points,
)
from crops.reproduce.make import make_samples, opened
from crops.retrieval import ExactRetriever
from crops.training.methods import METHODS, fit_method, load_catalogue, recalls, validation_sets
from crops.training.samples import FOLDS

REFERENCE = "CroPS"
RESAMPLES = 4000
CROPS = METHODS["crops"]
OURS = {
    "p2_at_3": dataclasses.replace(CROPS, labels={**DEFAULT_LABELS, Source.FEED: 3}),
    "no_p2": dataclasses.replace(CROPS, keep=CROPS.keep & ~Source.FEED),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method at a setting, and the samples it learns from."""

    method: str
    docs_per_source: int = 1
    learning_rate_scale: float = 1.0
    theta: bool = True
    """Whether the samples' P1 had to pass theta."""


ARMS = {
    REFERENCE: Arm("crops"),
    "CroPS, twice the learning rate": Arm("crops", 1, 2.0),
    "FS-LR": Arm("fs_lr"),
    "FS-LR, twice the learning rate": Arm("fs_lr", 1, 2.0),
    "high anchors": Arm("crops_anchors"),
    "Softmax-CE": Arm("softmax_ce"),
    "Softmax-CE, 2": Arm("softmax_ce", 2),
    "Softmax-CE over lower labels": Arm("softmax_ce_lower"),
    "Softmax-CE over lower labels, 2": Arm("softmax_ce_lower", 2),
    "P2 at label 3": Arm("p2_at_3"),
    "without P2": Arm("no_p2"),
    "P1 without theta": Arm("crops", theta=False),
}


def main() -> None:
    args = parse()
    METHODS.update(OURS)
    design = Design(RunConfig(), stored_points("static"), generated_files(None, packaged_documents()))
    worlds = [build_world(DEFAULT, args.size, seed) for seed in parse_seeds(args.seeds)]
    with opened(args.out):
        samples = [prepared(design, world, args.out) for world in worlds]
    by_world = []
    for world, mined in zip(worlds, samples, strict=True):
        found = {}
        for name, arm in ARMS.items():
            console.print(f"[dim]{world.label}: {name}[/dim]")
            cell = design.cell(world, "crops")
            runs = [held_out(cell, arm, mined, fold, args.out / "ours") for fold in range(args.folds)]
            found[name] = {metric: np.concatenate([run[metric] for run in runs]) for metric in runs[0]}
        by_world.append(found)
    show(by_world)


def prepared(design: Design, world: World, out: Path) -> list[Path]:
    """Return the samples of a world: CroPS's own, and those whose P1 did not pass theta."""
    cell = design.cell(world, "crops")
    documents = design.files([cell])[cell.generated]
    return [make_samples(one, out, documents) for one in (cell, unfiltered(cell))]


def unfiltered(cell: Cell) -> Cell:
    """Return the cell whose P1 does not have to pass theta."""
    engine = cell.run.engine
    reformulation = engine.reformulation.model_copy(update={"relevance": 0.0})
    changed = engine.model_copy(update={"reformulation": reformulation})
    return dataclasses.replace(cell, run=cell.run.model_copy(update={"engine": changed}))


def held_out(cell: Cell, arm: Arm, samples: list[Path], fold: int, out: Path) -> dict[str, np.ndarray]:
    """Train without a fold; return the recall of its queries, by metric, in the same order for all arms."""
    setting = f"{arm.docs_per_source}-{arm.learning_rate_scale:g}-{'theta' if arm.theta else 'all'}"
    name = f"{cell.world.label}-{arm.method}-{setting}-{fold}"
    kept = out / f"{name}.npz"
    if not kept.exists():
        model, training = out / name, cell.run.training
        fit_method(
            arm.method,
            samples[0 if arm.theta else 1],
            model,
            training,
            seed=cell.run.seed,
            cache=cache_folder(),
            point={
                "docs_per_source": arm.docs_per_source,
                "learning_rate_scale": arm.learning_rate_scale,
            },
            held_out=fold,
        )
        rendering = rendering_for(training)
        catalogue = load_catalogue(samples[0], rendering)
        encoder = SentenceTransformer(str(model), device="cpu")
        retriever = ExactRetriever(encoder, *catalogue, render_query=rendering.query)
        kept_p1, all_p1 = (
            recalls(retriever, validation_sets(folder, catalogue.ids, fold)) for folder in samples
        )
        written = kept.with_suffix(".tmp.npz")
        np.savez(written, **kept_p1, **{"recall@100/qr without theta": all_p1["recall@100/qr"]})
        written.rename(kept)
        shutil.rmtree(model)
    return dict(np.load(kept))


def show(by_world: list[dict[str, dict[str, np.ndarray]]]) -> None:
    """Print each arm's means over worlds and queries, and its differences to CroPS."""
    names = list(ARMS)
    for metric in by_world[0][REFERENCE]:
        tables = [np.stack([found[name][metric] for name in names], axis=1) for found in by_world]
        resampled = nested_bootstrap([table[~np.isnan(table).any(axis=1)] for table in tables], RESAMPLES, 0)
        console.print(f"\n[bold]{metric}[/bold], n = {resampled.n:,}", soft_wrap=True)
        for place, name in enumerate(names):
            weights = np.zeros(len(names))
            weights[place] += 1
            mean = resampled.means @ weights
            weights[names.index(REFERENCE)] -= 1
            change = resampled.contrast(weights)
            interval = f"{100 * change.mean:+.1f} [{100 * change.ci_low:+.1f}, {100 * change.ci_high:+.1f}]"
            console.print(f"{name:34} {100 * mean:5.1f}  {interval} p = {change.p:.4f}", soft_wrap=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of a reproduction: its worlds are used"
    )
    parser.add_argument("--size", default="small")
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--folds", type=int, default=3, choices=range(1, FOLDS + 1))
    return parser.parse_args()


if __name__ == "__main__":
    main()
