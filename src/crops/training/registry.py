"""The methods of the paper's tables, each as settings of the one trainer: what it learns from, and negatives.

All methods share encoder, initialisation, queries and their order, steps, and documents per step
(`crops.training.methods.documents_per_step`). What its own sources and sampler leave of that budget, random
documents of the catalogue fill up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crops.errors import CropsError, nearest
from crops.labels import ALL_SOURCES, DEFAULT_LABELS, SEARCH_SOURCES, Source
from crops.training.miners import Schedule, mine_ance, mine_bm25, mine_noise, mine_star, mine_tri
from crops.training.mining import Corpus, Miner

Value = bool | int | float
Point = Mapping[str, Value]
"""Settings of a method; see `SETTINGS`."""

SETTINGS: dict[str, Value] = {
    "learning_rate_scale": 1.0,
    "temperature": 0.05,
    "docs_per_source": 4,
    "min_anchor_label": 1,
    "negatives": 0,
    "in_batch": True,
    "warm_up": 0.2,
    "refresh": 50,
    "query_share": 0.25,
}
"""What a point may set, with its default: a factor of the run's learning rate; the start temperature; most
documents per (label, source); the lowest label that is contrasted with what is below it; most own negatives
per query (0: what the budget of documents leaves); whether other queries' documents are negatives; the share
of the steps before the first index; steps between two indexes; the share of the steps that train the query
tower alone (ADORE)."""


def _grid(*variants: Point) -> tuple[Point, ...]:
    """Return six points: each variant at once and twice the run's learning rate, of two at half as well."""
    scales = (1.0, 2.0) if len(variants) > 2 else (1.0, 2.0, 0.5)
    return tuple({"learning_rate_scale": scale, **variant} for scale in scales for variant in variants)


@dataclass(frozen=True)
class Method:
    """A row of the paper's tables."""

    title: str
    paper: str
    """Where it comes from."""
    trains_on: str
    """What it knows of the logs."""
    keep: Source
    """The sources of its groups."""
    loss: str
    """See `crops.config.TrainingConfig.loss`."""
    grid: tuple[Point, ...]
    """What is tried on the validation part."""
    labels: Mapping[Source, int] | None = None
    """Label by source, the paper's (`crops.labels.DEFAULT_LABELS`) when None."""
    miner: Callable[[Corpus, Schedule], Miner] | None = None
    """Where its own negatives come from."""
    defaults: Point | None = None
    """Settings that differ from `SETTINGS`."""
    live_queries: bool = False
    """Whether a second stage trains the query tower against the documents of the first."""

    def settings(self, point: Point | None) -> dict[str, Value]:
        """Return all settings of the method at a point of its grid.

        Raises:
            CropsError: a setting is unknown.
        """
        for key in point or {}:
            if key not in SETTINGS:
                known = ", ".join(SETTINGS)
                raise CropsError(
                    f"unknown setting '{key}' of a method; known: {known}.{nearest(key, SETTINGS)}"
                )
        return {**SETTINGS, **(self.defaults or {}), **(point or {})}


_CLICKS = "clicked documents as positives, nothing else"
_GRADED = _grid({"docs_per_source": 1}, {"docs_per_source": 2}, {"docs_per_source": 4})
_MINED = _grid({"negatives": 1}, {"negatives": 4})
_P1 = SEARCH_SOURCES | Source.REFORMULATION
_P2 = _P1 | Source.FEED
_CROPS = "CroPS, AAAI 2026 (arXiv 2511.15443)"

