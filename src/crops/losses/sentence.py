"""H-InfoNCE inside sentence-transformers' own trainer: a loss module, and a collator for ragged groups.

That trainer's checkpoints hold the parameters of the model only; `_keep_parameters` adds those of the loss.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.trainer import BaseTrainer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor, nn

from crops.errors import CropsError
from crops.losses.functions import h_infonce

PADDING = -1
"""Label of a slot that holds no document."""
PARAMETERS = "loss.safetensors"
"""File of a checkpoint that holds what the loss has learned."""


class HInfoNCELoss(nn.Module):
    """`crops.losses.h_infonce` for `SentenceTransformerTrainer`, with a learned temperature.

    Two kinds of datasets, recognised by the shape of the labels:

    - ragged groups, with `GroupCollator`: columns `query` (text), `documents` (list of texts), `labels` (list
      of grades) and nothing is padded; equal texts of a batch are masked as one;
    - k documents per row, with the trainer's own collator: a text column for the query, then k text columns,
      then `label`: a list of k grades, -1 where the slot is padding (its text is encoded and dropped). One
      column pair and one grade per row works too. Equal texts are not masked here: use
      `BatchSamplers.NO_DUPLICATES`.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: float = 0.05,
        *,
        learn_temperature: bool = True,
        min_anchor_label: int = 1,
        label_weights: Mapping[int, float] | None = None,
        margin: float | None = None,
    ) -> None:
        """Wrap `model`; the other arguments are those of `h_infonce`.

        Raises:
            CropsError: the temperature is not positive.
        """
        super().__init__()
        if not 0 < temperature < math.inf:
            raise CropsError(f"temperature is {temperature}; give a positive number, 0.05 to start with")
        _keep_parameters()
        self.model = model
        # Its logarithm is learned: steps are relative and tau stays positive.
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature), device=model.device), requires_grad=learn_temperature
        )
        self.options: dict[str, Any] = {
            "min_anchor_label": min_anchor_label,
            "label_weights": label_weights,
            "margin": margin,
        }

    @property
    def temperature(self) -> float:
        """The current tau."""
        return math.exp(self.log_temperature.item())

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Encode the columns and return the mean loss over the anchors.

        Args:
            sentence_features: tokenised queries, then documents: one entry per text column.
            labels: [Q, k] grades of k document columns ([Q] for one), or `GroupCollator`'s [N, 4].

        Raises:
            CropsError: labels and columns do not fit, or as `h_infonce`.
        """
        if labels is not None:
            labels = labels.cpu()  # before the device is busy encoding
        query_emb, *columns = (
            F.normalize(self.model(features)["sentence_embedding"].float(), dim=1)
            for features in sentence_features
        )
        if not columns:
            raise CropsError(
                "the dataset has one text column; give the query's and at least one of documents"
            )
        if labels is None or labels.is_floating_point():
            raise CropsError("the dataset gives no integer grades; add a column 'label', one per document")
        doc_emb, index, grade, ids = _ragged(len(query_emb), columns, labels)
        return h_infonce(
            query_emb, doc_emb, index, grade, temperature=self.log_temperature.exp(), **(ids | self.options)
        )

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings, for the model card."""
        return {"temperature": self.temperature, **self.options}

    @property
    def citation(self) -> str:
        """The paper, for the model card."""
        return "@misc{crops2025,\n    title={CroPS},\n    eprint={2511.15443},\n    archivePrefix={arXiv},\n}"


