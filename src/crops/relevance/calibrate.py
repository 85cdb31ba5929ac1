"""From cosine to probability: a logistic per model and kind of pair, fitted on judged pairs and kept as JSON.

What a cosine means depends on the model, so a threshold on it carries over to no other one; on a probability
it does. Calibrations come from pairs outside the evaluated world; the packaged ones are fitted by
`benchmarks/calibration/fit_theta.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crops.database import failing_as, open_database, pattern
from crops.errors import CropsError, nearest
from crops.labels import Source
from crops.logs.files import refuse_lake_tables
from crops.logs.sources import parquet_schema
from crops.logs.sql import rows_of
from crops.outputs import write_text
from crops.text import document_text_sql, has_text

Kind = Literal["relevance", "similarity"]
"""P(document relevant to the query) or P(two queries have the same intent)."""
PACKAGED_CALIBRATIONS = Path(__file__).with_name("calibrations.json")


@dataclass(frozen=True)
class Calibration:
    """P = 1 / (1 + exp(-(a * cosine + b)))."""

    a: float
    b: float

    def probability(self, cosine: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the probability of each cosine, same shape."""
        from scipy.special import expit  # slow to import: not for --help

        probabilities: NDArray[np.float64] = expit(self.a * np.asarray(cosine, np.float64) + self.b)
        return probabilities


@dataclass(frozen=True)
class StoredCalibration(Calibration):
    """A calibration with where it comes from and what it is worth."""

    model_hash: str
    """crops.relevance.model_hash of the encoder it was fitted for."""
    source: str
    """The pairs and their mix, in words."""
    pairs: int
    """Pairs fitted on."""
    threshold: float
    """The probability at which precision and recall are given."""
    precision: float
    """On the held-out half, positives and negatives of equal weight."""
    recall: float
    date: str
    """Day of the fit, YYYY-MM-DD."""


