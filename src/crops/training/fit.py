"""From training groups to a plain SentenceTransformer folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.encoders import load_encoder, longest, rendering_of, save_encoder
from crops.engine.mined import REPORT, days_seen
from crops.errors import CropsError
from crops.outputs import console, publish, timed, write_manifest
from crops.text import PLAIN
from crops.training import runs
from crops.training.buckets import Lanes, LaneSampler, SplitSamples
from crops.training.groups import GroupSampler, GroupStore, store_groups
from crops.training.model import GroupLoss, Joined, Mining, Share, Steps, contrast_of, objective
from crops.training.pool import TextPool, UsedTokens, compile_transformers, tokenise_pool, wordless_texts
from crops.training.samples import Samples, TrainingData, Wordless
from crops.training.trainer import Evaluation, fit

_FREE = {"checkpoint_steps", "report_to"}
"""Settings that an interrupted run may change: they do not decide its result."""


def train(
    data: TrainingData | Samples | SplitSamples,
    out: str | Path,
    config: TrainingConfig,
    *,
    seed: int,
    cache: str | Path | None = None,
    evaluation: Evaluation | None = None,
    mining: Mining | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Train an encoder on groups and write it as a SentenceTransformer folder.

    Besides the model, `out` holds manifest.json, config.toml, training_log.jsonl (one line per step: step,
    loss, temperature, learning_rate, grad_norm; loss and temperature are those before the step) and
    evaluations.jsonl. Until it is done, the folder .<name>.training next to `out` holds the checkpoints; an
    interrupted run of the same settings and data resumes from the last one, and ends as if it had never
    stopped (bit for bit on a CPU).

    Args:
        data: the training groups, a mined folder, one in buckets (of which each process reads its own, and
            each node keeps its own checkpoints) or tables; groups without an anchor under the settings' loss
            are left out, and so are texts without a token for the encoder.
        out: the folder to write, whole or not at all.
        seed: of batches and dropout; the same seed gives the same weights on a CPU.
        cache: see `crops.encoders.load_encoder`.
        evaluation: evaluated every `eval_steps`; the weights of its best value are the result.
        mining: negatives from a catalogue that join each batch (one process). They depend on more than a
            checkpoint holds: give `fresh` as well.
        fresh: drop the checkpoints of an earlier run.

    Returns:
        `seconds` (by part), `loss` (mean of the last tenth of the steps), `temperature`, `groups`,
        `dropped_groups`, `without_token` (what was left out for that: queries, documents, and groups with
        them), `contrast` (see `contrast_of`; of the first batch, as drawn), and with `mining`
        what it saw (`crops.training.model.Joined.summary`).

    Raises:
        CropsError: fewer than two groups have an anchor, the checkpoints are of other settings or data,
            or a step's loss or gradient is not finite (then nothing is written).
    """
    cache = None if cache is None else Path(cache)
    out = Path(out)
    runs.joined()
    each_node = isinstance(data, SplitSamples)
    work = runs.work_folder(out) / f"node-{runs.node()}" if each_node else runs.work_folder(out)
    seconds: dict[str, float] = {}
    settings: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    published = publish(out, "train") if runs.is_first_process() else contextlib.nullcontext()
    with published as folder, _working(work, fresh, each_node):
        with runs.joined().local_main_process_first() if each_node else runs.joined().main_process_first():
            run = _prepare(data, config, seed, cache, work, seconds, mining)
        learned = _learn(run, config, seed, work, evaluation, seconds, out.name)
        if folder is not None:
            save_encoder(run.encoder, folder)
            for written in (runs.LOG, runs.EVALUATIONS):
                shutil.copy(work / written, folder / written)
            arm = data.arm if isinstance(data, SplitSamples) else data
            samples = str(arm.mined.absolute()) if isinstance(arm, Samples) else None
            noted = {}
            if isinstance(data, SplitSamples):
                samples, learned = data.uri, learned | {"days": data.facts()["days"]}
            elif isinstance(data, Samples) and (data.mined / REPORT).exists():
                noted = {"days": days_seen(data.mined)}
            whole: dict[str, Any] = {"seed": seed, "training": settings}
            if isinstance(arm, Samples):
                whole["document"] = {"fields": arm.fields}
            write_manifest(
                folder, "train", config=whole, seconds=seconds, samples=samples, **noted, **learned
            )
    return {"seconds": seconds, **learned}


