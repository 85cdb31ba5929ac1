"""Training on a CUDA device: the loss, steps against SentenceTransformerTrainer, memory, waits of the host.

Models are built from their configurations with random weights, and texts of random words: nothing is
downloaded. Times are wall times between synchronisations, medians of interleaved rounds, in bfloat16.

    python benchmarks/gpu/bench_gpu.py [--parts loss,steps,memory,waits] [--models minilm,qwen2-0.5b,static]

Without a CUDA device it stops. `--tiny` runs the same code on tiny shapes on any device, to try it: its
tables are no measurement, and say so.
"""

from __future__ import annotations

import argparse
import collections
import functools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, GraniteConfig, GraniteModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1] / "learning"))
from training_arms import Clock, crops_arm, rival_arm, token_counts

from crops.losses import h_infonce
from crops.training import TrainingData

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
TAU = 0.05
WARM_UP = 3
"""Steps or calls before the clock starts."""
MARKS = ["[PAD]", "[UNK]"]
SHAPES: dict[str, dict[str, Any]] = {
    # MiniLM-L6, Qwen2-0.5B and crops' static encoder
    "minilm": {"vocab": 30_522, "width": 384, "inner": 1_536, "layers": 6, "heads": 12},
    "qwen2-0.5b": {"vocab": 151_936, "width": 896, "inner": 4_864, "layers": 24, "heads": 14, "kv": 2},
    "static": {"vocab": 30_522, "width": 256},
}
TINY_SHAPES: dict[str, dict[str, Any]] = {
    "minilm": {"vocab": 64, "width": 16, "inner": 32, "layers": 1, "heads": 2},
    "qwen2-0.5b": {"vocab": 64, "width": 16, "inner": 32, "layers": 1, "heads": 2, "kv": 1},
    "static": {"vocab": 64, "width": 8},
}


class Plan(NamedTuple):
    """How much of everything is run."""

    shapes: dict[str, dict[str, Any]]
    losses: list[tuple[int, int]]
    """Queries and width of a batch of the loss."""
    queries: int
    """Queries of a step, 4 documents each."""
    batches: list[int]
    """Queries of the steps whose memory is measured."""
    rounds: int
    steps: int


FULL = Plan(SHAPES, [(512, 384), (2048, 384), (2048, 896), (8192, 384)], 256, [64, 256, 1024], 5, 20)
TINY = Plan(TINY_SHAPES, [(8, 4)], 8, [8], 1, WARM_UP + 1)


def wait() -> None:
    """Return once the device has done all that it was given."""
    if CUDA:
        torch.cuda.synchronize()


# The loss.


def loss_batch(queries: int, width: int) -> tuple[torch.Tensor, ...]:
    """Return queries and documents on the device, and the rows and labels of 8 to 24 documents a query."""
    random = np.random.default_rng(0)
    row = torch.from_numpy(np.repeat(np.arange(queries), random.integers(8, 25, queries)))
    labels = torch.from_numpy(random.integers(0, 6, len(row)))
    labels[0] = 5
    torch.manual_seed(0)
    query, doc = (
        F.normalize(torch.randn(size, width), dim=1).to(DEVICE).requires_grad_()
        for size in (queries, len(row))
    )
    return query, doc, row, labels


def three_products(query, doc, row, labels) -> None:
    with torch.no_grad():
        scores = query @ doc.T
        _ = scores @ doc
        _ = scores.T @ query


def plain_softmax(query, doc, row, labels) -> None:
    """Each document against all of the batch: what in-batch losses do under autograd."""
    row = row.to(DEVICE, non_blocking=True)
    scores = query @ doc.T / TAU
    own = scores[row, torch.arange(len(doc), device=DEVICE)]
    (torch.logsumexp(scores, 1)[row] - own).mean().backward()


def ours(query, doc, row, labels) -> None:
    h_infonce(query, doc, row, labels, temperature=TAU).backward()


def bench_loss(plan: Plan) -> None:
    print(
        "\n| queries, width | documents | three products ms | h_infonce ms | in-batch softmax ms | peaks MB |"
    )
    print("|---|---|---|---|---|---|")
    functions = (three_products, ours, plain_softmax)
    for queries, width in plan.losses:
        arguments = loss_batch(queries, width)
        times: dict[Callable[..., None], list[float]] = {function: [] for function in functions}
        for number in range(WARM_UP + plan.rounds * plan.steps):
            for function in functions:
                arguments[0].grad = arguments[1].grad = None
                wait()
                begin = time.perf_counter()
                function(*arguments)
                wait()
                if number >= WARM_UP:
                    times[function].append(1000 * (time.perf_counter() - begin))
        peaks = [peak_mb(functools.partial(function, *arguments)) for function in functions]
        cells = " | ".join(f"{statistics.median(found):.2f}" for found in times.values())
        print(f"| {queries}, {width} | {len(arguments[1]):,} | {cells} | {' / '.join(peaks)} |", flush=True)


