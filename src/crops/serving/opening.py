"""From addresses to what a server searches; what does not fit together is refused before it starts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crops.config import ServingConfig
from crops.engine.evidence import TrainingEvidence
from crops.errors import CropsError
from crops.outputs import recorded
from crops.retrieval import IndexManifest, Model, load_model
from crops.retrieval.index import VectorIndex, check_model
from crops.retrieval.uri import Location, current_version, locate, open_index, open_retriever
from crops.serving.evidence import Explained, Explainer, Senses
from crops.serving.searcher import Job, Searcher
from crops.serving.service import Service, Slot
from crops.serving.telemetry import log_event, log_failure


def open_searcher(uri: str, name: str, known: Sequence[Model] = ()) -> Searcher:
    """Open an index with the model that it was built with, and search it once.

    Args:
        uri: `FOLDER`, `exact:`, `faiss:`, `milvus:`, `bm25:` or `hybrid:` with what follows.
        name: what people call it.
        known: models that are loaded already.

    Raises:
        CropsError: there is no such index, a file of it is damaged, or its model is gone or another one.
    """
    location = locate(uri)
    if location.scheme == "bm25":
        return _tried(Searcher(name, _vectors(uri), None, open_retriever(uri)))
    index = _vectors(uri)
    same = [one for one in known if one.hash == index.manifest.model_hash]
    loaded = same[0] if same else load_model(_model_of(index.manifest, location))
    check_model(index.manifest, loaded)
    words = open_retriever(uri, loaded) if location.scheme == "hybrid" else None
    return _tried(Searcher(name, index, loaded, words))


def open_desk(
    indexes: Mapping[str, tuple[str, str]],
    config: ServingConfig,
    samples: Path | None = None,
    logs: Path | None = None,
    truth: Path | None = None,
    model: str | None = None,
) -> Desk:
    """Open everything that a server serves.

    Args:
        indexes: address and name of `index` and, to compare with, of `baseline`.
        config: settings of the server.
        samples: the mining behind the model of `index`; no evidence without it.
        logs: the logs of that mining, where they are not where it found them.
        truth: truth folder of a simulation.
        model: encodes the queries in place of the model that an index names; only where it is the same one.

    Raises:
        CropsError: something is not there or does not fit, see `open_searcher` and `Evidence`.
    """
    if config.torch_threads is not None:
        import torch

        torch.set_num_threads(config.torch_threads)
    models = [load_model(model)] if model else []
    slots: dict[str, Slot] = {}
    for place, (uri, name) in indexes.items():
        slots[place] = Slot(open_searcher(uri, name, models), uri)
        models += [one for one in [slots[place].searcher.model] if one is not None]
    if model and slots["index"].searcher.model is not models[0]:
        check_model(slots["index"].searcher.index.manifest, models[0])
    service = Service(slots, config)
    senses = Senses(truth) if truth else None
    if samples is None:
        return Desk(service, senses=senses)
    evidence = TrainingEvidence(samples, logs, k=config.shown_users, limit=config.evidence_queries)
    return Desk(service, evidence, Explainer(evidence, slots["index"].searcher), senses)


def _model_of(manifest: IndexManifest, location: Location) -> str:
    """Return the name of the model of an index, or the path where it is now.

    Raises:
        CropsError: its folder is gone.
    """
    if not Path(manifest.model).is_absolute():
        return manifest.model
    found = recorded(manifest.model, location.folder, manifest.made_in)
    if not found.is_dir():
        raise CropsError(
            f"{location.target} was built with the model {manifest.model}, and there is no such folder any "
            "more; say with --model where it is now"
        )
    return str(found)


def _vectors(uri: str) -> VectorIndex:
    """Open the vectors and items behind any address."""
    location = locate(uri)
    return open_index(f"faiss:{location.target}" if location.scheme in ("bm25", "hybrid") else uri)


def _tried(searcher: Searcher) -> Searcher:
    """Return the searcher after a first search, which loads what is loaded late.

    Raises:
        CropsError: the model's vectors do not fit the index.
    """
    answer = searcher.answer([Job(1, "warm up")])[0]
    if isinstance(answer, Exception):
        raise answer
    return searcher


# ------------------------------------------------------------------------------
# Everything a server knows: its indexes, and the evidence for what they find.


NOTHING = Explained(False, (), {})


@dataclass
class Desk:
    """What the endpoints and the pages ask."""

    service: Service
    evidence: TrainingEvidence | None = None
    """None without the samples that the model was trained on."""
    explainer: Explainer | None = None
    """Replaced together with the index."""
    senses: Senses | None = None
    """In a simulation only."""

    def explain(self, query: str, items: Sequence[int]) -> Explained:
        """Return the evidence for items that the index finds for a normalised query.

        It computes: call it in the queue (`Service.do`).

        Raises:
            UnknownItemError: an item is not in the index.
        """
        return NOTHING if self.explainer is None else self.explainer.explain(query, items)


# ------------------------------------------------------------------------------
# New versions of an index go into service while requests run.


@contextlib.asynccontextmanager
async def watching(desk: Desk) -> AsyncIterator[None]:
    """Look for new versions of all indexes while the block runs."""
    tasks = [
        asyncio.create_task(_watch(desk, name, slot)) for name, slot in desk.service.slots.items() if slot.uri
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(desk: Desk, name: str, slot: Slot) -> None:
    failed: str | None = None
    while True:
        await asyncio.sleep(desk.service.config.reload_s)
        version = failed
        try:
            version = await asyncio.to_thread(current_version, slot.uri or "")
            if version not in (slot.searcher.version, failed):
                await replace(desk, name, slot)
            if version == slot.searcher.version:
                failed = None
        except Exception as error:  # whatever it is, what is in service goes on, and so does the watch
            if version != failed or failed is None:
                desk.service.metrics.reloads.labels(name, "failed").inc()
                log_failure("reload", error, message=True, index=name, version=version)
            failed = version or ""


async def replace(desk: Desk, name: str, slot: Slot) -> None:
    """Open the version of an index that is current now, and search it from the next batch on.

    Raises:
        CropsError: it cannot be opened; the former one stays in service.
    """
    searcher, explainer = await asyncio.to_thread(_opened, desk, name, slot)
    desk.service.replace(name, searcher)
    if explainer is not None:
        desk.explainer = explainer
    desk.service.metrics.reloads.labels(name, "done").inc()
    log_event("reload", index=name, version=searcher.version, items=searcher.index.manifest.count)


def _opened(desk: Desk, name: str, slot: Slot) -> tuple[Searcher, Explainer | None]:
    """Open the current version; runs beside the requests."""
    former = slot.searcher
    models = [one.searcher.model for one in desk.service.slots.values()]
    searcher = open_searcher(slot.uri or "", former.name, [model for model in models if model])
    explainer = desk.explainer.on(searcher) if desk.explainer and name == "index" else None
    return searcher, explainer
