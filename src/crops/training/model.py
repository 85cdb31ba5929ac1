"""The trained object: an encoder with its texts, a learned temperature and a loss, called on batch rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from crops.config import TrainingConfig
from crops.encoders import TokenisedTexts, encode, tokenise
from crops.losses import h_infonce, hidden_pairs, infonce_binary
from crops.training.data import TrainingData
from crops.training.sample import Batch


def choose_loss(config: TrainingConfig) -> Callable[..., Tensor]:
    """Return the loss that the settings name, with its lowest anchor label bound."""
    if config.loss == "infonce_binary":
        return functools.partial(infonce_binary, positive_label=config.positive_label)
    return functools.partial(h_infonce, min_anchor_label=config.min_anchor_label)


def lowest_anchor(config: TrainingConfig) -> int:
    """Return the lowest label of an anchor under the settings' loss."""
    return config.positive_label if config.loss == "infonce_binary" else config.min_anchor_label


class TextPool:
    """All texts of the training data, each distinct one tokenised once."""

    def __init__(self, encoder: SentenceTransformer, data: TrainingData) -> None:
        """Tokenise the texts for `encoder`.

        Raises:
            CropsError: a text has no token.
        """
        rows: dict[str, int] = {}
        places = [rows.setdefault(text, len(rows)) for text in (*data.query_texts, *data.doc_texts)]
        self._query, self._doc = np.split(np.array(places), [data.groups])
        self._data = data
        self.tokens: TokenisedTexts = tokenise(encoder, list(rows))

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return what `GroupLoss.forward` takes: each distinct text of the batch named once."""
        data, doc = self._data, self._data.doc[batch.pair]
        texts, place = np.unique(
            np.concatenate([self._query[batch.group], self._doc[doc]]), return_inverse=True
        )
        arrays = {
            "texts": texts,
            "query_text": place[: len(batch.group)],
            "doc_text": place[len(batch.group) :],
            "query_index": batch.query_index,
            "grades": data.label[batch.pair],
            "query_id": data.query_id[batch.group],
            "doc_id": data.doc_id[doc],
            "known_index": batch.known_index,
            "known_id": data.doc_id[data.doc[batch.known_pair]],
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class GroupLoss(nn.Module):
    """Encodes a batch of groups and returns its loss; tau is learned as its logarithm."""

    def __init__(self, encoder: SentenceTransformer, tokens: TokenisedTexts, config: TrainingConfig) -> None:
        """Start at the temperature of the settings."""
        super().__init__()
        self.encoder = encoder
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        self.last_loss = math.nan
        self.last_temperature = config.temperature
        self._tokens = tokens
        self._loss = choose_loss(config)

    @property
    def temperature(self) -> float:
        """The current tau."""
        return math.exp(self.log_temperature.item())

    def forward(
        self,
        texts: Tensor,
        query_text: Tensor,
        doc_text: Tensor,
        query_index: Tensor,
        grades: Tensor,
        query_id: Tensor,
        doc_id: Tensor,
        known_index: Tensor,
        known_id: Tensor,
    ) -> Tensor:
        """Return the mean loss over the anchors.

        Args:
            texts: [U] rows of the pool, distinct.
            query_text: [Q] places in `texts`.
            doc_text: [N] places in `texts`.
            query_index: see `crops.losses.h_infonce`, as for all that follow.
            grades: the labels.
            query_id: [Q].
            doc_id: [N].
            known_index: [K].
            known_id: [K].
        """
        embeddings = encode(self.encoder, self._tokens, texts.cpu().numpy())
        loss = self._loss(
            embeddings[query_text],
            embeddings[doc_text],
            query_index,
            grades,
            temperature=self.log_temperature.exp(),
            query_id=query_id,
            doc_id=doc_id,
            known=(known_index, known_id),
        )
        self.last_loss, self.last_temperature = loss.item(), self.temperature
        return loss


def contrast_facts(inputs: dict[str, Tensor]) -> dict[str, float]:
    """Return how many documents a query of this batch is told from, and how many drawn documents repeat.

    Returns:
        `queries`, `documents`: in the batch. `contrasted`: mean over queries of the other queries' documents
        in their denominators. `duplicates`: share of drawn documents whose id was drawn before.
    """
    queries, documents = len(inputs["query_text"]), len(inputs["doc_text"])
    known = inputs["known_index"], inputs["known_id"]
    row, doc = hidden_pairs(inputs["query_index"], inputs["query_id"], inputs["doc_id"], known)
    hidden = len(torch.unique(row * documents + doc))
    return {
        "queries": queries,
        "documents": documents,
        "contrasted": ((queries - 1) * documents - hidden) / queries,
        "duplicates": 1 - len(torch.unique(inputs["doc_id"])) / documents,
    }
