"""Training speed: crops against SentenceTransformerTrainer, on the same model, texts and batch.

CPU seconds per step (user + system, all threads), medians over interleaved rounds, start-up excluded. Texts
are the packaged topics' searches, titles and captions; one batch = all queries given, each with its
documents. Dropout is that of the model in both. Tokens are those of the batch's distinct texts, without
padding: what has to be encoded.

    python benchmarks/learning/bench_training.py --models static,qwen-2x128,qwen-4x256,minilm
    python benchmarks/learning/bench_training.py --models static-large      # Q = 1024, 16 documents each
    python benchmarks/learning/bench_training.py --losses                   # Table 4's speed column
"""

from __future__ import annotations

import argparse
import functools
import importlib.resources
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from training_arms import crops_arm, interleaved, rival_arm, spread, token_counts
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

from crops.config import TrainingConfig
from crops.encoders import load_encoder
from crops.training import TrainingData

SIZES = {
    # model: queries, documents per query, steps per round
    "static": (256, 4, 6),
    "static-large": (1024, 16, 4),
    "qwen-2x128": (64, 4, 3),
    "qwen-4x256": (32, 4, 3),
    "minilm": (32, 2, 2),
}
CHUNK = 32
WORDINGS = 4
"""Searches of a need that are used, at least."""


def topic_texts() -> list[tuple[str, list[str]]]:
    """Return the packaged searches, each with the documents of its need."""
    found = []
    for path in sorted(Path(str(importlib.resources.files("crops.platform") / "topics")).glob("*.toml")):
        for sense in tomllib.loads(path.read_text())["senses"]:
            for need in sense["needs"]:
                docs = [
                    " ".join([title, *([caption] if n % 3 else []), *(need["tags"][:n] if n % 2 else [])])
                    for n, (title, caption) in enumerate(zip(need["titles"], need["captions"], strict=True))
                ]
                found += [(query, docs) for query in need["search"][:WORDINGS]]
    return found


