"""Everything a server knows: its indexes, and the evidence for what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crops.serving.evidence import Evidence, Senses
from crops.serving.explain import Explained, Explainer
from crops.serving.service import Service

NOTHING = Explained(False, (), {})


@dataclass
class Desk:
    """What the endpoints and the pages ask."""

    service: Service
    evidence: Evidence | None = None
    """None without the samples that the model was trained on."""
    explainer: Explainer | None = None
    """Replaced together with the index."""
    senses: Senses | None = None
    """In a simulation only."""

    def explain(self, query: str, items: Sequence[int]) -> Explained:
        """Return the evidence for items that the index finds for a normalised query.

        It computes: call it in the queue (`Service.do`).

        Raises:
            UnknownItemError: an item is not in the index.
        """
        return NOTHING if self.explainer is None else self.explainer.explain(query, items)
