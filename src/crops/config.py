"""A run: one TOML, validated; every default of the project is here and nowhere else.

A key that is not known is an error that names the nearest known key.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crops.errors import CropsError, nearest

Size = Literal["tiny", "demo", "small"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PlatformConfig(_Section):
    """The simulated platform."""

    size: Size = "demo"
    """How large the world is; the sizes are in crops.platform.sizes."""
    days: int = Field(4, ge=4, le=60)
    """Simulated days: warm-up, train, gap, test (more days lengthen the gap)."""


class OnlineSearchConfig(_Section):
    """Online search samples: P0 and the multi-stage negatives."""

    max_clicked: int = Field(50, ge=1)
    max_exposed: int = Field(20, ge=0)
    max_unexposed: int = Field(20, ge=0)
    max_filtered: int = Field(20, ge=0)


class ReformulationConfig(_Section):
    """P1: consumed after the same user reformulated the query."""

    window_s: float = Field(90.0, gt=0)
    """Later searches count while 0 < t_i - t_q <= window."""
    similarity: float = Field(0.5, ge=0, le=1)
    """Lowest calibrated P(same intent) of the two queries."""
    relevance: float = Field(0.6, ge=0, le=1)
    """alpha: lowest calibrated P(relevant) of (q, d)."""
    require_no_click: bool = False
    """Only searches without a click start a reformulation."""


class FeedConfig(_Section):
    """P2: consumed in the feed by the users who issued the query."""

    window_s: float = Field(1800.0, gt=0)
    """Half the window, centred on the time of the query."""
    max_items: int = Field(100, ge=1)
    """Items per query event, nearest in time first."""
    relevance: float = Field(0.6, ge=0, le=1)
    """alpha: lowest calibrated P(relevant) of (q, d)."""


class KnowledgeConfig(_Section):
    """P3: documents that an LLM wrote for the query."""

    max_per_query: int = Field(4, ge=1)
    min_users: int = Field(20, ge=1)
    """Only queries of at least this many users are ever sent to an LLM."""


class EngineConfig(_Section):
    """The data engine: logs to graded samples."""

    days: tuple[str, ...] | None = None
    """Days to mine (YYYY-MM-DD); all when absent."""
    sources: tuple[str, ...] = ("search", "p1", "p2", "p3")
    memory: str = "2GB"
    """Memory limit of DuckDB."""
    max_positives_per_user: int = Field(50, ge=1)
    """P1 and P2 pairs one user may add to one query: nobody steers a query alone."""
    search: OnlineSearchConfig = OnlineSearchConfig()
    reformulation: ReformulationConfig = ReformulationConfig()
    feed: FeedConfig = FeedConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()


class RelevanceConfig(_Section):
    """theta, the relevance discriminator."""

    model: str = "minilm"
    """`minilm` (the 6-layer encoder of the [demo] extra) or any SentenceTransformer path or name."""
    batch_size: int = Field(64, ge=1)
    calibrations: str | None = None
    """JSON of calibrations for your own model; the packaged file, which knows `minilm`, when absent."""


class TrainingConfig(_Section):
    """The learning part."""

    encoder: str = "static"
    """`static`, `minilm`, or any SentenceTransformer path or name."""
    init: str | None = None
    """A model folder to continue from, in place of the preset's own weights."""
    dim: int = Field(256, ge=8)
    """Output dimension of the static encoder."""
    loss: Literal["h_infonce", "infonce_binary"] = "h_infonce"
    batch_queries: int = Field(128, ge=2)
    """Queries per batch: each contrasts with all documents of the others."""
    docs_per_query: int = Field(24, ge=2)
    """Most documents drawn for one query in one step."""
    docs_per_source: int = Field(4, ge=1)
    """Most documents drawn per (label, source), so that the many do not drown the clicked."""
    steps: int = Field(300, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    """For the static encoder; transformers want about 2e-5."""
    weight_decay: float = Field(1e-4, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps."""
    temperature: float = Field(0.05, gt=0)
    """Start value; it is learned."""
    beta: float = Field(0.5, ge=0, le=1)
    """A group is drawn with weight searches^beta."""
    min_anchor_label: int = Field(1, ge=0)
    positive_label: int = Field(4, ge=1)
    """Lowest label that counts as positive (binary loss, reports)."""
    max_tokens: int = Field(128, ge=4)


class EvaluationConfig(_Section):
    """Test sets and metrics."""

    recall_k: int = Field(100, ge=1)
    ndcg_k: int = Field(4, ge=1)
    ndcg_pool: int = Field(50, ge=1)
    """Annotated documents per query: the top of the old system."""
    max_ct: int = Field(10_000, ge=1)
    max_qr: int = Field(10_000, ge=1)
    max_annotated: int = Field(500, ge=1)
    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples over queries."""


class RunConfig(_Section):
    """A whole run."""

    seed: int = Field(0, ge=0)
    platform: PlatformConfig = PlatformConfig()
    engine: EngineConfig = EngineConfig()
    relevance: RelevanceConfig = RelevanceConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def dump(self) -> dict[str, Any]:
        """Return the resolved settings as TOML-ready values (None is left out)."""
        return self.model_dump(mode="json", exclude_none=True)


def load_config(path: Path | None = None, **overrides: object) -> RunConfig:
    """Read a run's TOML and lay `overrides` over it.

    Args:
        path: the TOML file; the defaults when None.
        overrides: dotted keys with `__` for the dot, e.g. `training__steps=10`; None is no override.

    Raises:
        CropsError: the file is unreadable, a key is unknown or a value is out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CropsError(f"{path}: cannot read the settings: {error}") from error
    for key, value in overrides.items():
        if value is not None:
            _set(values, key.split("__"), value)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise CropsError(_explain(error, path)) from error


def _set(values: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
    values[keys[-1]] = value


def _explain(error: ValidationError, path: Path | None) -> str:
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            hint = nearest(str(fault["loc"][-1]), _known_keys(fault["loc"][:-1]))
            lines.append(f"unknown setting '{where}'.{hint}")
        else:
            lines.append(f"setting '{where}' = {fault['input']!r}: {fault['msg']}")
    return f"{path or 'settings'}: " + "; ".join(lines)


def _known_keys(section: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for key in section:
        annotation = model.model_fields[str(key)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)