def groups(queries: int, docs: int) -> TrainingData:
    """Return `queries` groups of `docs` documents: half of its need, half from all topics.

    Every other query is another wording of the one before it, so that groups share documents, as in logs.
    """
    random = np.random.default_rng(0)
    texts = topic_texts()
    first = random.permutation(len(texts) // WORDINGS)[: -(-queries // 2)] * WORDINGS
    chosen = np.stack([first, first + 1], axis=1).ravel()[:queries]
    pool = sorted({doc for _, own in texts for doc in own})
    row = {doc: i for i, doc in enumerate(pool)}
    pairs, labels = [], []
    for number in chosen:
        own = texts[number][1][: max(1, docs // 2)]
        rest = random.choice(len(pool), docs - len(own), replace=False)
        pairs += [*(row[doc] for doc in own), *rest.tolist()]
        labels += [4, *[1 + n % 3 for n in range(docs - 1)]]
    return TrainingData(
        pa.table(
            {
                "query_id": np.arange(queries),
                "query": [texts[number][0] for number in chosen],
                "searches": np.ones(queries),
            }
        ),
        pa.table({"item_id": np.arange(len(pool)), "text": pool}),
        pa.table(
            {
                "query_id": np.repeat(np.arange(queries), docs),
                "item_id": np.array(pairs),
                "label": np.array(labels),
                "source": np.zeros(len(pairs), dtype=np.int64),
                "weight": np.ones(len(pairs)),
            }
        ),
    )


def build(name: str, folder: Path) -> Path:
    """Write the model of an arm and return its folder."""
    if name.startswith("static"):
        encoder = load_encoder(TrainingConfig())
    elif name == "minilm":
        encoder = load_encoder(TrainingConfig(encoder="minilm"))
    else:
        encoder = qwen(*map(int, name.removeprefix("qwen-").split("x")), folder / f"{name}-base")
    encoder.save(str(folder / name), create_model_card=False)
    return folder / name


def qwen(layers: int, width: int, folder: Path) -> SentenceTransformer:
    """Return an untrained Qwen2 over MiniLM's vocabulary that pools the last token."""
    tokenizer = AutoTokenizer.from_pretrained(_minilm_tokenizer(folder))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=128)
    return SentenceTransformer(modules=[transformer, Pooling(width, pooling_mode="lasttoken")], device="cpu")


def _minilm_tokenizer(folder: Path) -> Path:
    load_encoder(TrainingConfig(encoder="minilm")).tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def compare(name: str, folder: Path, rounds: int, *, bf16: bool) -> None:
    """Print a table for one model."""
    queries, docs, steps = SIZES[name]
    model, data = build(name, folder), groups(queries, docs)
    drawn, distinct = token_counts(model, data)
    ours, rival = (functools.partial(arm, model, data, queries, steps) for arm in (crops_arm, rival_arm))
    arms = {"crops": ours, "SentenceTransformerTrainer, MNRL": rival}
    if not name.startswith("static"):
        cached = functools.partial(rival, cached=CHUNK)  # refuses static encoders
        arms |= {
            "SentenceTransformerTrainer, Cached MNRL": cached,
            f"crops, encode_chunk={CHUNK}": functools.partial(ours, encode_chunk=CHUNK),
        }
        if bf16:
            arms["crops, bf16"] = functools.partial(ours, bf16=True)
            arms["SentenceTransformerTrainer, MNRL, bf16"] = functools.partial(rival, bf16=True)
    found = interleaved(arms, rounds)
    print(
        f"\n{name}: Q = {queries}, {docs} documents each; "
        f"{drawn:,} tokens drawn, {distinct:,} in distinct texts"
    )
    print("| | step, CPU s (quartiles) | end to end, CPU s | wall s | distinct tokens/s, step | end to end |")
    print("|---|---|---|---|---|---|")
    for arm, times in found.items():
        (step, low, high), whole = spread(times["step"]), spread(times["whole"])[0]
        print(
            f"| {arm} | {step:.3f} ({low:.3f}-{high:.3f}) | {whole:.3f} | {spread(times['wall'])[0]:.3f} "
            f"| {distinct / step:,.0f} | {distinct / whole:,.0f} |"
        )
    base = found["crops"]
    gains = [
        f"{arm}: step {spread(times['step'])[0] / spread(base['step'])[0]:.2f}x, "
        f"end to end {spread(times['whole'])[0] / spread(base['whole'])[0]:.2f}x"
        for arm, times in found.items()
        if arm != "crops"
    ]
    print(f"gain of encoding each text once: {drawn / distinct:.2f}x. Time over crops': {'; '.join(gains)}")


def compare_losses(folder: Path, rounds: int) -> None:
    """Print the step time of each loss on one static batch."""
    queries, docs, steps = 512, 16, 4
    model, data = build("static", folder), groups(queries, docs)
    losses = {
        "H-InfoNCE": {"loss": "h_infonce"},
        "Softmax-CE": {"loss": "softmax_ce"},
        "InfoNCE, one positive per pass": {"loss": "infonce_graded"},
    }
    arms = {
        name: functools.partial(crops_arm, model, data, queries, steps, **settings)
        for name, settings in losses.items()
    }
    found = interleaved(arms, rounds)
    base = spread(found["H-InfoNCE"]["step"])[0]
    print(f"\nstatic, Q = {queries}, {docs} documents each\n| | step, CPU s | of H-InfoNCE |\n|---|---|---|")
    for name, times in found.items():
        step, low, high = spread(times["step"])
        print(f"| {name} | {step:.3f} ({low:.3f}-{high:.3f}) | {step / base:.2f} |")


def main() -> None:
    """Run what the options name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="static,qwen-2x128,qwen-4x256,minilm", help=", ".join(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="also in bfloat16")
    parser.add_argument("--losses", action="store_true", help="compare the losses instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.losses:
            compare_losses(Path(folder), options.rounds)
            return
        for name in options.models.split(","):
            compare(name, Path(folder), options.rounds, bf16=options.bf16)


if __name__ == "__main__":
    main()
