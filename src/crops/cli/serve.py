"""`crops serve`: search over HTTP, and the explorer."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from crops.cli.options import LogsOption, Options, command
from crops.config import IndexConfig, RunConfig
from crops.errors import CropsError, MissingExtraError
from crops.labels import SEARCH_SOURCES, SOURCE_GROUPS, Source
from crops.outputs import console
from crops.report.side_by_side import SIMULATED_USERS


@command
def serve(
    target: Annotated[str, typer.Argument(help="An index (folder or URI), or an output of `crops demo`.")],
    baseline: Annotated[
        str | None, typer.Option(help="A second index, to compare with: folder or URI.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Output of `crops mine` that the model was trained on: the evidence.")
    ] = None,
    logs: LogsOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="Encodes queries: a copy of the index's model in another place."),
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="Truth of a simulation: names the senses.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="CROPS_API_KEY", help="What requests must carry.", show_envvar=True)
    ] = None,
    *,
    run: Annotated[
        RunConfig,
        Options(
            host="serving.host",
            port="serving.port",
            shown_users="serving.shown_users",
            log_queries="serving.log_queries",
        ),
    ],
) -> None:
    """Answer searches over HTTP, and show in a browser what is found and why."""
    serving = run.serving
    service, server = _server()
    key = os.environ.get("CROPS_API_KEY") if api_key is None else api_key  # an empty one is no absent one
    if key is not None:
        server.check_key(key)
    if is_demo(Path(target)):
        indexes = demo_indexes(Path(target))
        samples, logs = Path(target) / "samples", Path(target) / "checked" / "accepted"
        truth = Path(target) / "world" / "truth"
        serving = serving.model_copy(update={"shown_users": serving.shown_users or SIMULATED_USERS})
    else:
        indexes = {"index": (target, _shown(target))}
        if baseline is not None:
            indexes = {"baseline": (baseline, _shown(baseline)), **indexes}
    server.run(service.open_service(indexes, serving, samples, logs, truth, model), key)


def _shown(uri: str) -> str:
    """Return what people call an index: not where on this machine, or on which other one, it is."""
    from crops.retrieval.uri import locate

    target = locate(uri).target
    address, _, alias = target.partition("#")
    return (alias or "crops") if "://" in address else Path(address).resolve().name


def is_demo(folder: Path) -> bool:
    """Return whether a folder is an output of `crops demo`."""
    return (folder / "models").is_dir() and (folder / "samples").is_dir() and (folder / "world").is_dir()


def demo_indexes(demo: Path) -> dict[str, tuple[str, str]]:
    """Return address and name of the indexes of a demo's baseline and of its model with the most sources.

    They are built on the first call, and again when the demo was.

    Raises:
        CropsError: the demo has not trained both models, or its folder cannot be written.
    """
    masks = sorted(int(folder.name) for folder in (demo / "models").iterdir() if folder.name.isdigit())
    if len(masks) < 2 or masks[0] != SEARCH_SOURCES:
        raise CropsError(
            f"{demo}: the demo did not end, it has no baseline or nothing to compare; run it again"
        )
    return {
        name: (_demo_index(demo, mask), _arm(Source(mask)))
        for name, mask in (("baseline", masks[0]), ("index", masks[-1]))
    }


def _demo_index(demo: Path, mask: int) -> str:
    from crops.retrieval import build_index, load_model, open_index

    folder = demo / "index" / f"{mask:03d}"
    model = load_model(str(demo / "models" / f"{mask:03d}"))
    try:
        built = open_index(str(folder))
        built.close()
        fresh = built.manifest.model_hash == model.hash
    except CropsError:
        fresh = False
    if not fresh:
        console.print(f"[dim]·[/dim] index the items with {_arm(Source(mask))}")
        try:
            build_index(f"faiss:{folder}", model, demo / "samples", IndexConfig())
        except OSError as error:
            raise CropsError(f"{folder} cannot be written: {error}") from error
    return str(folder)


def _arm(sources: Source) -> str:
    """Return what a model is called by what it was trained on."""
    from crops.cli.demo import BASELINE  # slow to import: not for --help

    if sources == SEARCH_SOURCES:
        return BASELINE
    return "CroPS: " + " + ".join(
        name.upper() if name != "search" else name for name, group in SOURCE_GROUPS.items() if group & sources
    )


def _server() -> tuple[ModuleType, ModuleType]:
    """Import what the extra brings."""
    try:
        from crops.serving import server, service
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in (
            "fastapi",
            "httptools",
            "prometheus_client",
            "uvicorn",
        ):
            raise MissingExtraError(error.name, "serve") from error
        raise
    return service, server
