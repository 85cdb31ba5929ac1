"""`crops demo`: a filter bubble forms and breaks, in one command."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from crops import evaluation
from crops.cli.bubble import bubble_table
from crops.cli.cases import Evidence, choose_cases, side_by_side
from crops.cli.command import command
from crops.cli.demo_report import Arm, coverage_text, demo_report
from crops.cli.evaluate import day_testsets, results_table, write_results
from crops.cli.judged import judged_demo
from crops.cli.mine import mine_logs
from crops.cli.models import BM25, load_retriever, require_encoder
from crops.cli.options import DEFAULTS, ConfigOption, SeedOption
from crops.cli.simulate import simulate
from crops.cli.warm import packaged_documents
from crops.config import RunConfig, load_config
from crops.evaluation import Evaluation, ScoringRetriever
from crops.labels import SEARCH_SOURCES, Source
from crops.logs import check
from crops.outputs import cache_folder, console, publish, read_manifest, timed, write_manifest
from crops.report import write_report
from crops.retrieval import load_items

BASELINE = "baseline: search labels only"
MIN_P3_COVERAGE = 0.05
"""Below this share of training queries with a generated document, +P3 is not tested."""


def plan_arms(p3_share: float) -> tuple[dict[str, Source], dict[str, str]]:
    """Return the arms of the ablation, cumulative as in Table 3, and those left out with the reason.

    Args:
        p3_share: share of the training queries with a generated document.
    """
    p1 = SEARCH_SOURCES | Source.REFORMULATION
    p2 = p1 | Source.FEED
    arms = {BASELINE: SEARCH_SOURCES, "+ P1": p1}
    if p3_share < MIN_P3_COVERAGE:
        reason = f"{100 * p3_share:.1f} % of the training queries have a generated document; it takes 5 %"
        return {**arms, "P1 + P2": p2}, {"+ P3": reason}
    return {**arms, "+ P2": p2, "+ P3 = CroPS": p2 | Source.KNOWLEDGE}, {}


@command
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("out/demo"),
    judged: Annotated[
        Path | None,
        typer.Option(help="Instead of the simulation: a folder with docs, queries and qrels Parquet files."),
    ] = None,
    positive_label: Annotated[
        int | None,
        typer.Option(help="With --judged: lowest grade that counts as relevant.", show_default="the top"),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Size of the platform.", show_default=DEFAULTS.platform.size)
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="static, minilm, or a model.", show_default=DEFAULTS.training.encoder)
    ] = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
) -> Path:
    """Simulate a platform, mine its logs, train with each source added, and report what changed."""
    run = load_config(config, seed=seed, platform__size=size, training__encoder=encoder)
    if judged is not None:
        return judged_demo(judged, out, run, positive_label)
    start = time.perf_counter()
    require_encoder(run.training)
    seconds: dict[str, float] = {}
    simulate(out / "world", run.platform.size, run.platform.days, run.seed, config)
    truth, logs, samples = out / "world" / "truth", out / "checked" / "accepted", out / "samples"
    check(out / "world" / "logs", out / "checked", run.engine.memory)
    days = read_manifest(out / "world", "simulate")["days"]
    engine = run.engine.model_copy(update={"days": (days["train"],)})
    mined = mine_logs(logs, samples, run.model_copy(update={"engine": engine}), packaged_documents())
    planned, not_tested = plan_arms(mined["p3_coverage"]["share_of_queries"] or 0.0)
    arms = [_train_arm(name, sources, samples, out, run) for name, sources in planned.items()]
    with timed(seconds, "evaluate"):
        results, retrievers = _evaluate(arms, logs, truth, samples, out, run, days["test"])
    with timed(seconds, "look up the evidence"), Evidence(samples, logs, truth, days["train"]) as evidence:
        pair = [(name, retrievers[name]) for name in (BASELINE, arms[-1].name)]
        chosen = choose_cases(logs, truth, days["train"], days["test"])
        cases = [side_by_side(case, pair[0], pair[1], evidence) for case in chosen]
    seconds["total"] = time.perf_counter() - start
    bubble = bubble_table(logs, truth)
    report = demo_report(run, mined, arms, results, not_tested, bubble, cases, seconds)
    write_report(report, out / "report.html")
    console.print(results_table(results, f"test day {days['test']}. {coverage_text(mined)}"))
    console.print(f"open [bold]{out / 'report.html'}[/bold]; {seconds['total'] / 60:.1f} minutes")
    console.print(f"next: crops search {arms[-1].folder} mercury --items {samples}", soft_wrap=True)
    console.print(f"explore in a browser: [bold]crops serve {out}[/bold]", soft_wrap=True)
    return out / "report.html"


def _train_arm(name: str, sources: Source, samples: Path, out: Path, run: RunConfig) -> Arm:
    from crops import training  # torch takes seconds to import: not for --help
    from crops.encoders import rendering_for

    console.print(f"[bold]{name}[/bold]")
    folder = out / "models" / f"{int(sources):03d}"
    data = training.load_samples(samples, keep=sources, rendering=rendering_for(run.training))
    training.train(data, folder, run.training, seed=run.seed, cache=cache_folder())
    return Arm(name, folder, sources)


def _evaluate(
    arms: Sequence[Arm], logs: Path, truth: Path, samples: Path, out: Path, run: RunConfig, test_day: str
) -> tuple[dict[str, Evaluation], dict[str, ScoringRetriever]]:
    testsets = day_testsets(logs, test_day, truth, samples, run)
    ids, texts = load_items(logs, testsets.candidate_ids())
    models: dict[str, str | Path] = {
        "BM25": BM25,
        f"{run.training.encoder}, untrained": run.training.encoder,
        "deployed: trained on its own clicks": out / "world" / "deployed_model",
        **{arm.name: arm.folder for arm in arms},
    }
    retrievers = {name: load_retriever(model, ids, texts, logs) for name, model in models.items()}
    results = {
        name: evaluation.evaluate(one, testsets, run.evaluation, run.seed) for name, one in retrievers.items()
    }
    with publish(out / "evaluation", "evaluate") as folder:
        write_results(folder, results)
        write_manifest(
            folder, "evaluate", config=run.dump(), seconds={}, day=test_day, counts=testsets.counts
        )
    return results, retrievers