class _Run(NamedTuple):
    """What a training needs, ready."""

    encoder: SentenceTransformer
    groups: GroupStore | Lanes
    pool: TextPool
    mining: Mining | None
    without: Wordless | None
    """Queries and documents without a token for this encoder."""
    lost: int
    """Groups that went with them."""
    buckets: int | None
    """Of split samples."""


def _prepare(
    data: TrainingData | Samples | SplitSamples,
    config: TrainingConfig,
    seed: int,
    cache: Path | None,
    work: Path,
    seconds: dict[str, float],
    mining: Mining | None,
) -> _Run:
    """Load the encoder, and store and tokenise the groups without the texts that it cannot read."""
    with timed(seconds, "load the encoder"):
        encoder = load_encoder(config, cache)
        if config.compile:
            compile_transformers(encoder)
    rank, world = runs.processes()
    share = work / f"process-{rank}-of-{world}" if isinstance(data, SplitSamples) else work
    facts = data.facts()["buckets"] if isinstance(data, SplitSamples) else []

    def one(data: TrainingData | Samples, folder: Path) -> GroupStore:
        rendering = data.rendering(rendering_of(encoder)) if isinstance(data, Samples) else PLAIN
        lowest, catalogue = objective(config).lowest_anchor, mining.catalogue if mining else None
        return store_groups(data, folder, rendering, lowest, config.beta, without, catalogue)

    def stored(name: str) -> GroupStore | Lanes:
        if not isinstance(data, SplitSamples):
            return one(data, work / name)
        lanes = {}
        for number in range(rank, len(facts), world):
            bucket = data.fetch(number, facts[number]["sha256"], share / f"bucket-{number}")
            lanes[number] = one(bucket, share / f"{name}-{number}")
        return Lanes(lanes, hashlib.sha256(json.dumps(facts).encode()).hexdigest())

    if isinstance(data, SplitSamples) and mining is not None:
        raise CropsError("mined negatives need samples in one folder, not in buckets")
    if isinstance(data, SplitSamples) and len(facts) < world:
        raise CropsError(f"{data.uri} has {len(facts)} buckets for {world} processes; split into more")
    without: Wordless | None = None
    with timed(seconds, "put the groups together"):
        groups = stored("groups")
    before = groups.groups
    _require_two_groups(groups, config, without)
    decisive = config.model_dump(mode="json", exclude=_FREE) | {"seed": seed}
    tokens = share / f"tokens-{runs.same_run(work, decisive, groups.content)}"
    with timed(seconds, "tokenise"):
        pool = tokenise_pool(encoder, groups, tokens)
    if (without := wordless_texts(groups, pool)) is not None:
        with timed(seconds, "leave out texts without a token"):
            if mining is not None:
                mining = replace(mining, catalogue=mining.catalogue.without(without.documents))
            groups = stored("groups-with-tokens")
            pool = tokenise_pool(encoder, groups, tokens.with_name(f"{tokens.name}-kept"))
        _require_two_groups(groups, config, without)
    return _Run(encoder, groups, pool, mining, without, before - groups.groups, len(facts) or None)


def _require_two_groups(groups: GroupStore | Lanes, config: TrainingConfig, without: Wordless | None) -> None:
    if groups.groups >= 2:
        return
    found = groups.groups + groups.counts["dropped"]
    if found < 2:
        why = ""
        if without is not None:
            queries, documents = map(len, without)
            why = f" ({queries} queries and {documents} documents have no token for {config.encoder})"
        raise CropsError(f"the training data has {found} group(s); contrast needs at least two queries{why}")
    lowest = objective(config).lowest_anchor
    raise CropsError(
        f"of {found} groups only {groups.groups} have a document of label {lowest} or more, "
        f"which {config.loss} needs as an anchor; lower the bound or keep more sources"
    )


