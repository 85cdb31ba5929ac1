"""Index kinds at 100 thousand, 1 million and 10 million vectors: cost of building, memory, recall, speed.

Vectors are random but clustered (see `vectors`); they are written once and every finished row is kept in
`results.jsonl`, so an interrupted run goes on. Each build and each search runs in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/retrieval/bench_index.py --count 100000 --dim 256
    OMP_NUM_THREADS=1 python benchmarks/retrieval/bench_index.py --count 10000000 --dim 128 --kind ivf-int8
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

KINDS = ("exact", "exact-int8", "hnsw", "hnsw-int8", "ivf", "ivf-int8", "ivfpq")
BLOCK = 100_000
QUERIES = 1_000
SINGLE = 200
"""Queries that are searched one by one."""


def vectors(count: int, dim: int, stream: int) -> np.ndarray:
    """Unit vectors around 5,000 centres of Zipf popularity, in axes whose variance falls as 1 / rank.

    A vector is its centre plus as much noise again; both have about 40 effective dimensions of 256.
    """
    scale = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    fixed = np.random.default_rng(0)
    centres = fixed.standard_normal((5_000, dim), dtype=np.float32) * scale
    weights = 1 / np.arange(1, 5_001)
    own = np.random.default_rng([1, stream])
    which = own.choice(5_000, count, p=weights / weights.sum())
    made = centres[which] + own.standard_normal((count, dim), dtype=np.float32) * scale
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def blocks(folder: Path, count: int, dim: int) -> list[np.ndarray]:
    """Write the vectors once, and map them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{dim}-{number:04d}.npy" for number in range(-(-count // BLOCK))]
    for number, file in enumerate(files):
        if not file.exists():
            staging = file.with_suffix(".tmp")
            with staging.open("wb") as stream:
                np.save(stream, vectors(BLOCK, dim, number))
            staging.replace(file)
    return [np.load(file, mmap_mode="r")[: count - BLOCK * at] for at, file in enumerate(files)]


def memory() -> dict[str, float]:
    """Resident MB of this process: its own, and of mapped files."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    known = {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[-1] == "kB"}
    return {
        "own_mb": round(known["RssAnon"]),
        "mapped_mb": round(known["RssFile"]),
        "peak_mb": round(known["VmHWM"]),
    }


def build(folder: Path, count: int, dim: int, kind: str) -> dict[str, object]:
    import pyarrow as pa

    from crops.config import IndexConfig
    from crops.retrieval.catalogue import item_rows
    from crops.retrieval.folder import publish_catalogue, writing
    from crops.retrieval.index import Catalogue

    made = blocks(folder / "vectors", count, dim)
    items = item_rows(pa.table({"item_id": np.arange(1, count + 1)}))
    queries = vectors(500, dim, 1_000_000)
    catalogue = Catalogue(items, made, "random", "0" * 64, dim, queries, "fresh random vectors")
    name, _, codes = kind.partition("-")
    root = folder / f"{count}-{dim}-{kind}"
    cpu, wall = time.process_time(), time.perf_counter()
    with writing(root):
        manifest = publish_catalogue(root, catalogue, IndexConfig(kind=name, int8=bool(codes))).manifest
    sizes = {name: entry.bytes / 1e6 for name, entry in manifest.files.items()}
    return {
        "build_cpu_s": round(time.process_time() - cpu, 1),
        "build_wall_s": round(time.perf_counter() - wall, 1),
        "build_peak_mb": memory()["peak_mb"],
        "effort": manifest.effort,
        "recall": manifest.recall.at_100,
        "structure_mb": round(sizes.get("structure.faiss", 0)),
        "vectors_mb": round(sizes["vectors.faiss"]),
    }


def search(folder: Path, count: int, dim: int, kind: str) -> dict[str, object]:
    import faiss

    from crops.retrieval import open_index

    faiss.omp_set_num_threads(1)
    before = memory()["own_mb"]
    cpu, wall = time.process_time(), time.perf_counter()
    index = open_index(f"faiss:{folder / f'{count}-{dim}-{kind}'}")
    opened = {
        "open_cpu_s": round(time.process_time() - cpu, 2),
        "open_wall_s": round(time.perf_counter() - wall, 2),
    }
    queries = vectors(QUERIES, dim, 1_000_001)
    index.search(queries[:64], 100)
    singles = []
    for query in queries[:SINGLE]:
        start = time.process_time()
        index.search(query[None], 100)
        singles.append(1000 * (time.process_time() - start))
    start = time.process_time()
    index.search(queries, 100)
    together = QUERIES / (time.process_time() - start)
    used = memory()
    return {
        **opened,
        "own_mb": used["own_mb"] - before,
        "mapped_mb": used["mapped_mb"],
        "one_ms_p50": round(float(np.percentile(singles, 50)), 2),
        "one_ms_p99": round(float(np.percentile(singles, 99)), 2),
        "batch_q_per_cpu_s": round(together),
    }


def measured(folder: Path, row: dict[str, object]) -> dict[str, object]:
    """Run build and search in processes of their own, and keep what they print."""
    for step in ("build", "search"):
        command = [sys.executable, __file__, "--folder", str(folder), "--step", step]
        command += ["--count", str(row["count"]), "--dim", str(row["dim"]), "--kind", str(row["kind"])]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        row |= json.loads(out.splitlines()[-1])
    with (folder / "results.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    return row


def table(rows: list[dict[str, object]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--kind", action="append", choices=KINDS, help="repeatable; all when left out")
    parser.add_argument("--folder", type=Path, default=Path("out/bench-index"))
    parser.add_argument("--step", choices=("build", "search"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step = build if options.step == "build" else search
        print(json.dumps(step(options.folder, options.count, options.dim, options.kind[0])))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / "results.jsonl"
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    rows = []
    for kind in options.kind or KINDS:
        key = {"count": options.count, "dim": options.dim, "kind": kind}
        known = [row for row in done if key.items() <= row.items()]
        rows.append(known[-1] if known else measured(options.folder, dict(key)))
    print(table(rows))


if __name__ == "__main__":
    main()
