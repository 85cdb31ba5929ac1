"""`crops index`, `encode`, `search` and `serve`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from crops.cli.options import LogsOption, Options, command, shown
from crops.config import DocumentConfig, IndexConfig, RunConfig
from crops.engine.documents import read_expansion
from crops.errors import CropsError, MissingExtraError
from crops.labels import SEARCH_SOURCES, SOURCE_GROUPS, Source
from crops.outputs import MANIFEST, console, ended, recorded, timed
from crops.pipeline import document_texts, load_retriever, say_other_fields, trained_fields
from crops.pretrained import require_readable
from crops.report.side_by_side import SIMULATED_USERS
from crops.retrieval import (
    IndexManifest,
    build_index,
    load_items,
    load_model,
    load_queries,
    open_index,
    own_ids,
    update_index,
    write_vectors,
)
from crops.retrieval.catalogue import read_item_columns, sample_texts
from crops.retrieval.uri import Texts, locate
from crops.schema import SAMPLES
from crops.text import PLAIN, normalise_query

ExpandedOption = Annotated[
    Path | None, typer.Option(help="Output of `crops expand`: its queries join the texts of items.")
]


@command
def index(
    model: Annotated[str, typer.Argument(help="Model folder, preset or SentenceTransformer.")],
    items: Annotated[
        Path | None,
        typer.Argument(help="Items: a logs folder, mined samples or items.parquet.", show_default=False),
    ] = None,
    out: Annotated[
        str, typer.Option(help="Folder of the index, or milvus:FILE.db or milvus:http://HOST:PORT.")
    ] = "out/index",
    queries: Annotated[
        Path | None, typer.Option(help="Queries to measure recall with.", show_default="documents")
    ] = None,
    update: Annotated[
        Path | None, typer.Option(help="Items to put into the index, or to replace there.")
    ] = None,
    delete: Annotated[
        str | None, typer.Option(help="Ids to take out: A7,17,29 or a Parquet file with item_id.")
    ] = None,
    expanded: ExpandedOption = None,
    *,
    run: Annotated[
        RunConfig,
        Options(
            recipe="recipe",
            fields="document.fields",
            kind="index.kind",
            int8="index.int8",
            dims="index.dims",
        ),
    ],
) -> IndexManifest:
    """Encode a catalogue into a new version of an index, or change the one that is there.

    With --fields that name click_query what led to clicks, on all days of a logs folder, is a part of the
    texts. With --expanded so are the queries that a mining added; without it they are gone again.
    """
    changes = update is not None or delete is not None
    if (items is None) != changes:
        raise CropsError("name the items of a new index, or what to --update or --delete in an old one")
    with timed({}, f"load {model}"):
        loaded = load_model(model)
    say_other_fields(model, run.document.fields)
    added, source = expanded and read_expansion(expanded), items or update
    if source is not None:
        require_readable(model, sample_texts(source), run)
    texts = Texts() if source is None else document_texts(source, run, added)
    with timed({}, f"index in {out}"):
        if items is not None:
            manifest = build_index(out, loaded, items, run.index, queries, texts)
        else:
            gone = _ids(delete) if delete else np.empty(0, dtype=np.int64)
            manifest = update_index(out, loaded, update, gone, texts)
    samples = _samples_of(model, items)
    then = f"crops serve {shown(out)}" + (f" --samples {shown(samples)}" if samples else "")
    then += f" --expanded {shown(expanded)}" if expanded else ""
    found, kind = manifest.recall, manifest.kind + " int8" * manifest.int8
    lines = [
        f"version {manifest.version}: {manifest.count:,} items, {manifest.dim} numbers each, {kind}",
        f"recall@100 against exact search: {found.at_100:.4f} ({found.queries} {found.source})",
    ]
    if manifest.dim < manifest.model_dim and found.full_width is not None:
        lines.append(f"against exact search in all {manifest.model_dim} numbers: {found.full_width:.4f}")
    if found.at_100 < found.target:
        lines.append(f"[yellow]below the target {found.target}[/yellow]: choose another kind or no int8")
    ended("\n".join(lines), then)
    return manifest


def _samples_of(model: str, items: Path | None) -> Path | None:
    """Return the mining behind an index, where it is there: what its model was trained on, or its items."""
    named = [items] if items is not None else []
    if (Path(model) / MANIFEST).is_file():
        made = json.loads((Path(model) / MANIFEST).read_text())
        if isinstance(samples := made.get("samples"), str):
            named.insert(0, recorded(samples, model, made.get("made_in")))
    return next((one for one in named if (one / f"{SAMPLES.name}.parquet").exists()), None)


def _ids(text: str) -> NDArray[np.int64] | list[str]:
    """Return the ids that `--delete` names: numbers of a file, or texts as they are given."""
    if text.endswith(".parquet"):
        if not Path(text).exists():
            raise CropsError(f"--delete {text}: there is no such file")
        ids: NDArray[np.int64] = read_item_columns(Path(text), ())["item_id"].to_numpy()
        return ids
    given = [part.strip() for part in text.split(",")]
    if not all(given):
        raise CropsError(f"--delete {text}: give ids separated by commas, or a Parquet file")
    return given


@command
def encode(
    model: Annotated[str, typer.Argument(help="Model folder, preset or SentenceTransformer.")],
    source: Annotated[
        Path,
        typer.Argument(help="Items (logs folder, mined samples, items.parquet), or queries."),
    ],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    queries: Annotated[
        bool, typer.Option("--queries", help="Encode the queries of a logs folder, mined samples or a table.")
    ] = False,
    dims: Annotated[
        int | None, typer.Option(min=1, help="Keep the first numbers of a vector.", show_default="all")
    ] = None,
    expanded: ExpandedOption = None,
    *,
    run: Annotated[RunConfig, Options(fields="document.fields")],
) -> Path:
    """Write ids, the source's own in source_id, and unit vectors as Parquet; resumes if interrupted."""
    with timed({}, f"load {model}"):
        loaded = load_model(model)
    if queries:
        ids, texts = load_queries(source)
        texts = [loaded.rendering.query(text) for text in texts]
    else:
        document = document_texts(source, run, expanded and read_expansion(expanded))
        ids, texts = load_items(source, None, loaded.rendering.of(document.fields), document.queries)
    role = "query" if queries else "document"
    own = {} if queries else own_ids(source)
    with timed({}, f"encode {len(ids):,} texts"):
        width = write_vectors(loaded, ids, texts, out, role=role, dims=dims, own=own)
    console.print(f"{len(ids):,} vectors of {width} numbers in [bold]{out}[/bold]")
    return out


