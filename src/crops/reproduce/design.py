"""The design of a reproduction: which methods are measured in which worlds, with which settings.

A cell is one method in one world with one seed. Everything it needs is a folder named by the hash of what it
depends on, shared by all cells that depend on the same: one world per seed, one mining per set of settings,
one set of test sets per world.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from crops.config import (
    RECIPES,
    DecayConfig,
    DocumentConfig,
    PlatformConfig,
    PromotionConfig,
    RunConfig,
    Section,
    TrainingConfig,
    with_settings,
)
from crops.errors import CropsError, nearest
from crops.labels import Source
from crops.pipeline import rewordings_only
from crops.platform import SIZES, platform_version

FEWEST_RESAMPLES = 100
"""Intervals of a table come from all of its seeds: those of a single cell are not shown."""


@dataclass(frozen=True)
class World:
    """A simulated platform; equal worlds are simulated once."""

    name: str
    """One of `WORLDS`, or what a factor of the map was set to."""
    platform: PlatformConfig
    seed: int
    collection: str = ""
    """Hash of the judged collection's files."""

    @property
    def label(self) -> str:
        """Return the name that files and messages use, e.g. `small-default-0`."""
        return f"{self.platform.size}-{self.name}-{self.seed}"


@dataclass(frozen=True)
class Cell:
    """What is to be measured; equal cells are measured once."""

    world: World
    method: str
    """`bm25`, a key of `crops.training.methods.METHODS`, or of `VARIANTS`."""
    run: RunConfig
    """Resolved settings; `seed` and `platform` are the world's."""
    generated: str = ""
    """Hash of the documents that an LLM wrote; empty without, and for a method that does not learn from them:
    its cell stays when more are written."""
    point: Mapping[str, Any] = field(default_factory=dict)
    """Tuned settings of the method; its own defaults where empty."""
    validated: bool = False
    """Train without the validation queries, and evaluate on them along the way."""
    repeat: int = 0
    """Which training of the method in its world: each has a seed of its own."""

    @property
    def trained(self) -> str:
        """Return the method that is trained: `bm25`, or a key of `crops.training.methods.METHODS`."""
        return VARIANTS[self.method].method if self.method in VARIANTS else self.method

    @property
    def rewordings(self) -> Cell | None:
        """Return the cell whose mining, of rewordings without theta, joins the texts; None if none does."""
        if self.method not in VARIANTS or not VARIANTS[self.method].expanded:
            return None
        return replace(self, run=rewordings_only(self.run), generated="")

    def name(self) -> str:
        """Return the folder's name: what it is, and the hash of all it depends on."""
        from crops.training.methods import find_method  # torch takes seconds to import: not for --help

        training: dict[str, Any] | None = None
        added: dict[str, str] = {}
        if self.trained != BM25:
            # A cell of another definition of the method is another cell.
            method = find_method(self.trained)
            training = self.run.training.model_dump(mode="json") | {
                "settings": method.settings(self.point or None),
                "keep": int(method.keep),
                "loss": method.loss,
                "labels": {int(source): label for source, label in (method.labels or {}).items()},
            }
        if self.rewordings is not None:
            added = {"expanded": expansion_name(self)}
        if self.rewordings is not None or self.run.document.counts_clicks:
            added["queries"] = "first"  # they once stood last, where long texts are cut
        if self.repeat:
            added["repeat"] = str(self.repeat)
        return named(
            f"{self.method}-{self.world.label}" + ("-validated" if self.validated else ""),
            **added,
            method=self.method,
            mined=mined_name(self),
            tests=sets_name(self),
            training=training,
            point=dict(self.point),
            evaluation=self.run.evaluation.model_dump(mode="json"),
            validated=self.validated,
            results=RESULTS_VERSION,
        )


def learns_from_generated(method: str) -> bool:
    """Return whether a method learns from documents that an LLM wrote (P3)."""
    from crops.training.methods import find_method  # torch takes seconds to import: not for --help

    method = VARIANTS[method].method if method in VARIANTS else method
    return method != BM25 and bool(find_method(method).keep & Source.KNOWLEDGE)


def base_run(world: World, config: RunConfig) -> RunConfig:
    """Return the settings of the cells of a world: its seed and platform, all else as `config`."""
    evaluation = config.evaluation.model_copy(update={"resamples": FEWEST_RESAMPLES})
    return config.model_copy(
        update={"seed": world.seed, "platform": world.platform, "evaluation": evaluation}
    )