def peak_mb(call: Callable[[], object]) -> str:
    """Return the device's peak memory of a call above what was held before, in 10^6 bytes; "-" on a CPU."""
    if not CUDA:
        call()
        return "-"
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return f"{(torch.cuda.max_memory_allocated() - before) / 1e6:,.0f}"


# Steps.


def groups(queries: int, vocab: int, docs: int = 4) -> TrainingData:
    """Return groups of random words: queries of 2 to 8, documents of 8 to 48, each drawn for two queries."""
    random = np.random.default_rng(0)

    def texts(count: int, fewest: int, most: int) -> list[str]:
        sizes = random.integers(fewest, most + 1, count)
        return [
            " ".join(f"w{word}" for word in random.integers(0, vocab - len(MARKS), size)) for size in sizes
        ]

    pool = queries * docs // 2
    return TrainingData(
        pa.table(
            {
                "query_id": np.arange(queries),
                "query": texts(queries, 2, 8),
                "searches": np.ones(queries),
            }
        ),
        pa.table({"item_id": np.arange(pool), "text": texts(pool, 8, 48)}),
        pa.table(
            {
                "query_id": np.repeat(np.arange(queries), docs),
                "item_id": np.arange(queries * docs) % pool,
                "label": np.tile([4, 3, 2, 1][:docs], queries),
                "source": np.zeros(queries * docs, dtype=np.int64),
                "weight": np.ones(queries * docs),
            }
        ),
    )


def build(name: str, shape: dict[str, Any], folder: Path) -> Path:
    """Write a model of this shape with random weights; return its folder."""
    vocab, width = shape["vocab"], shape["width"]
    words = [*MARKS, *(f"w{number}" for number in range(vocab - len(MARKS)))]
    words_only = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, MARKS[1]))
    words_only.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    if name == "static":
        modules = [StaticEmbedding(words_only, embedding_dim=width)]
    else:
        base = folder / f"{name}-base"
        common = {
            "vocab_size": vocab,
            "hidden_size": width,
            "intermediate_size": shape["inner"],
            "num_hidden_layers": shape["layers"],
            "num_attention_heads": shape["heads"],
            "max_position_embeddings": 128,
        }
        if "kv" in shape:
            # Qwen2's layers in a class that does not insist on a tokenizer of its own.
            kv = {"num_key_value_heads": shape["kv"], "attention_bias": True, "pad_token_id": 0}
            model = GraniteModel(GraniteConfig(**common, **kv))
        else:
            model = BertModel(BertConfig(**common))
        model.save_pretrained(base)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words_only, pad_token=MARKS[0], unk_token=MARKS[1], model_max_length=128
        )
        tokenizer.save_pretrained(base)
        pooling = Pooling(width, pooling_mode="lasttoken" if "kv" in shape else "mean")
        modules = [Transformer(str(base)), pooling]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / name), create_model_card=False)
    return folder / name


