"""Settings of the search index."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crops.config.section import Section

Kind = Literal["exact", "hnsw", "ivf", "ivfpq"]


class IndexConfig(Section):
    """How the catalogue is searched."""

    kind: Kind = "exact"
    """exact: all vectors; hnsw: a graph; ivf: the nearest clusters; ivfpq: the same with codes of 4 bits."""
    int8: bool = False
    """Search 8-bit codes and score the best again with the vectors: a quarter of the memory."""
    dims: int | None = Field(None, ge=8)
    """Keep the first numbers of an embedding (Matryoshka); all when absent."""
    target_recall: float = Field(0.98, gt=0, le=1)
    """The least search effort is chosen whose recall@100 against exact search passes this by two standard
    errors."""
    seed: int = Field(0, ge=0)
    """Seed of the clusters and of the sample of queries."""
