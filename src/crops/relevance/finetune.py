"""Fine-tune theta on judged pairs: a bi-encoder or a cross-encoder over any checkpoint.

The paper's discriminator is such a model with 6 layers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from crops.errors import CropsError
from crops.outputs import progress
from crops.relevance.calibrate import Pairs, balanced_weights
from crops.relevance.encode import MAX_TOKENS, local_folder

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

Head = Literal["bi", "cross"]
"""Cosine of two vectors, or one logit of both texts read together."""
_SCALE, _SHIFT = 8.0, -2.5
"""Where the logit of a cosine starts: near MiniLM's packaged calibration. Both are learned, then dropped:
`crops calibrate` fits them again on pairs that were not trained on."""
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

    What comes out has no calibration yet, and is refused without one: run `crops calibrate` on other pairs.

    Args:
        pairs: judged pairs, of both classes.
        base: `minilm`, or any SentenceTransformer or transformer folder or hub name.
        out: folder of the new model; must not exist.
        head: `bi` or `cross`; the head of the latter starts at random.
        epochs: passes over the pairs.
        batch_size: pairs per step.
        learning_rate: peak; warmed up over a tenth of the steps, then falling to 0.
        seed: of the order, the dropout and a new head.

    Returns:
        The mean loss of each epoch.

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
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total))
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
    _save(model, out)
    return losses


def _rate(step: int, total: int) -> float:
    warm = max(1, round(_WARMUP * total))
    return (step + 1) / warm if step < warm else max(0.0, (total - step) / max(1, total - warm))


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
    bi = SentenceTransformer(str(folder), device="cpu")
    scale, shift = (torch.nn.Parameter(torch.tensor(value)) for value in (_SCALE, _SHIFT))

    def cosine_logits(left: list[str], right: list[str]) -> torch.Tensor:
        a, b = (bi(_features(bi, texts))["sentence_embedding"] for texts in (left, right))
        return scale * torch.nn.functional.cosine_similarity(a, b) + shift

    return bi, cosine_logits, [scale, shift]


def _features(model: SentenceTransformer, texts: list[str]) -> dict[str, Any]:
    return dict(model.preprocess(texts))


def _save(model: CrossEncoder | SentenceTransformer, out: Path) -> None:
    staging = out.with_name(f".{out.name}.tmp")
    staging.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(staging))
    staging.rename(out)