METHODS: dict[str, Method] = {
    "nce": Method(
        "NCE",
        "Gutmann & Hyvärinen, AISTATS 2010",
        _CLICKS,
        Source.CLICKED,
        "nce",
        _grid({"temperature": 0.05}, {"temperature": 0.1}, {"temperature": 0.2}),
        miner=mine_noise,
        defaults={"in_batch": False},
    ),
    "dpr": Method(
        "DPR",
        "Karpukhin et al., EMNLP 2020",
        _CLICKS,
        Source.CLICKED,
        "infonce_binary",
        _MINED,
        miner=mine_bm25,
        defaults={"negatives": 1},
    ),
    "ance": Method(
        "ANCE",
        "Xiong et al., ICLR 2021",
        _CLICKS,
        Source.CLICKED,
        "infonce_binary",
        _grid({"in_batch": False, "negatives": 0}, {"in_batch": True, "negatives": 4}),
        miner=mine_ance,
        defaults={"in_batch": False},
    ),
    "star": Method(
        "STAR",
        "Zhan et al., SIGIR 2021 (arXiv 2104.08051), STAR",
        _CLICKS,
        Source.CLICKED,
        "infonce_binary",
        _MINED,
        miner=mine_star,
        defaults={"negatives": 4},
    ),
    "adore": Method(
        "ADORE+STAR",
        "Zhan et al., SIGIR 2021 (arXiv 2104.08051), STAR and ADORE",
        _CLICKS,
        Source.CLICKED,
        "infonce_binary",
        _grid({"query_share": 0.125}, {"query_share": 0.25}, {"query_share": 0.5}),
        miner=mine_star,
        defaults={"negatives": 4},
        live_queries=True,
    ),
    "trisampler": Method(
        "TriSampler",
        "Yang et al., AAAI 2024 (arXiv 2402.11855)",
        _CLICKS,
        Source.CLICKED,
        "infonce_binary",
        _MINED,
        miner=mine_tri,
        defaults={"negatives": 4},
    ),
    "fs_lr": Method(
        "FS-LR",
        "Zheng et al., Full Stage Learning to Rank (arXiv 2405.04844); the baseline of CroPS, Table 3",
        "the stages of search: labels 4, 3, 2, 1",
        SEARCH_SOURCES,
        "h_infonce",
        _GRADED,
    ),
    "plus_p1": Method("+ P1", _CROPS, "FS-LR and P1 at label 5", _P1, "h_infonce", _GRADED),
    "plus_p2": Method("+ P2", _CROPS, "FS-LR, P1, and P2 at label 4", _P2, "h_infonce", _GRADED),
    "crops": Method("CroPS", _CROPS, "FS-LR, P1, P2, and P3 at label 4", ALL_SOURCES, "h_infonce", _GRADED),
    "binary": Method(
        "binary labels", _CROPS, "as CroPS, labels 4 and up alike", ALL_SOURCES, "infonce_binary", _GRADED
    ),
    "p1_at_4": Method(
        "P1 at label 4",
        _CROPS,
        "as CroPS, P1 at label 4",
        ALL_SOURCES,
        "h_infonce",
        _GRADED,
        labels={**DEFAULT_LABELS, Source.REFORMULATION: 4},
    ),
    "crops_anchors": Method(
        "CroPS, high anchors",
        "ours",
        "as CroPS; low labels are negatives only",
        ALL_SOURCES,
        "h_infonce",
        tuple({"docs_per_source": most, "min_anchor_label": label} for most in (1, 2) for label in (2, 3, 4)),
        defaults={"min_anchor_label": 3},
    ),
    "infonce_graded": Method("InfoNCE", _CROPS, "as CroPS", ALL_SOURCES, "infonce_graded", _GRADED),
    "softmax_ce": Method("Softmax-CE", _CROPS, "as CroPS", ALL_SOURCES, "softmax_ce", _GRADED),
    "softmax_ce_lower": Method(
        "Softmax-CE over lower labels", "ours", "as CroPS", ALL_SOURCES, "softmax_ce_lower", _GRADED
    ),
}
"""The trained rows of Tables 2, 3 and 4, and two of ours. `fs_lr` is also Table 3's baseline; `crops` also
its row + P3 and Table 4's H-InfoNCE."""


def find_method(name: str) -> Method:
    """Return a method by its key.

    Raises:
        CropsError: there is none of that name.
    """
    if name not in METHODS:
        raise CropsError(f"unknown method '{name}'; known: {', '.join(METHODS)}.{nearest(name, METHODS)}")
    return METHODS[name]
