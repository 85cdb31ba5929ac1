"""Texts per second of theta under other engines: ONNX Runtime and OpenVINO, float32 and int8, one thread.

    pip install onnx onnxruntime openvino
    python benchmarks/calibration/engine_speed.py DATASETS

Batches hold texts of one exact length for every arm; CPU time, best of two rounds; the deviation is that of
`encoder_speed.py`, from `crops fp32`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from encoder_speed import BATCH, ROUNDS, texts
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import SentenceTransformer

from crops.relevance import load_calibration, local_folder, model_hash
from crops.relevance.encode import MAX_TOKENS, sentence_embedder

INPUTS = ["input_ids", "attention_mask"]
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Pooled(torch.nn.Module):
    """The transformer, mean pooling and the unit norm in one graph."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.transformer = model[0].auto_model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).float()
        return torch.nn.functional.normalize((states * weight).sum(1) / weight.sum(1), dim=1)


def export(model: SentenceTransformer, folder: Path) -> dict[str, Path]:
    paths = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "int8")}
    ids = torch.randint(5, 1000, (2, 7))
    axes = {name: {0: "batch", 1: "tokens"} for name in INPUTS} | {"vectors": {0: "batch"}}
    torch.onnx.export(
        Pooled(model).eval(),
        (ids, torch.ones_like(ids)),
        str(paths["fp32"]),
        input_names=INPUTS,
        output_names=["vectors"],
        dynamic_axes=axes,
        dynamo=False,
    )
    quantize_dynamic(paths["fp32"], paths["int8"], weight_type=QuantType.QInt8, per_channel=True)
    return paths


def onnx_runtime(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(["vectors"], dict(zip(INPUTS, (ids, mask), strict=True)))[0]


def open_vino(path: Path) -> Run:
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    compiled = core.compile_model(str(path), "CPU")
    return lambda ids, mask: np.array(compiled(dict(zip(INPUTS, (ids, mask), strict=True)))[0])


def embedder(model: SentenceTransformer, run: Run) -> Callable[[list[str]], np.ndarray]:
    def embed(values: list[str]) -> np.ndarray:
        features = model.preprocess(values)
        ids, mask = (features[name].numpy() for name in INPUTS)
        lengths = mask.sum(1)
        vectors = np.empty((len(values), model.get_embedding_dimension()), np.float32)
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            for start in range(0, len(same), BATCH):
                rows = same[start : start + BATCH]
                vectors[rows] = run(*(np.ascontiguousarray(part[rows, :length]) for part in (ids, mask)))
        return vectors

    return embed


def main() -> None:
    torch.set_num_threads(1)
    folder = local_folder("minilm")
    calibration = load_calibration("relevance", "minilm", model_hash(folder))
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = MAX_TOKENS
    arms = {"crops fp32": sentence_embedder(folder, BATCH)}
    with tempfile.TemporaryDirectory() as work:
        for precision, path in export(model, Path(work)).items():
            arms[f"ONNX Runtime {precision}"] = embedder(model, onnx_runtime(path))
            arms[f"OpenVINO {precision}"] = embedder(model, open_vino(path))
        print("| texts | arm | texts/s | largest deviation of P |\n|---|---|---|---|")
        for name, values in texts(Path(sys.argv[1])).items():
            seconds: dict[str, list[float]] = {arm: [] for arm in arms}
            chance = {}
            for _ in range(ROUNDS):
                for arm, embed in arms.items():
                    start = time.process_time()
                    vectors = np.asarray(embed(values))
                    seconds[arm].append(time.process_time() - start)
                    chance[arm] = calibration.probability(vectors[:50] @ vectors.T)
            for arm, rounds in seconds.items():
                deviation = np.abs(chance[arm] - chance["crops fp32"]).max()
                print(f"| {name} | {arm} | {len(values) / min(rounds):.0f} | {deviation:.4f} |", flush=True)


if __name__ == "__main__":
    main()
