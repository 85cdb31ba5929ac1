"""TREC files for `crops evaluate`: rankings and test sets out, other systems' runs in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from crops.config import RunConfig
from crops.errors import CropsError
from crops.evaluation import Evaluation, ScoringRetriever, TestSets
from crops.evaluation.trec import evaluate_run, read_qrels, read_run, write_qrels, write_run


def evaluate_runs(models: Sequence[str], qrels: Path, run: RunConfig) -> dict[str, Evaluation]:
    """Evaluate run files against qrels, by the name of the file.

    Raises:
        CropsError: a file cannot be read, or run and qrels share no query.
    """
    judged = read_qrels(qrels)
    return {name: evaluate_run(read_run(Path(name)), judged, run.evaluation, run.seed) for name in models}


def write_trec_run(folder: Path, name: str, retriever: ScoringRetriever, testsets: TestSets, k: int) -> None:
    """Write the k best items of every test query as `<name>.run`."""
    ids, scores = retriever.search(testsets.queries["query"].to_pylist(), k)
    write_run(folder / f"{name}.run", testsets.queries["query_id"].to_numpy(), ids, scores.tolist(), name)


def file_names(models: Sequence[str]) -> dict[str, str]:
    """Return a file name for each model: the last part of its path, the whole where two share that.

    Raises:
        CropsError: even the whole paths of two models give one file name.
    """
    last = {model: _plain(Path(model).resolve().name) for model in models}
    twice = {name for name, count in Counter(last.values()).items() if count > 1}
    names = {model: _plain(str(model)) if name in twice else name for model, name in last.items()}
    if len(set(names.values())) < len(names):
        raise CropsError(f"{', '.join(models)}: two of these give one file name; rename a folder")
    return names


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9+._-]+", "-", text).strip("-")


def write_trec_qrels(folder: Path, testsets: TestSets) -> None:
    """Write ct.qrels and qr.qrels, and, by truth, annotation.qrels with its grades."""
    write_qrels(folder / "ct.qrels", testsets.ct)
    write_qrels(folder / "qr.qrels", testsets.qr)
    if testsets.truth is not None:
        write_qrels(folder / "annotation.qrels", testsets.truth.annotation)
