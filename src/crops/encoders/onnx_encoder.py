"""An exported encoder, run by onnxruntime and tokenizers alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crops.errors import CropsError, MissingExtraError

SETTINGS = "onnx_encoder.json"
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"


class Side(NamedTuple):
    """How texts of one role are encoded."""

    graph: str
    """Stem of the files of its graph and tokenizer."""
    prompt: str
    """What comes before each text."""
    special_tokens: bool
    """Whether the tokenizer frames a text."""


class OnnxEncoder:
    """Encodes texts with the graphs of `crops export-onnx`, called as SentenceTransformer is."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Load the graphs.

        Args:
            folder: output of `export_onnx`.
            threads: of one run of a graph; what onnxruntime chooses when None.

        Raises:
            MissingExtraError: onnxruntime is not installed.
            CropsError: the folder holds no exported encoder.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnx") from error
        if not (folder / SETTINGS).exists():
            raise CropsError(f"{folder} holds no exported encoder; make one with `crops export-onnx`")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        read: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
        self._sides = {role: Side(**side) for role, side in read.items()}
        names = {side.graph for side in self._sides.values()}
        self._graphs = {
            name: onnxruntime.InferenceSession(
                str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in names
        }
        self._tokenizers = {
            name: Tokenizer.from_file(str(folder / f"{name}.tokenizer.json")) for name in names
        }

    def encode_query(self, texts: Sequence[str], **options: Any) -> NDArray[np.float32]:  # noqa: ANN401
        """Return unit vectors [len(texts), d] of queries; see `encode`."""
        return self.encode(texts, role="query", **options)

    def encode_document(self, texts: Sequence[str], **options: Any) -> NDArray[np.float32]:  # noqa: ANN401
        """Return unit vectors [len(texts), d] of documents; see `encode`."""
        return self.encode(texts, role="document", **options)

    def encode(
        self,
        texts: Sequence[str],
        /,
        *,
        role: str = "document",
        batch_size: int = 64,
        normalize_embeddings: bool = True,
        show_progress_bar: bool = False,
    ) -> NDArray[np.float32]:
        """Return one unit vector per text, [len(texts), d].

        Args:
            texts: n texts.
            role: `query` or `document`.
            batch_size: texts per run of the graph; texts of similar length share one.
            normalize_embeddings: accepted for SentenceTransformer's sake; the graph normalises in any case.
            show_progress_bar: likewise; there is none.
        """
        side = self._sides[role]
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts = []
        for start in range(0, len(texts), batch_size):
            batch = [side.prompt + texts[row] for row in order[start : start + batch_size]]
            encoded = self._tokenizers[side.graph].encode_batch(batch, add_special_tokens=side.special_tokens)
            inputs = (
                np.array([one.ids for one in encoded]),
                np.array([one.attention_mask for one in encoded]),
            )
            feed = {name: value.astype(np.int64) for name, value in zip(INPUTS, inputs, strict=True)}
            parts.append(self._graphs[side.graph].run([OUTPUT], feed)[0])
        if not parts:
            raise CropsError("there is no text to encode")
        return np.concatenate(parts)[np.argsort(order)].astype(np.float32)