@command
def search(
    model: Annotated[str, typer.Argument(help="Model folder, or bm25.")],
    query: Annotated[str, typer.Argument(help="What to search for.")],
    items: Annotated[
        Path, typer.Option(help="Items to search: a logs folder, mined samples or items.parquet.")
    ],
    k: Annotated[int, typer.Option(help="Results.")] = 10,
    expanded: ExpandedOption = None,
    *,
    run: Annotated[RunConfig, Options(fields="document.fields")],
) -> list[tuple[str, float, str]]:
    """Search items with a model; prints and returns (item_id, score, text), best first.

    An item_id is as the source writes it.
    """
    text = normalise_query(query)
    if not text:
        raise CropsError("the query is empty; give at least one word")
    document = document_texts(items, run, expanded and read_expansion(expanded))
    ids, texts = load_items(items, None, PLAIN.of(document.fields), document.queries)
    retriever = load_retriever(model, ids, texts, items)
    found, scores = retriever.search([text], k)
    by_id = dict(zip(ids.tolist(), texts, strict=True))
    pairs = zip(found[0].tolist(), scores[0].tolist(), strict=True)
    own = own_ids(items)
    hits = [(own.get(item, str(item)), score, by_id[item]) for item, score in pairs if item >= 0]
    table = Table("rank", "item_id", "score", "text", title=text)
    for rank, (item, score, document) in enumerate(hits, 1):
        table.add_row(str(rank), escape(item), f"{score:.3f}", document)
    console.print(table)
    if not hits:
        console.print("nothing was found: the model knows no word of this query, or no item holds one")
    return hits


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
    expanded: ExpandedOption = None,
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
    try:
        from crops.serving import app, service
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in ("fastapi", "httptools", "prometheus_client", "uvicorn"):
            raise
        raise MissingExtraError(str(error.name), "serve") from error
    key = os.environ.get("CROPS_API_KEY") if api_key is None else api_key  # an empty one is no absent one
    if key is not None:
        app.check_key(key)
    app.listen(serving).close()  # a taken port is told before the models are loaded
    if is_demo(Path(target)):
        given = {"--baseline": baseline, "--samples": samples, "--logs": logs, "--truth": truth}
        if own := [name for name, value in given.items() if value is not None]:
            raise CropsError(
                f"{target} is an output of `crops demo`, which brings its own {', '.join(own)}; "
                "leave it out, or name an index"
            )
        indexes = demo_indexes(Path(target))
        samples, logs = Path(target) / "samples", Path(target) / "checked" / "accepted"
        truth = Path(target) / "world" / "truth"
        serving = serving.model_copy(update={"shown_users": serving.shown_users or SIMULATED_USERS})
    else:
        indexes = {"index": (target, _shown(target))}
        if baseline is not None:
            indexes = {"baseline": (baseline, _shown(baseline)), **indexes}
    app.run(service.open_service(indexes, serving, samples, logs, truth, model, expanded), key)


def _shown(uri: str) -> str:
    """Return what people call an index: not where on this machine, or on which other one, it is."""
    target = locate(uri).target
    address, _, alias = target.partition("#")
    return (alias or "crops") if "://" in address else Path(address).resolve().name


def is_demo(folder: Path) -> bool:
    """Return whether a folder is an output of `crops demo`."""
    return (folder / "models").is_dir() and (folder / "samples").is_dir() and (folder / "world").is_dir()


def demo_indexes(demo: Path) -> dict[str, tuple[str, str]]:
    """Return address and name of the indexes of a demo's baseline and of its model with the most sources.

    They are built on the first call, and again when the demo was.
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
    folder, trained = demo / "index" / f"{mask:03d}", demo / "models" / f"{mask:03d}"
    model, samples = load_model(str(trained)), demo / "samples"
    fields = {"fields": trained_fields(trained) or DocumentConfig().fields}
    texts = document_texts(samples, RunConfig.model_validate({"document": fields}))
    try:
        built = open_index(str(folder))
        built.close()
        fresh = (built.manifest.model_hash, built.manifest.fields) == (model.hash, texts.fields)
    except CropsError:
        fresh = False
    if not fresh:
        console.print(f"[dim]·[/dim] index the items with {_arm(Source(mask))}")
        try:
            build_index(f"faiss:{folder}", model, samples, IndexConfig(), texts=texts)
        except OSError as error:
            raise CropsError(f"{folder} cannot be written: {error}") from error
    return str(folder)


def _arm(sources: Source) -> str:
    """Return what a model is called by what it was trained on."""
    from crops.cli.simulate import BASELINE  # slow to import: not for --help

    if sources == SEARCH_SOURCES:
        return BASELINE
    return "CroPS: " + " + ".join(
        name.upper() if name != "search" else name for name, group in SOURCE_GROUPS.items() if group & sources
    )