def balanced_weights(relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return weights [n] that give positives and negatives half of the total n each.

    Raises:
        CropsError: one of the two classes is empty.
    """
    n, positives = len(relevant), int(relevant.sum())
    if positives in (0, n):
        raise CropsError("a calibration needs relevant and irrelevant pairs; one of the two is missing")
    return np.where(relevant, n / (2 * positives), n / (2 * (n - positives)))


def fit(
    cosines: NDArray[np.floating[Any]],
    relevant: NDArray[np.bool_],
    weights: NDArray[np.floating[Any]] | None = None,
) -> Calibration:
    """Fit the logistic by weighted maximum likelihood (Platt 1999, without his smoothing of the targets).

    All arguments are [n], one per pair; the weights are `balanced_weights` when None.

    Raises:
        CropsError: a class is empty, or the cosine separates the classes (no finite fit) or falls with
            relevance.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    x = np.asarray(cosines, np.float64)
    y = np.asarray(relevant, np.float64)
    w = balanced_weights(relevant) if weights is None else np.asarray(weights, np.float64)
    if x[relevant].min() > x[~relevant].max() or x[relevant].max() < x[~relevant].min():
        raise CropsError(
            "the cosine separates the pairs completely, so no finite logistic fits; bring harder pairs"
        )
    w = w / w.sum()
    features = np.stack([x, np.ones_like(x)], axis=1)

    def loss(ab: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = features @ ab
        return float(w @ (np.logaddexp(0, z) - y * z)), features.T @ (w * (expit(z) - y))

    def curvature(ab: NDArray[np.float64]) -> NDArray[np.float64]:
        p = expit(features @ ab)
        hessian: NDArray[np.float64] = (features * (w * p * (1 - p))[:, None]).T @ features
        return hessian

    a, b = minimize(
        loss, np.zeros(2), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10}
    ).x
    if a <= 0:
        raise CropsError(
            "the cosine does not rise with relevance on these pairs; this model cannot judge them"
        )
    return Calibration(float(a), float(b))


def load_calibration(kind: Kind, model: str, identity: str, path: str | Path | None = None) -> Calibration:
    """Return the stored calibration of a model by its name in the settings and its hash (`identity`).

    `path` is the JSON that `store_calibration` wrote; the packaged one when None.

    Raises:
        CropsError: nothing is stored for (kind, model), or it was fitted for other weights.
    """
    source = Path(path or PACKAGED_CALIBRATIONS)
    known: Mapping[str, Any] = _read(source).get(kind, {})
    remedy = (
        "Fit one on a few hundred judged pairs (crops.relevance.fit), keep it with crops.relevance."
        "store_calibration and name that file in the setting relevance.calibrations, or use model = 'minilm'."
    )
    if model not in known:
        raise CropsError(
            f"{source}: no {kind} calibration for model '{model}'.{nearest(model, known)} {remedy}"
        )
    try:
        stored = StoredCalibration(**known[model])
    except TypeError as error:
        raise CropsError(
            f"{source}: the {kind} calibration of '{model}' is not complete ({error}). {remedy}"
        ) from error
    if stored.model_hash != identity:
        raise CropsError(
            f"{source}: the {kind} calibration of '{model}' was fitted for weights {stored.model_hash[:12]}, "
            f"but the model found has {identity[:12]}. {remedy}"
        )
    return Calibration(stored.a, stored.b)


def store_calibration(path: str | Path, kind: Kind, model: str, entry: StoredCalibration) -> None:
    """Add or replace one calibration in a JSON file, which is made when absent and always whole."""
    path = Path(path)
    values = _read(path) if path.exists() else {}
    values.setdefault(kind, {})[model] = asdict(entry)
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CropsError(f"{path}: cannot read the calibrations: {error}") from error
    return values


# Judged pairs to calibrate or fine-tune on: from a file of judgements, or from confident pairs of logs.


_READERS = {
    ".csv": "read_csv($path, all_varchar = true, header = true)",
    ".jsonl": "read_json($path, format = 'newline_delimited')",
}
_JUDGED = {"1": True, "true": True, "0": False, "false": False}

_LOG_SQL = f"""
with clicks as (
    select query_id, item_id, count(distinct search_id) as searches from read_parquet($evidence)
    where source = $clicked group by query_id, item_id
), confident as (
    select query_id, item_id, row_number() over (
        order by md5(concat_ws(' ', $seed, query_id, item_id))
    ) as place from clicks where searches >= $min_searches and item_id > 0
), dropped as (
    select query_id, item_id, row_number() over (
        partition by query_id order by md5(concat_ws(' ', $seed, 'dropped', query_id, item_id))
    ) as turn
    from read_parquet($samples)
    where sources = $filtered and query_id in (select query_id from confident)
), foreign_items as (
    select c.query_id, d.item_id from confident c, (select count(*) as n from confident) total
    join confident d on d.place = (c.place - 1 + n // 2) % n + 1
    where (c.query_id, d.item_id) not in (select (query_id, item_id) from read_parquet($samples))
), judged as (
    select query_id, item_id, true as relevant from confident
    union all select query_id, item_id, false from dropped where turn = 1
    union all select distinct query_id, item_id, false from foreign_items
)
select q.query, {document_text_sql("i")}, j.relevant
from judged j join read_parquet($queries) q using (query_id) join read_parquet($items) i using (item_id)
order by q.query, j.item_id
"""


@dataclass(frozen=True)
class Pairs:
    """Judged pairs of texts, n of each."""

    left: Sequence[str]
    """Queries."""
    right: Sequence[str]
    """Documents, or queries for similarity."""
    relevant: NDArray[np.bool_]

    def part(self, chosen: NDArray[np.bool_]) -> Pairs:
        """Return the chosen pairs."""
        rows = np.flatnonzero(chosen).tolist()
        return Pairs([self.left[row] for row in rows], [self.right[row] for row in rows], self.relevant[rows])


def read_pairs(path: str | Path) -> Pairs:
    """Read judgements: `.csv`, `.jsonl` or `.parquet` with the columns `query`, `text`, `relevant` (1 or 0).

    Raises:
        CropsError: the file is of another kind, unreadable or empty, lacks a column, a text is missing, a
            judgement is neither 1 nor 0, or it lies in a simulator's truth.
    """
    path = Path(path)
    if path.resolve().parent.name == "truth":
        raise CropsError(
            f"{path} is a simulator's truth; theta is fitted on pairs from outside the evaluated world"
        )
    refuse_lake_tables([path])
    if path.suffix == ".parquet":
        schema = parquet_schema(path)
        columns = {name: name for name in ("query", "text", "relevant") if name in schema.names}
        source, given = rows_of([path], [schema], columns), {}
    elif path.suffix in _READERS:
        source, given = _READERS[path.suffix], {"path": pattern(path)}
    else:
        raise CropsError(
            f"{path}: name a file of judged pairs that ends in {', '.join(_READERS)} or .parquet"
        )
    fault = f"{path}: cannot read the pairs, which need the columns query, text, relevant"
    with failing_as(fault), open_database() as connection:
        rows = connection.execute(f"select query, text, relevant from {source}", given).fetchall()
    if not rows:
        raise CropsError(f"{path}: no pairs; give a few hundred, relevant and irrelevant ones")
    judged = [_judged(path, number, row) for number, row in enumerate(rows, 1)]
    return Pairs([row[0] for row in rows], [row[1] for row in rows], np.array(judged, np.bool_))


def _judged(path: Path, number: int, row: tuple[Any, ...]) -> bool:
    query, text, relevant = row
    for name, value in (("query", query), ("text", text)):
        if not isinstance(value, str) or not has_text(value):
            raise CropsError(f"{path}, pair {number}: no text in column '{name}'; drop the pair")
    judgement = _JUDGED.get(str(relevant).strip().casefold())
    if judgement is None:
        raise CropsError(f"{path}, pair {number}: relevant is '{relevant}'; write 1 or 0")
    return judgement


def log_pairs(samples: str | Path, *, min_searches: int = 2, seed: int = 0) -> Pairs:
    """Return confident pairs of a mining, to fine-tune on where nobody judged anything.

    Relevant: clicked in at least `min_searches` searches of the query. Irrelevant: per query one document
    that the system only ever dropped before ranking, and per relevant pair the clicked document of another
    query that no source connects with this one. Clicks follow what the system shows: a model trained on them
    learns its taste too.

    Raises:
        CropsError: `samples` is no output of a mining, or it has no such pairs.
    """
    samples = Path(samples)
    names = ("evidence", "samples", "queries", "items")
    values: dict[str, object] = {name: pattern(samples / f"{name}.parquet") for name in names}
    values |= {
        "clicked": int(Source.CLICKED),
        "filtered": int(Source.FILTERED),
        "min_searches": min_searches,
        "seed": seed,
    }
    with failing_as(f"{samples} is not an output of `crops mine`"), open_database() as connection:
        rows = connection.execute(_LOG_SQL, values).fetchall()
    relevant = np.array([row[-1] for row in rows], np.bool_)
    if not relevant.any() or relevant.all():
        raise CropsError(f"{samples}: no pair clicked in {min_searches} searches; lower min_searches")
    return Pairs([row[0] for row in rows], [row[1] for row in rows], relevant)


def held_out(pairs: Pairs, seed: int = 0) -> NDArray[np.bool_]:
    """Return which pairs are held out, [n]: about half of the queries, whole, chosen by their hash."""
    return np.array(
        [hashlib.sha256(f"{seed} {query}".encode()).digest()[0] % 2 == 1 for query in pairs.left], np.bool_
    )


# What a calibrated theta is worth. Both classes weigh the same, whatever their numbers: the share of relevant
# pairs in a judged set says nothing about that among candidates.


@dataclass(frozen=True)
class AlphaPoint:
    """What passes `probability > alpha`; precision is None where nothing does."""

    alpha: float
    kept: int
    precision: float | None
    recall: float


@dataclass(frozen=True)
class Bin:
    """Pairs of like probability: the mean of it, the weighted share that is relevant, how many."""

    predicted: float
    observed: float
    pairs: int


def by_alpha(
    probability: NDArray[np.float64], relevant: NDArray[np.bool_], alphas: Sequence[float]
) -> list[AlphaPoint]:
    """Return precision and recall above each threshold, by P(relevant) and the judgements, [n].

    Raises:
        CropsError: one of the two classes is empty.
    """
    weights = balanced_weights(relevant)
    points = []
    for alpha in alphas:
        kept = probability > alpha
        right, total = weights[kept & relevant].sum(), weights[kept].sum()
        precision, recall = float(right / total) if total else None, float(right / weights[relevant].sum())
        points.append(AlphaPoint(alpha, int(kept.sum()), precision, recall))
    return points


def reliability(probability: NDArray[np.float64], relevant: NDArray[np.bool_], bins: int = 10) -> list[Bin]:
    """Return bins of equal width over [0, 1] that hold a pair, lowest first.

    Raises:
        CropsError: one of the two classes is empty.
    """
    weights = balanced_weights(relevant)
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    return [
        Bin(
            float(np.average(probability[own], weights=weights[own])),
            float(np.average(relevant[own], weights=weights[own])),
            int(own.sum()),
        )
        for own in (place == index for index in range(bins))
        if own.any()
    ]


def calibration_error(probability: NDArray[np.float64], relevant: NDArray[np.bool_], bins: int = 10) -> float:
    """Return the expected calibration error (Guo et al. 2017): the mean gap of the bins by their weight.

    Raises:
        CropsError: one of the two classes is empty.
    """
    weights = balanced_weights(relevant)
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, weights * (probability - relevant), minlength=bins)
    return float(np.abs(gaps).sum() / weights.sum())


def log_loss(probability: NDArray[np.float64], relevant: NDArray[np.bool_]) -> float:
    """Return the mean log-loss, in nats (0.693 = coin).

    Raises:
        CropsError: one of the two classes is empty.
    """
    p = np.clip(np.where(relevant, probability, 1 - probability), 1e-12, 1)
    return float(-np.average(np.log(p), weights=balanced_weights(relevant)))
