"""`crops generate`: an LLM writes training documents for mined queries (P3)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from crops.cli.options import Options, command
from crops.config import LLMConfig, RunConfig
from crops.errors import CropsError
from crops.llm import Budget, Endpoint, embedded_server, generate_documents, smoke_model
from crops.llm.batch import quarantine_path
from crops.llm.endpoint import API_KEY, NO_KEY, SMOKE_MODEL, SMOKE_SHA256
from crops.outputs import console

ENDPOINT = {
    name: f"llm.{name}"
    for name in (
        "base_url",
        "model",
        "gguf",
        "sha256",
        "token_budget",
        "cost_budget",
        "concurrency",
        "allow_remote",
    )
}
"""Options of the commands that ask an LLM."""
RetryOption = Annotated[
    bool, typer.Option("--retry-refused", help="Ask again for what was answered unusably before.")
]


@command
def generate(
    samples: Annotated[Path, typer.Argument(help="Output of `crops mine`.")],
    out: Annotated[Path, typer.Argument(help="JSON lines of documents; resumes if interrupted.")],
    limit: Annotated[int | None, typer.Option(help="Most queries.", min=1, show_default="all")] = None,
    missing_only: Annotated[
        bool,
        typer.Option("--missing-only", help="Only for queries without a document in OUT, of any exemplar."),
    ] = False,
    retry_refused: RetryOption = False,
    *,
    run: Annotated[
        RunConfig,
        Options(
            **ENDPOINT,
            samples_per_query="llm.samples_per_query",
            prompt="llm.prompt",
            priority="llm.priority",
            seed="seed",
        ),
    ],
) -> dict[str, int]:
    """Write documents for training queries with an LLM: mine again with --generated OUT to use them.

    Only queries of at least engine.knowledge.min_users users are sent, with one logged positive as example,
    and nothing of a user. Without --base-url or --gguf a tiny smoke model tries the plumbing out. A run stops
    with an error when the endpoint does not answer or its answers are unusable; what was answered is kept.
    """
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


# The LLM that the settings name: an OpenAI-compatible endpoint, or a model file served in this process.


def budget_of(config: LLMConfig) -> Budget:
    """Return what a run may use."""
    return Budget(
        config.token_budget, config.cost_budget, config.price_in, config.price_out, config.max_unusable
    )


@contextlib.contextmanager
def open_endpoint(config: LLMConfig) -> Iterator[Endpoint]:
    """Yield the endpoint that the settings name; an embedded server stops with the block.

    Raises:
        CropsError: the settings contradict each other, name a model file without its hash, or no model is
            to be had; or as `embedded_server`.
    """
    if config.base_url and config.gguf:
        raise CropsError("llm.base_url and llm.gguf are both set; name one of them")
    if config.base_url:
        if not config.model:
            raise CropsError(f"{config.base_url}: name the model there with llm.model (--model)")
        yield _endpoint(config, config.base_url, config.model, config.sha256)
        return
    file, sha256, name = _model_file(config)
    with embedded_server(file, sha256, name=name, slots=config.concurrency) as base_url:
        yield _endpoint(config, base_url, name, sha256)


def _model_file(config: LLMConfig) -> tuple[Path, str, str]:
    if config.gguf:
        file = Path(config.gguf)
        if not config.sha256:
            raise CropsError(f"{file}: pin the model with llm.sha256 (--sha256)")
        return file, config.sha256, config.model or file.stem
    file = smoke_model()
    console.print(
        f"[yellow]no model named: {SMOKE_MODEL} tries the plumbing out. "
        "Its texts are worthless: never train on them and never publish a figure made with them.[/yellow]"
    )
    return file, SMOKE_SHA256, SMOKE_MODEL


def _endpoint(config: LLMConfig, base_url: str, model: str, sha256: str | None) -> Endpoint:
    return Endpoint(
        base_url,
        model,
        sha256,
        api_key=os.environ.get(API_KEY) or NO_KEY,
        concurrency=config.concurrency,
        timeout_s=config.timeout_s,
        retries=config.retries,
        max_tokens=config.max_tokens,
        allow_remote=config.allow_remote,
    )