def _learn(
    run: _Run,
    config: TrainingConfig,
    seed: int,
    work: Path,
    evaluation: Evaluation | None,
    seconds: dict[str, float],
    name: str,
) -> dict[str, Any]:
    wanted, used = objective(config), UsedTokens(run.encoder, run.pool, whole=run.buckets is not None)
    with used as pool:
        sampler: GroupSampler | LaneSampler
        if isinstance(run.groups, Lanes):
            assert run.buckets is not None
            sampler, share = LaneSampler(run.groups, run.buckets, config, seed), Share()
        else:
            sampler, share = GroupSampler(run.groups, config, seed), Share(*runs.processes())
        contrast = contrast_of(Steps(sampler, pool, config.steps, wanted)[0], config.in_batch)
        limit = longest(run.encoder)
        counts = _counts(run, limit)
        if run.buckets is not None:
            contrast["queries"] = sum(part["queries"] for part in runs.exchanged(contrast))
        if runs.is_first_process():
            console.print(_start_line(contrast, counts, limit))
        steps = Steps(sampler, pool, config.steps, wanted, share)
        model = GroupLoss(run.encoder, pool, config)
        join = None
        if run.mining is not None:
            assert isinstance(run.groups, GroupStore)
            join = Joined(run.mining, run.encoder, pool, run.groups, config, seed)

        def whole(encoder: SentenceTransformer) -> dict[str, float]:  # with all its tokens
            assert evaluation is not None
            with used.lifted():
                return evaluation.metrics(encoder)

        # The newest complete checkpoint that every process finds in its work folder.
        everywhere = set.intersection(*runs.exchanged({path.name for path in runs.checkpoints(work)}))
        newest = [path for path in runs.checkpoints(work) if path.name in everywhere]
        with timed(seconds, "train"):
            fit(
                model,
                steps,
                config,
                seed,
                work,
                resume_from=newest[-1] if newest else None,
                each_node=run.buckets is not None,
                evaluation=evaluation and Evaluation(whole, evaluation.metric),
                join=join,
                name=name,
            )
    log = runs.read_log(work)
    runs.joined().wait_for_everyone()  # then the first process publishes, and removes what all have read
    return {
        "loss": float(log.loss[-max(1, len(log.loss) // 10) :].mean()),
        "temperature": model.temperature,
        "groups": counts["groups"],
        "dropped_groups": counts["dropped"],
        "without_token": {name: counts[f"{name} left out"] for name in ("queries", "documents", "groups")},
        **({"full_documents": counts["full"]} if "full" in counts else {}),
        "contrast": contrast,
        **({} if join is None else join.summary()),
    }


def _counts(run: _Run, limit: int | None) -> Counter[str]:
    """Return how many groups there are and what was left out or cut, in the buckets of all processes."""
    own = Counter({**run.groups.counts, "groups left out": run.lost})
    if limit is not None and run.buckets is None:  # buckets share documents, which would count again
        lengths = np.concatenate([np.diff(side.tokens.offsets) for side in run.pool.sides])
        own["full"] = int((lengths[run.groups.groups :] >= limit).sum())
    parts = [(own, run.without)] if run.buckets is None else runs.exchanged((own, run.without))
    counts: Counter[str] = Counter()
    for part, _ in parts:
        counts.update(part)
    for number, name in enumerate(Wordless._fields):  # several may have found the same text
        found = (without[number] for _, without in parts if without is not None)
        counts[f"{name} left out"] = len(frozenset().union(*found))
    return counts


def _start_line(contrast: dict[str, float], counts: Counter[str], limit: int | None) -> str:
    line = (
        f"{counts['groups']:,} groups; a step draws {contrast['queries']:,} queries and "
        f"{contrast['documents']:,} documents ({contrast['texts']:,} distinct texts); "
        f"each query is contrasted with {contrast['contrasted']:,.0f} documents of others; "
        f"{contrast['duplicates']:.1%} of the documents are duplicates"
    )
    remarks = (
        (counts["queries left out"], "queries have no token for this encoder and are left out"),
        (counts["documents left out"], "documents have no token for this encoder and are left out"),
        (counts["groups left out"], "groups were left out with them"),
        (counts["dropped"], "groups have no anchor and are left out"),
        (counts["undocumented"], "queries have no document and are left out"),
        (counts["one_label"], "groups have one label only: other queries' documents are their only contrast"),
        (counts["full"], f"documents fill the {limit} tokens that the encoder reads: what is longer is cut"),
    )
    return "; ".join([line, *(f"{count:,} {remark}" for count, remark in remarks if count)])


@contextlib.contextmanager
def _working(work: Path, fresh: bool, each_node: bool) -> Iterator[None]:
    """Keep the work folder for as long as a run may resume from it: from its first checkpoint to success."""
    if not runs.is_first_process(each_node):
        yield
        return
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    runs.drop_partial(work)
    try:
        yield
    except BaseException:
        if runs.last_checkpoint(work) is None:
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
    if each_node:
        with contextlib.suppress(OSError):  # another node's is there yet
            work.parent.rmdir()