def world_name(world: World) -> str:
    """Return the folder's name of a world; the platform's own model is the default's, always."""
    return named(
        world.label,
        platform=world.platform.model_dump(mode="json"),
        seed=world.seed,
        collection=world.collection,
        deployed=TrainingConfig().model_dump(mode="json"),
        version=platform_version(),
    )


def mined_name(cell: Cell) -> str:
    """Return the folder's name of the samples of a cell."""
    return named(
        cell.world.label,
        world=world_name(cell.world),
        engine=_dumped(cell.run.engine),
        relevance=_dumped(cell.run.relevance),
        generated=cell.generated,
        results=RESULTS_VERSION,
        **_text(cell.run.document),
        **({"oracle": cell.method} if cell.method in ORACLES else {}),
    )


def expansion_name(cell: Cell) -> str:
    """Return the folder's name of the queries that join the texts of a cell."""
    assert cell.rewordings is not None
    expansion = cell.run.expansion.model_dump(mode="json")
    return named(cell.world.label, mined=mined_name(cell.rewordings), expansion=expansion)


_NEWER = {"promotion": PromotionConfig().model_dump(mode="json"), "evidence": None, "p4": DecayConfig().p4}
"""Settings that cells were named without: a name keeps where they have these values."""


def _dumped(section: Section) -> dict[str, Any]:
    """Return the settings that name a folder."""

    def kept(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: kept(value) if isinstance(value, Mapping) else value
            for name, value in values.items()
            if not (name in _NEWER and value == _NEWER[name])
        }

    return kept(section.model_dump(mode="json"))


def _text(document: DocumentConfig) -> dict[str, Any]:
    """Return what stands for a document, where it is not the default: cells of that keep their names."""
    return {} if document == DocumentConfig() else {"document": document.model_dump(mode="json")}


def sets_name(cell: Cell) -> str:
    """Return the folder's name of the test sets of a cell: those of the default engine, whatever it mined."""
    return named(
        cell.world.label,
        world=world_name(cell.world),
        evaluation=cell.run.evaluation.model_dump(mode="json", exclude={"recall_k", "ndcg_k", "resamples"}),
        relevance=_dumped(cell.run.relevance),
        results=RESULTS_VERSION,
    )


def named(label: str, **facts: object) -> str:
    """Return a folder's name: the label and 12 hex digits over the facts."""
    written = json.dumps(facts, sort_keys=True, default=str)
    return f"{label}-{hashlib.sha256(written.encode()).hexdigest()[:12]}"


# What CroPS (arXiv 2511.15443) published, beside which our figures stand, and the rows of its tables.


CT, QR, NDCG = "recall@100/ct", "recall@100/qr", "ndcg_exp2@4/pool"
"""The paper's three columns: Recall@100 on clicks and on reformulations, NDCG@4 on annotated lists."""
QR_TRUTH, QR_EDITOR, TRUE = "recall@100/qr_truth", "recall@100/qr_editor", "true_recall@100"
BM25 = "bm25"
ORACLE_THETA, ORACLE_SOURCE = "oracle_theta", "oracle_source"
ORACLES = (ORACLE_THETA, ORACLE_SOURCE)
"""Methods that the truth chooses positives for: what a source, or a theta, could bring at most."""


@dataclass(frozen=True)
class Variant:
    """A row of ours whose documents have other texts."""

    method: str
    """What is trained: `bm25`, or a key of `crops.training.methods.METHODS`."""
    expanded: bool = False
    """Whether the queries of rewordings join the texts that are searched (`crops expand`)."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """By dotted name."""


CLICKS = {"document.fields": RECIPES["recommended"]["document.fields"]}
VARIANTS: dict[str, Variant] = {
    "bm25_expanded": Variant(BM25, expanded=True),
    "bm25_clicks": Variant(BM25, settings=CLICKS),
    "bm25_clicks_expanded": Variant(BM25, expanded=True, settings=CLICKS),
    "fs_lr_expanded": Variant("fs_lr", expanded=True),
    "fs_lr_clicks": Variant("fs_lr", settings=CLICKS),
    "crops_expanded": Variant("crops", expanded=True),
    "crops_clicks": Variant("crops", settings=CLICKS),
    "crops_clicks_expanded": Variant("crops", expanded=True, settings=CLICKS),
    "recommended": Variant("recommended", expanded=True, settings=RECIPES["recommended"]),
}
RECOMMENDED = ("recommended", "ours: the recipe `recommended`", None)


@dataclass(frozen=True)
class Row:
    """A row of a table: the method that fills it and the paper's figures."""

    method: str
    """`bm25`, a key of `crops.training.methods.METHODS`, or of `VARIANTS`."""
    title: str
    paper: tuple[float, float, float] | None
    """CT, QR, NDCG@4, in %; None for a row of ours."""
    hours: float | None = None
    """Training time (Table 4)."""

    def published(self) -> Mapping[str, float]:
        """Return the paper's figures by metric, shares in [0, 1]."""
        shares = (value / 100 for value in self.paper or ())
        return dict(zip((CT, QR, NDCG), shares, strict=False))


