"""What is served in the benchmark: indexes over composed texts, and the server process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from crops.config import IndexConfig
from crops.retrieval import build_index, load_model
from crops.retrieval.catalogue import item_rows
from crops.retrieval.folder import publish_catalogue, writing
from crops.retrieval.index import Catalogue, sampled

TOPICS = 2000
_BLOCK = 65_536


@dataclass
class Server:
    """A server process."""

    process: subprocess.Popen[str]
    port: int
    start_s: float

    def rss_mb(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def alive(self) -> bool:
        url = f"http://127.0.0.1:{self.port}/healthz"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return self.process.poll() is None and reply.status == 200

    def version(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=10) as reply:
            return json.load(reply)["versions"]["index"]


@contextmanager
def server(uri: str, log: Path, *options: str, threads: int = 1) -> Iterator[Server]:
    """Run `crops serve` on a free port, and stop it at the end."""
    start = time.perf_counter()
    command = [
        sys.executable,
        "-c",
        "from crops.cli import main; main()",
        "serve",
        uri,
        "--port",
        "0",
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, text=True, env=environment
        )
    try:
        port = _port(process, log)
        running = Server(process, port, 0.0)
        while not running.alive():
            time.sleep(0.01)
        running.start_s = time.perf_counter() - start
        yield running
    finally:
        process.terminate()
        process.wait(30)


def _port(process: subprocess.Popen[str], log: Path) -> int:
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if '"listening"' in line:
                return int(json.loads(line)["port"])
        time.sleep(0.02)
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


def words() -> list[str]:
    """Return the words that the static encoder knows."""
    vocabulary = load_model("static").encoder.tokenizer.get_vocab()
    return sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)


def compose(count: int, seed: int = 0) -> list[str]:
    """Return texts of 8 to 14 words: most of a need of 8 words, some of its topic of 60 words, few of any.

    There are 2,000 topics, drawn by Zipf's law, of 50 needs each.
    """
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(7)
    known = np.array(words())
    topics = fixed.integers(0, len(known), (TOPICS, 60))
    needs = fixed.integers(0, 60, (TOPICS, 50, 8))
    weights = 1 / np.arange(1, TOPICS + 1)
    topic = rng.choice(TOPICS, count, p=weights / weights.sum())
    of_need = needs[topic[:, None], rng.integers(0, 50, (count, 1)), rng.integers(0, 8, (count, 14))]
    places = np.where(rng.random((count, 14)) < 0.75, of_need, rng.integers(0, 60, (count, 14)))
    picked = topics[topic[:, None], places]
    rows = np.where(rng.random((count, 14)) < 0.05, rng.integers(0, len(known), (count, 14)), picked)
    lengths = rng.integers(8, 15, count)
    return [" ".join(known[row[:length]]) for row, length in zip(rows, lengths, strict=True)]


def queries(texts: Sequence[str], count: int = 2000) -> list[str]:
    """Return queries of 1 to 4 words that stand together in some text."""
    rng = np.random.default_rng(1)
    asked = []
    for text in (texts[row] for row in rng.integers(0, len(texts), count)):
        split = text.split()
        length = int(rng.integers(1, 5))
        first = int(rng.integers(0, len(split) - length))
        asked.append(" ".join(split[first : first + length]))
    return asked


def prepare(work: Path, items: int, kind: str, encoder: str, *, int8: bool = False) -> tuple[Path, list[str]]:
    """Return an index folder of so many items, built once, and queries.

    With the static encoder the vectors are those of the texts. A transformer would need hours for them: there
    they are random around random centres, which costs a search as much.
    """
    work.mkdir(parents=True, exist_ok=True)
    texts = compose(items)
    folder = work / f"{encoder}-{items}-{kind}{'-int8' if int8 else ''}"
    if not (folder / "current").exists():
        table = work / f"items-{items}.parquet"
        if not table.exists():
            pq.write_table(pa.table({"item_id": np.arange(1, items + 1), "ocr_cover": texts}), table)
        model = load_model(encoder)
        config = IndexConfig(kind=kind, int8=int8)
        if encoder == "static":
            build_index(f"faiss:{folder}", model, table, config)
        else:
            with writing(folder):
                publish_catalogue(folder, _random(table, items, model), config)
    return folder, queries(texts)


def _random(table: Path, items: int, model: object) -> Catalogue:
    rng = np.random.default_rng(0)
    dim = model.encoder.encode(["one"]).shape[1]
    centres = rng.standard_normal((TOPICS, dim)).astype(np.float32)
    blocks = []
    for start in range(0, items, _BLOCK):
        size = min(_BLOCK, items - start)
        block = centres[rng.integers(0, TOPICS, size)] + rng.standard_normal((size, dim)).astype(np.float32)
        blocks.append(block / np.linalg.norm(block, axis=1, keepdims=True))
    rows = item_rows(pq.read_table(table)).combine_chunks()
    return Catalogue(rows, blocks, model.name, model.hash, dim, sampled(blocks, 0), "vectors of the index")
