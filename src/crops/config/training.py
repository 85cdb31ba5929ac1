"""Settings of the learning part."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from crops.config.section import Section

TRANSFORMER_TRAINING: dict[str, object] = {"learning_rate": 2e-5}
"""What every pretrained transformer starts from."""
PRESET_TRAINING: dict[str, dict[str, object]] = {
    "static": {"learning_rate": 2e-3},
    "two_tower": {"learning_rate": 5e-3, "dim": 64, "towers": "separate"},
    "minilm": TRANSFORMER_TRAINING,
    "qwen2.5-0.5b": {"learning_rate": 2e-5, "weight_decay": 1e-4, "max_tokens": 128},
}
"""Encoder presets with the settings that hold where the run names no others; qwen2.5-0.5b: the paper's."""


class TrainingConfig(Section):
    """The learning part."""

    encoder: str = "static"
    """`static`, `minilm`, `qwen2.5-0.5b`, `two_tower`, or any SentenceTransformer path or name."""
    init: str | None = None
    """A model folder to continue from, in place of the preset's own weights."""
    towers: Literal["shared", "separate"] = "shared"
    """One encoder for queries and documents, or two that start from the same weights."""
    train_documents: bool = True
    """Whether the documents' tower learns; if not (towers = separate), their vectors stay as they are."""
    query_prompt: str | None = None
    """Put before each query, in training and ever after; the model's own when absent, "" for none."""
    doc_prompt: str | None = None
    """Put before each document."""
    lora_rank: int = Field(0, ge=0)
    """Rank of LoRA adapters, merged into the saved model; 0 trains all weights."""
    matryoshka_dims: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Widths below the full one at which the first numbers of an embedding must serve as embedding."""
    dim: int = Field(256, ge=8)
    """Output dimension of the static and the two-tower encoder."""
    id_table: Literal[4096, 65536, 1048576] = 65536
    """Rows of each hashed table of ids (two_tower)."""
    id_dropout: float = Field(0.3, ge=0, lt=1)
    """Share of texts without their ids in a step: what is new must be found by its content (two_tower)."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """adam is the paper's: its weight decay is part of the gradient."""
    loss: Literal[
        "h_infonce", "infonce_graded", "infonce_binary", "softmax_ce", "softmax_ce_lower", "nce"
    ] = "h_infonce"
    """See crops.losses; infonce_graded takes one positive of each query per pass, as the paper's InfoNCE."""
    in_batch: bool = True
    """Whether a query's negatives are the documents of other queries too, or its own documents only."""
    batch_queries: int = Field(128, ge=2)
    """Queries per batch: each contrasts with all documents of the others."""
    docs_per_query: int = Field(24, ge=2)
    """Most documents drawn for one query in one step."""
    docs_per_source: int = Field(4, ge=1)
    """Most documents drawn per (label, source), so that the many do not drown the clicked."""
    steps: int = Field(300, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    """By preset: 0.002 for static, 0.005 for two_tower, 2e-5 for transformers."""
    weight_decay: float = Field(1e-4, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps."""
    temperature: float = Field(0.05, gt=0)
    """Start value; it is learned. With `init`, what that model has learned, if absent."""
    beta: float = Field(0.5, ge=0, le=1)
    """A group is drawn with weight searches^beta."""
    min_anchor_label: int = Field(1, ge=0)
    positive_label: int = Field(4, ge=1)
    """Lowest label that counts as positive (infonce_binary, nce, reports)."""
    max_tokens: int = Field(128, ge=4)
    buffer_groups: int = Field(65_536, ge=2)
    """Groups that are in memory and shuffled together."""
    encode_chunk: int | None = Field(None, ge=1)
    """Most texts whose activations are in memory at a time: the same gradient in less memory, more time."""
    bf16: bool = False
    """Encode in bfloat16; weights and loss stay in single precision."""
    compile: bool = False
    """Compile the transformer (torch.compile): worth it for long runs."""
    checkpoint_steps: int = Field(500, ge=1)
    """Steps between checkpoints."""
    eval_steps: int = Field(100, ge=1)
    """Steps between evaluations, where there is one; each writes a checkpoint."""
    eval_metric: str = "recall@100/qr"
    """The metric whose best weights are kept, and that stops the training when it gets no better."""
    patience: int = Field(5, ge=1)
    """Evaluations without a new best before the training stops."""
    report_to: tuple[str, ...] = ()
    """Trackers, as transformers names them: tensorboard, wandb, mlflow, ..."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        encoder = values.get("encoder", "static")
        return {**PRESET_TRAINING.get(str(encoder), TRANSFORMER_TRAINING), **values}
