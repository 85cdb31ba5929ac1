"""From training groups to a plain SentenceTransformer folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crops.config import TrainingConfig
from crops.encoders import load_encoder, only_used_tokens
from crops.errors import CropsError
from crops.outputs import console, publish, timed, write_manifest
from crops.training.data import TrainingData
from crops.training.model import GroupLoss, TextPool, contrast_facts, lowest_anchor
from crops.training.sample import GroupSampler
from crops.training.trainer import Steps, fit

LOG = "training_log.jsonl"


def train(
    data: TrainingData, out: Path, config: TrainingConfig, *, seed: int, cache: Path | None = None
) -> dict[str, Any]:
    """Train an encoder on groups and write it as a SentenceTransformer folder.

    Beside the model, `out` holds manifest.json, config.toml and training_log.jsonl (one line per step: step,
    loss, temperature, learning_rate, grad_norm; loss and temperature are those before the step).

    Args:
        data: the training groups; those without an anchor under the settings' loss are left out.
        out: the folder to write, whole or not at all.
        config: encoder, loss, batches, optimiser.
        seed: of batches and dropout; the same seed gives the same weights on a CPU.
        cache: see `crops.encoders.load_encoder`.

    Returns:
        `seconds` (by part), `loss` (mean of the last tenth of the steps), `temperature`, `groups`,
        `dropped_groups`, and `contrast` (see `contrast_facts`; of the first batch).

    Raises:
        CropsError: fewer than two groups have an anchor, a text has no token, or a step's loss or gradient is
            not finite (then nothing is written).
    """
    usable = data.with_anchors(lowest_anchor(config))
    _require_two_groups(data, usable, config)
    seconds: dict[str, float] = {}
    with publish(out, "train") as folder:
        with timed(seconds, "load the encoder and tokenise"):
            encoder = load_encoder(config, cache)
            pool = TextPool(encoder, usable)
        steps = Steps(GroupSampler(usable, config, seed), pool, config.steps)
        contrast = contrast_facts(steps[0])
        console.print(_start_line(contrast, usable.groups))
        with (
            timed(seconds, "train"),
            only_used_tokens(encoder, pool.tokens) as tokens,
            (folder / LOG).open("w") as log,
        ):
            model = GroupLoss(encoder, tokens, config)
            losses = fit(model, steps, config, seed, folder, log)
        encoder.save(str(folder), create_model_card=False)
        tail = losses[-max(1, len(losses) // 10) :]
        facts = {
            "loss": sum(tail) / len(tail),
            "temperature": model.temperature,
            "groups": usable.groups,
            "dropped_groups": data.groups - usable.groups,
            "contrast": contrast,
        }
        settings = {"seed": seed, "training": config.model_dump(mode="json", exclude_none=True)}
        write_manifest(folder, "train", config=settings, seconds=seconds, **facts)
    return {"seconds": seconds, **facts}


def _require_two_groups(data: TrainingData, usable: TrainingData, config: TrainingConfig) -> None:
    if usable.groups >= 2:
        return
    if data.groups < 2:
        raise CropsError(f"the training data has {data.groups} group(s); contrast needs at least two queries")
    raise CropsError(
        f"of {data.groups} groups only {usable.groups} have a document of label {lowest_anchor(config)} or "
        f"more, which {config.loss} needs as an anchor; lower the bound or keep more sources"
    )


def _start_line(contrast: dict[str, float], groups: int) -> str:
    return (
        f"{groups:,} groups; a step draws {contrast['queries']:,} queries and {contrast['documents']:,} "
        "documents; "
        f"each query is contrasted with {contrast['contrasted']:,.0f} documents of others; "
        f"{contrast['duplicates']:.1%} of the documents are duplicates"
    )