@functools.cache
def _keep_parameters() -> None:
    """Let sentence-transformers' trainer save and load the parameters of an `HInfoNCELoss`, once a process.

    The trainer has no hook for it: it saves and loads the model alone, and a resumed run would start again
    from the first temperature, with the optimiser's state of the last.
    """
    save, load = BaseTrainer._save, BaseTrainer._load_from_checkpoint

    @functools.wraps(save)
    def save_with_loss(
        self: BaseTrainer, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        save(self, output_dir, state_dict)
        if parameters := _learned(self):
            tensors = {name: value.detach().contiguous() for name, value in parameters.items()}
            save_file(tensors, Path(str(output_dir or self.args.output_dir)) / PARAMETERS)

    @functools.wraps(load)
    def load_with_loss(self: BaseTrainer, checkpoint_path: str) -> None:
        if parameters := _learned(self):
            _restore(parameters, Path(checkpoint_path) / PARAMETERS)
        load(self, checkpoint_path)

    BaseTrainer._save = save_with_loss  # type: ignore[method-assign]
    BaseTrainer._load_from_checkpoint = load_with_loss  # type: ignore[method-assign]


def _learned(trainer: BaseTrainer) -> dict[str, nn.Parameter]:
    """Return what the trainer's loss learns besides the model, by name; nothing without an `HInfoNCELoss`."""
    losses = nn.ModuleDict(trainer.loss) if isinstance(trainer.loss, dict) else trainer.loss
    if not any(isinstance(module, HInfoNCELoss) for module in losses.modules()):
        return {}
    of_model = {id(parameter) for parameter in trainer.model.parameters()}
    return {
        name: parameter
        for name, parameter in losses.named_parameters()
        if parameter.requires_grad and id(parameter) not in of_model
    }


def _restore(parameters: Mapping[str, nn.Parameter], file: Path) -> None:
    """Copy the saved values into the parameters; refuse a file that is absent or holds other ones."""
    if not file.is_file():
        raise CropsError(
            f"{file.parent} does not hold the loss's {', '.join(parameters)} (no {PARAMETERS}): it was saved "
            "without HInfoNCELoss or by an older crops; start the training again, or fix the temperature "
            "with learn_temperature=False"
        )
    saved = load_file(file)
    shapes = {name: tuple(value.shape) for name, value in saved.items()}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if shapes != wanted:
        raise CropsError(f"{file} holds {shapes}, the loss has {wanted}; resume with the loss that it is of")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def _ragged(
    queries: int, columns: list[Tensor], labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Return embeddings [N, d], query rows [N] and grades [N] of the batch's documents, and its ids."""
    grades = labels.reshape(-1, 1) if labels.ndim == 1 else labels
    if grades.shape == (queries, len(columns)):
        if int(grades.min()) < PADDING:
            raise CropsError(
                f"a label is {int(grades.min())}; grades start at 0, {PADDING} marks a slot without document"
            )
        index, slot = (grades != PADDING).nonzero(as_tuple=True)
        return torch.stack(columns, dim=1)[index, slot], index, grades[index, slot], {}
    if len(columns) == 1 and grades.shape == (len(columns[0]), len(GroupCollator.LABELS)):
        index, grade, doc_id, query_id = grades.T.contiguous()
        starts = torch.searchsorted(index, torch.arange(queries, device=index.device))
        return columns[0], index, grade, {"query_id": query_id[starts], "doc_id": doc_id}
    raise CropsError(
        f"labels have shape {list(labels.shape)} for {queries} queries and {len(columns)} document columns; "
        f"give a grade per document ({PADDING} = padding) or use GroupCollator"
    )


@dataclass
class GroupCollator(SentenceTransformerDataCollator):
    """Batches ragged groups for `HInfoNCELoss`: `GroupCollator(model.preprocess)`.

    Rows have `query` (text), `documents` (list of texts) and `labels` (list of grades, as long). Prompts and
    router tasks are those of the columns `query` and `documents`.
    """

    LABELS = ("query_index", "grade", "doc_id", "query_id")
    """Columns of the batch's labels [N, 4], a row per document; ids number the batch's distinct texts."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the tokenised queries and documents, and their labels.

        Raises:
            CropsError: a row lacks a column, has no document, or not one grade for each.
        """
        for row in features:
            _check_group(row)
        numbers: dict[str, int] = {}
        labels = []
        for index, row in enumerate(features):
            for document, grade in zip(row["documents"], row["labels"], strict=True):
                doc_id = numbers.setdefault(document, len(numbers))
                labels.append((index, grade, doc_id, numbers.setdefault(row["query"], len(numbers))))
        names = {name: row[name] for row in features[:1] for name in ("dataset_name",) if name in row}
        queries = super().__call__([{**names, "query": row["query"]} for row in features])
        documents = super().__call__(
            [{**names, "documents": text} for row in features for text in row["documents"]]
        )
        return {**queries, **documents, "label": torch.tensor(labels)}


def _check_group(row: dict[str, Any]) -> None:
    missing = [name for name in ("query", "documents", "labels") if name not in row]
    if missing:
        raise CropsError(
            f"a training row lacks {', '.join(missing)}; give query, documents (texts), labels (grades)"
        )
    documents, labels = row["documents"], row["labels"]
    if not documents or len(documents) != len(labels):
        raise CropsError(
            f"query '{row['query']}' has {len(documents)} documents and {len(labels)} labels; "
            "give at least one document and one grade for each"
        )