@dataclass(frozen=True)
class Layout:
    """A table of the paper."""

    name: str
    title: str
    reference: str
    """The method that all other rows are compared with."""
    rows: tuple[Row, ...]
    settings: str | None = None
    """The method whose tuned settings all rows are trained with, so that an ablation changes one thing a row;
    each row has its own when None."""

    @property
    def methods(self) -> list[str]:
        """Return the methods of its rows."""
        return [row.method for row in self.rows]

    def settings_of(self, method: str) -> str | None:
        """Return the method whose tuned settings a row is trained with; None for its own."""
        return "crops" if method in ORACLES else self.settings


_ORACLE_ROWS = (
    Row(ORACLE_THETA, "oracle θ: P1 and P2 that are right for the query", None),
    Row(ORACLE_SOURCE, "oracle source: ten right documents a query", None),
)
"""The headroom of a table, with the settings of CroPS: the same cells in each."""
LAYOUTS: dict[str, Layout] = {
    "table2": Layout(
        "table2",
        "Table 2: CroPS next to other ways to train a retriever",
        "crops",
        (
            Row(BM25, "BM25", (42.9, 22.5, 64.8)),
            Row("nce", "NCE", (53.6, 27.5, 65.4)),
            Row("dpr", "DPR", (56.0, 30.7, 66.5)),
            Row("ance", "ANCE", (56.9, 31.3, 67.1)),
            Row("adore", "ADORE+STAR", (59.4, 31.9, 67.4)),
            Row("trisampler", "TriSampler", (59.8, 32.2, 66.9)),
            Row("fs_lr", "FS-LR", (59.6, 33.0, 66.0)),
            Row("crops", "CroPS", (69.1, 40.1, 67.0)),
            Row("bm25_expanded", "ours: BM25, expanded", None),
            Row("bm25_clicks", "ours: BM25, click queries", None),
            Row("bm25_clicks_expanded", "ours: BM25, click queries, expanded", None),
            *_ORACLE_ROWS,
            Row(*RECOMMENDED),
        ),
    ),
    "table3": Layout(
        "table3",
        "Table 3: what each source and each label adds",
        "fs_lr",
        (
            Row("fs_lr", "baseline (FS-LR)", (59.6, 33.0, 66.0)),
            Row("plus_p1", "+ P1", (63.3, 36.1, 66.5)),
            Row("plus_p2", "+ P2", (65.7, 37.4, 66.7)),
            Row("crops", "+ P3 = CroPS", (69.1, 40.1, 67.0)),
            Row("binary", "CroPS, binary labels", (59.9, 32.1, 66.7)),
            Row("p1_at_4", "CroPS, P1 at label 4", (67.1, 38.4, 66.8)),
            Row("crops_anchors", "ours: CroPS, high anchors", None),
            Row("fs_lr_expanded", "ours: baseline, expanded", None),
            Row("crops_expanded", "ours: CroPS, expanded", None),
            Row("fs_lr_clicks", "ours: baseline, click queries", None),
            Row("crops_clicks", "ours: CroPS, click queries", None),
            Row("crops_clicks_expanded", "ours: CroPS, click queries, expanded", None),
            *_ORACLE_ROWS,
            Row(*RECOMMENDED),
        ),
        settings="crops",
    ),
    "table4": Layout(
        "table4",
        "Table 4: losses on the same samples",
        "crops",
        (
            Row("infonce_graded", "InfoNCE, one positive at a time", (67.8, 38.9, 66.9), 178),
            Row("softmax_ce", "Softmax-CE", (65.3, 37.8, 66.8), 89),
            Row("crops", "H-InfoNCE (CroPS)", (69.1, 40.1, 67.0), 88),
            Row("softmax_ce_lower", "ours: Softmax-CE over lower labels", None),
            *_ORACLE_ROWS,
            Row(*RECOMMENDED),
        ),
    ),
}