class Stopwatch(Clock):
    """Wall seconds of the steps after the warm-up, between two synchronisations."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._last = steps
        self.seconds = self._start = 0.0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step in (WARM_UP, self._last):
            wait()
            now = time.perf_counter()
            self.seconds, self._start = now - self._start, now


Arms = dict[str, Callable[[Clock], object]]


def arms(model: Path, data: TrainingData, queries: int, steps: int, *, static: bool) -> Arms:
    """Return crops and its rival, and both with bounded activations where there are any."""
    ours, rival = (
        functools.partial(arm, model, data, queries, steps, bf16=True) for arm in (crops_arm, rival_arm)
    )
    found: Arms = {
        "crops": lambda clock: ours(clock=clock),
        "SentenceTransformerTrainer, MNRL": lambda clock: rival(clock=clock),
    }
    if not static:
        found["crops, encode_chunk=64"] = lambda clock: ours(clock=clock, encode_chunk=64)
        found["SentenceTransformerTrainer, Cached MNRL"] = lambda clock: rival(clock=clock, cached=64)
    return found


def bench_steps(name: str, model: Path, plan: Plan) -> None:
    data = groups(plan.queries, plan.shapes[name]["vocab"])
    _, distinct = token_counts(model, data)
    runs: dict[str, list[float]] = collections.defaultdict(list)
    for _ in range(plan.rounds):
        for arm, run in arms(model, data, plan.queries, plan.steps, static=name == "static").items():
            watch = Stopwatch(plan.steps)
            run(watch)
            runs[arm].append(watch.seconds / (plan.steps - WARM_UP))
    print(f"\n{name}: {plan.queries} queries, 4 documents each, {distinct:,} tokens in distinct texts")
    print("| | step ms (lowest-highest) | distinct tokens/s |\n|---|---|---|")
    for arm, seconds in runs.items():
        step = statistics.median(seconds)
        spread = f"{1000 * min(seconds):.1f}-{1000 * max(seconds):.1f}"
        print(f"| {arm} | {1000 * step:.1f} ({spread}) | {distinct / step:,.0f} |", flush=True)


def bench_memory(name: str, model: Path, plan: Plan) -> None:
    print(
        f"\n{name}: peak memory, MB\n| | "
        + " | ".join(f"{queries} queries" for queries in plan.batches)
        + " |"
    )
    print("|---|" + "---|" * len(plan.batches))
    rows: dict[str, list[str]] = collections.defaultdict(list)
    for queries in plan.batches:
        data = groups(queries, plan.shapes[name]["vocab"])
        for arm, run in arms(model, data, queries, WARM_UP, static=name == "static").items():
            try:
                rows[arm].append(peak_mb(functools.partial(run, Clock())))
            except Exception as error:
                if "memory" not in str(error):
                    raise
                rows[arm].append("does not fit")
    for arm, peaks in rows.items():
        print(f"| {arm} | {' | '.join(peaks)} |", flush=True)


class Waits(Clock):
    """Counts where the host waits for the device in the steps after the warm-up."""

    def __init__(self) -> None:
        super().__init__()
        self.places: collections.Counter[str] = collections.Counter()
        self.steps = 0

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step >= WARM_UP:
            _warn_of_waits("warn")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        _warn_of_waits("default")
        self.steps += state.global_step > WARM_UP

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Take down the warnings of the block by the line that caused them."""

        def note(message, category, filename, lineno, *_: object) -> None:
            if "synchronizing CUDA operation" in str(message):
                short = "/".join(Path(filename).parts[-3:])
                self.places[f"{short}:{lineno}"] += 1

        with warnings.catch_warnings():
            # each time, not once a line
            warnings.simplefilter("always")
            warnings.showwarning = note
            yield


def _warn_of_waits(mode: str) -> None:
    if CUDA:
        torch.cuda.set_sync_debug_mode(mode)


def bench_waits(name: str, model: Path, plan: Plan) -> None:
    data = groups(plan.queries, plan.shapes[name]["vocab"])
    print(f"\n{name}: waits of the host for the device, a step\n| | waits | where |\n|---|---|---|")
    for arm, run in arms(model, data, plan.queries, plan.steps, static=name == "static").items():
        waits = Waits()
        with waits.counting():
            run(waits)
        places = ", ".join(
            f"{place} {count / waits.steps:.1f}" for place, count in waits.places.most_common(8)
        )
        total = f"{waits.places.total() / waits.steps:.1f}" if CUDA else "-"
        print(f"| {arm} | {total} | {places or '-'} |", flush=True)


PARTS = {"steps": bench_steps, "memory": bench_memory, "waits": bench_waits}


def main(arguments: list[str] | None = None) -> None:
    """Run what the options name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(["loss", *PARTS]))
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--tiny", action="store_true", help="try the code on tiny shapes, on any device")
    options = parser.parse_args(arguments)
    if not (CUDA or options.tiny):
        raise SystemExit(
            "there is no CUDA device, so there is nothing to measure; --tiny tries the code without"
        )
    plan = TINY if options.tiny else FULL
    where = torch.cuda.get_device_name() if CUDA else "CPU"
    print(f"{where}, torch {torch.__version__}{', TINY: NO MEASUREMENT' if options.tiny else ''}")
    parts = options.parts.split(",")
    if "loss" in parts:
        bench_loss(plan)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(","):
            model = build(name, plan.shapes[name], Path(folder))
            for part in (part for part in parts if part != "loss"):
                PARTS[part](name, model, plan)


if __name__ == "__main__":
    main()
