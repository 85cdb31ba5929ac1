"""`crops mine`: logs in, graded training samples out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from crops import engine
from crops.cli.options import DEFAULTS, ConfigOption, SeedOption
from crops.config import RunConfig, load_config
from crops.logs import check, open_logs, render
from crops.outputs import MANIFEST, cache_folder, console
from crops.relevance import scorers


def mine(
    logs: Annotated[Path, typer.Argument(help="Logs folder, raw or accepted by `crops check`.")],
    out: Annotated[Path, typer.Argument(help="Folder for samples, queries, evidence and items.")],
    day: Annotated[
        list[str] | None,
        typer.Option("--day", help="Day to mine, YYYY-MM-DD; repeat for more.", show_default="all"),
    ] = None,
    sources: Annotated[
        str | None,
        typer.Option(help="Comma-separated sources.", show_default=",".join(DEFAULTS.engine.sources)),
    ] = None,
    generated: Annotated[
        Path | None, typer.Option(help="JSON lines of documents that an LLM wrote (P3).")
    ] = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
) -> dict[str, Any]:
    """Mine graded samples: clicks and stages, reformulations (P1), feed (P2), LLM documents (P3).

    Raw logs are checked first: the accepted rows are mined, the rejected ones stay in OUT.checked/rejects.
    """
    run = load_config(
        config, seed=seed, engine__days=day or None, engine__sources=sources.split(",") if sources else None
    )
    report = mine_logs(accepted_logs(logs, out.with_name(f"{out.name}.checked"), run), out, run, generated)
    console.print(f"samples in [bold]{out}[/bold]; next: crops train {out} MODEL")
    return report


def accepted_logs(logs: Path, checked: Path, run: RunConfig) -> Path:
    """Return a folder of accepted rows: `logs` if a check wrote it, else the result of checking it now."""
    if logs.name == "accepted" and (logs.parent / MANIFEST).exists():
        return logs
    console.print(render(check(logs, checked, run.engine.memory)))
    return checked / "accepted"


def mine_logs(logs: Path, out: Path, run: RunConfig, generated: Path | None) -> dict[str, Any]:
    """Mine accepted logs with theta and the query similarity of the run's relevance model."""
    relevance, similarity = scorers(run.relevance, cache_folder() / "relevance")
    return engine.mine(
        open_logs(logs),
        out,
        run.engine,
        relevance=relevance,
        similarity=similarity,
        generated=generated,
        seed=run.seed,
    )