FIG6 = {"very relevant": 0.813, "relevant": 0.145, "irrelevant": 0.042}
"""Fig. 6: 1,000 documents that Qwen2.5-14B wrote, judged."""
FIG7 = (0.05, 0.03)
"""Fig. 7: the temperature at the start, and about where it ends."""


# The worlds that a claim is tried in: behaviour models, the null world, the bubble, human grades.


DEFAULT = "default"
JUDGED = "judged"

WORLDS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        DEFAULT: {},
        "dcm": {"click_model": "dcm"},
        "pbm": {"click_model": "pbm"},
        "null": {"informative": False},
        "weak": {"bubble": "weak"},
        "strong": {"bubble": "strong"},
        "v2": {"edition": "v2"},
        JUDGED: {},
    }
)
"""Settings of the platform in which each differs from the default, whose click model is `dbn`; `null`: later
queries and the feed say nothing about a need; `v2`: the edition with headroom; `judged`: real texts and human
grades, from a folder."""
_COLLECTION = ("docs.parquet", "queries.parquet", "qrels.parquet")


def parse_worlds(names: str) -> list[str]:
    """Return the worlds of a comma-separated list; `all` is all but the judged one, which needs a folder.

    Raises:
        CropsError: a name is unknown or repeated.
    """
    if names == "all":
        return [name for name in WORLDS if name != JUDGED]
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in WORLDS:
            known = ", ".join(WORLDS)
            raise CropsError(f"unknown world '{name}'; known: {known}, all.{nearest(name, WORLDS)}")
    if len(set(wanted)) < len(wanted):
        raise CropsError(f"worlds {names}: one is named twice; name each once")
    return wanted


def parse_seeds(seeds: str) -> list[int]:
    """Return the seeds: `3` = 0, 1, 2; `4,7` = exactly these; `5,` = seed 5 alone.

    Raises:
        CropsError: one is no number, negative or repeated.
    """
    try:
        wanted = [int(part) for part in seeds.split(",") if part.strip()]
    except ValueError:
        raise CropsError(f"seeds '{seeds}': give how many, e.g. 3, or a list, e.g. 0,1,2") from None
    if "," not in seeds:
        wanted = list(range(wanted[0])) if wanted else []
    if not wanted or min(wanted) < 0:
        raise CropsError(f"seeds '{seeds}': give at least one, none below 0")
    if repeated := sorted({seed for seed in wanted if wanted.count(seed) > 1}):
        raise CropsError(
            f"seeds '{seeds}': {repeated[0]} is named twice, and would count twice; name it once"
        )
    return wanted


def build_world(name: str, size: str, seed: int, judged: Path | None = None) -> World:
    """Return the world of a name in `WORLDS` and a size in `crops.platform.SIZES`.

    `judged` is the folder of docs, queries and qrels of the world of that name.

    Raises:
        CropsError: the size is unknown, or the judged collection is not named or not there.
    """
    if size not in SIZES:
        raise CropsError(f"unknown size '{size}'; known: {', '.join(SIZES)}.{nearest(size, SIZES)}")
    settings = dict(WORLDS[name])
    if name != JUDGED:
        return World(name, PlatformConfig.model_validate({"size": size, **settings}), seed)
    if judged is None:
        raise CropsError("the world 'judged' needs --judged FOLDER with docs, queries and qrels as Parquet")
    settings["world"] = str(judged.resolve())
    platform = PlatformConfig.model_validate({"size": size, **settings})
    return World(name, platform, seed, content_hash([judged / file for file in _COLLECTION]))


def content_hash(files: Sequence[Path]) -> str:
    """Return 16 hex digits of what the files hold.

    Raises:
        CropsError: one cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise CropsError(f"{file}: cannot be read: {error}") from error
    return digest.hexdigest()[:16]


# Which cells a table, a figure or the map needs.


FIG6_NAME, FIG7_NAME, MAP_NAME, ALL = "fig6", "fig7", "map", "all"
TARGETS = (*LAYOUTS, FIG6_NAME, FIG7_NAME, MAP_NAME, ALL)
"""`all` is every table and figure; the map is a night's work of its own."""
SPEED_METHODS = tuple(row.method for row in LAYOUTS["table4"].rows if row.hours is not None)
FIG7_METHODS = ("fs_lr", "crops")


