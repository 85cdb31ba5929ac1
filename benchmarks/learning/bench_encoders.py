"""Exported graphs against torch, and what the two-tower encoder weighs.

Speed: texts per CPU second (user + system) of `encode_document`, batch 64, one thread, median of interleaved
rounds. Cosine: the lowest between graph and torch over the same texts. The rival of onnxruntime is plain
sentence-transformers with the same model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

from crops.config import TrainingConfig
from crops.encoders import load_encoder
from crops.encoders.onnx_encoder import OnnxEncoder
from crops.encoders.onnx_export import export_onnx
from crops.encoders.two_tower import item_features
from crops.relevance import resolve_model

WORDS = (
    "how to water a ficus in winter red running shoes cheap guitar chords for beginners bike repair".split()
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(4, 40))) for _ in range(options.texts)]
    rows = [
        item_features({"item_id": i, "author_id": i % 50, "category": "c", "keyword": text})
        for i, text in enumerate(texts)
    ]
    print("| encoder | parameters | lowest cosine | torch texts/CPU-s | ONNX texts/CPU-s | ratio |")
    print("|---|---|---|---|---|---|")
    for name in ("static", "two_tower", "qwen2 2x128", "minilm"):
        encoder = qwen2() if name.startswith("qwen2") else load_encoder(TrainingConfig(encoder=name))
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(encoder, Path(folder))
            compare(
                name,
                encoder,
                OnnxEncoder(Path(folder), threads=1),
                rows if name == "two_tower" else texts,
                options.rounds,
            )


def qwen2() -> SentenceTransformer:
    """A random Qwen2 of 2 layers and width 128 with MiniLM's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("minilm"))
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=512,
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        Qwen2Model(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
    transformer.max_seq_length = 128
    return SentenceTransformer(modules=[transformer, Pooling(128, "lasttoken"), Normalize()], device="cpu")


def compare(
    name: str, encoder: SentenceTransformer, exported: OnnxEncoder, texts: list[str], rounds: int
) -> None:
    """Print one row of the table."""
    encoder.eval()
    rivals: dict[str, Callable[[], np.ndarray]] = {
        "torch": lambda: encoder.encode_document(texts, batch_size=64, show_progress_bar=False),
        "onnx": lambda: exported.encode_document(texts, batch_size=64),
    }
    cosine = float((rivals["torch"]() * rivals["onnx"]()).sum(axis=1).min())
    seconds: dict[str, list[float]] = {rival: [] for rival in rivals}
    for _ in range(rounds):
        for rival, encode in rivals.items():
            start = time.process_time()
            encode()
            seconds[rival].append(time.process_time() - start)
    speed = {rival: len(texts) / statistics.median(taken) for rival, taken in seconds.items()}
    size = sum(weight.numel() for weight in encoder.parameters())
    print(
        f"| {name} | {size / 1e6:.1f} M | {cosine:.7f} | {speed['torch']:,.0f} | {speed['onnx']:,.0f} | "
        f"{speed['onnx'] / speed['torch']:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
