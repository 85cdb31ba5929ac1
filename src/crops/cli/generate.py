"""`crops generate`: an LLM writes training documents for mined queries (P3)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crops.cli.command import command
from crops.cli.llm import (
    BaseUrlOption,
    ConcurrencyOption,
    CostBudgetOption,
    GgufOption,
    ModelOption,
    RemoteOption,
    RetryOption,
    Sha256Option,
    TokenBudgetOption,
    budget_of,
    open_endpoint,
)
from crops.cli.options import DEFAULTS, ConfigOption, SeedOption
from crops.config import load_config
from crops.errors import CropsError
from crops.llm import generate_documents
from crops.llm.store import quarantine_path
from crops.outputs import console


@command
def generate(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`.")],
    out: Annotated[Path, typer.Argument(help="JSON lines of documents; a run goes on where it stopped.")],
    base_url: BaseUrlOption = None,
    model: ModelOption = None,
    gguf: GgufOption = None,
    sha256: Sha256Option = None,
    limit: Annotated[int | None, typer.Option(help="Most queries.", min=1, show_default="all")] = None,
    samples_per_query: Annotated[
        int | None,
        typer.Option(help="Documents per query.", show_default=str(DEFAULTS.llm.samples_per_query)),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="en, en2, zh, or a template's path.", show_default=DEFAULTS.llm.prompt),
    ] = None,
    priority: Annotated[
        str | None,
        typer.Option(
            help="need (ambiguous, rare, badly served first) or searches.", show_default=DEFAULTS.llm.priority
        ),
    ] = None,
    missing_only: Annotated[
        bool,
        typer.Option("--missing-only", help="Only for queries without a document in OUT, of any exemplar."),
    ] = False,
    retry_refused: RetryOption = False,
    token_budget: TokenBudgetOption = None,
    cost_budget: CostBudgetOption = None,
    concurrency: ConcurrencyOption = None,
    allow_remote: RemoteOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
) -> dict[str, int]:
    """Write documents for training queries with an LLM: mine again with --generated OUT to use them.

    Only queries of at least engine.knowledge.min_users users are sent, with one logged positive as example,
    and nothing of a user. Without --base-url or --gguf a tiny smoke model tries the plumbing out. A run stops
    with an error when the endpoint does not answer or its answers are unusable; what was answered is kept.
    """
    run = load_config(
        config,
        seed=seed,
        llm__base_url=base_url,
        llm__model=model,
        llm__gguf=str(gguf) if gguf else None,
        llm__sha256=sha256,
        llm__samples_per_query=samples_per_query,
        llm__prompt=prompt,
        llm__priority=priority,
        llm__token_budget=token_budget,
        llm__cost_budget=cost_budget,
        llm__concurrency=concurrency,
        llm__allow_remote=allow_remote,
    )
    settings, knowledge = run.llm, run.engine.knowledge
    if settings.samples_per_query > knowledge.max_per_query:
        raise CropsError(
            f"llm.samples_per_query = {settings.samples_per_query}, but engine.knowledge.max_per_query = "
            f"{knowledge.max_per_query} would be mined; lower the one or raise the other"
        )
    budget = budget_of(settings)
    with open_endpoint(settings) as endpoint:
        counts = generate_documents(
            samples,
            out,
            endpoint,
            limit=limit,
            min_users=knowledge.min_users,
            samples_per_query=settings.samples_per_query,
            seed=run.seed,
            prompt=settings.prompt,
            priority=settings.priority,
            missing_only=missing_only,
            budget=budget,
            retry_refused=retry_refused,
        )
    console.print(", ".join(f"{name} {count:,}" for name, count in counts.items()))
    if any(name.startswith("refused") for name in counts):
        console.print(f"refused requests and answers, with reasons: {quarantine_path(out)}")
    console.print(f"next: crops mine LOGS OUT --generated {out}")
    return counts