@dataclass(frozen=True)
class Design:
    """What all cells of a run have in common."""

    config: RunConfig
    points: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Tuned settings by method."""
    generated: Mapping[str, Path] = field(default_factory=dict)
    """File of documents that an LLM wrote, by the label of the world; `""` stands for all others."""
    trainings: int = 1
    """Trainings of each cell of a table; one of those that are watched or drawn."""

    def documents(self, world: World) -> Path | None:
        """Return the file of generated documents of a world."""
        return self.generated.get(world.label, self.generated.get(""))

    def files(self, cells: Iterable[Cell]) -> dict[str, Path]:
        """Return the files of generated documents of cells, by their hash."""
        return {cell.generated: file for cell in cells if (file := self.documents(cell.world))}

    def cell(
        self, world: World, method: str, *, settings: str | None = None, validated: bool = False
    ) -> Cell:
        """Return a cell of a world, with the tuned settings of the method `settings`; its own when None."""
        documents = self.documents(world) if learns_from_generated(method) else None
        variant = VARIANTS.get(method, Variant(method))
        return Cell(
            world,
            method,
            base_run(world, with_settings(self.config, variant.settings)),
            content_hash([documents]) if documents else "",
            {} if method == "recommended" else self.points.get(settings or variant.method, {}),
            validated,
        )

    def cells(self, target: str, world: World) -> list[Cell]:
        """Return the cells of a table, of fig7, or of `all`, in a world."""
        if target == ALL:
            return [cell for name in (*LAYOUTS, FIG7_NAME) for cell in self.cells(name, world)]
        if target == FIG7_NAME:
            return [self.cell(world, method) for method in FIG7_METHODS]
        if target == FIG6_NAME:
            return []
        layout = LAYOUTS[target]
        cells = [self.cell(world, row.method, settings=layout.settings_of(row.method)) for row in layout.rows]
        trained = [cell for cell in cells if cell.trained != BM25]
        cells += [replace(cell, repeat=n) for n in range(1, self.trainings) for cell in trained]
        if target == "table4":
            cells += [self.cell(world, method, validated=True) for method in SPEED_METHODS]
        return cells


def parse_target(name: str) -> str:
    """Return a target.

    Raises:
        CropsError: there is none of that name.
    """
    if name not in TARGETS:
        raise CropsError(f"unknown table '{name}'; known: {', '.join(TARGETS)}.{nearest(name, TARGETS)}")
    return name


def stored_points(encoder: str) -> dict[str, dict[str, Any]]:
    """Return the settings that were tuned for an encoder and are packaged, by method; BM25's for all."""
    file = importlib.resources.files("crops.reproduce").joinpath("tuned.toml")
    if not file.is_file():
        return {}
    stored: dict[str, Any] = tomllib.loads(file.read_text())
    return {**stored.get(encoder, {}), **({BM25: stored[BM25]} if BM25 in stored else {})}


def generated_files(folder: Path | None, packaged: Path) -> dict[str, Path]:
    """Return the files of generated documents, by the label of their world; the packaged one for all others.

    The folder holds `<size>-<world>-<seed>.jsonl`, e.g. small-default-0.jsonl.

    Raises:
        CropsError: the folder is not there or holds no such file.
    """
    if folder is None:
        return {"": packaged}
    found = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
    if not found:
        raise CropsError(f"{folder}: no <size>-<world>-<seed>.jsonl in it, e.g. small-default-0.jsonl")
    return {"": packaged, **found}


# Which code made a cell.


RESULTS_VERSION = 1
"""Raised by hand when a change of the code changes results: cells of another number are not read."""
METRICS_VERSION = 2
"""Raised by hand when an evaluation has more metrics than before: cells of a lower number stay good and lack
them, until `crops reproduce --again` makes them anew."""
CODE_VERSION = "9085a02c1eb8"
"""Changed by hand when the code from logs to figures changes so that figures may differ in ways that do not
count (last digits, another order of ties): every cell notes it, and a table of cells that differ says so."""
