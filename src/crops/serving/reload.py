"""New versions of an index go into service while requests run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from crops.retrieval.uri import current_version
from crops.serving.desk import Desk
from crops.serving.explain import Explainer
from crops.serving.opening import open_searcher
from crops.serving.searcher import Searcher
from crops.serving.service import Slot
from crops.serving.telemetry import log_event, log_failure


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
