"""From cosine to probability: a logistic per model and kind of pair, fitted on judged pairs and kept as JSON.

What a cosine means depends on the model, so a threshold on it carries over to no other one; on a probability
it does. Calibrations come from pairs outside the evaluated world; the packaged ones are fitted by
`benchmarks/calibration/fit_theta.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from crops.errors import CropsError, nearest

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
        probabilities: NDArray[np.float64] = expit(self.a * np.asarray(cosine, np.float64) + self.b)
        return probabilities


@dataclass(frozen=True)
class StoredCalibration:
    """A calibration with where it comes from and what it is worth."""

    a: float
    b: float
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

    @property
    def calibration(self) -> Calibration:
        """The logistic alone."""
        return Calibration(self.a, self.b)


def balanced_weights(relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return weights [n] that give positives and negatives half of the total n each.

    Raises:
        CropsError: one of the two classes is empty.
    """
    positives = int(relevant.sum())
    if positives in (0, len(relevant)):
        raise CropsError("a calibration needs relevant and irrelevant pairs; one of the two is missing")
    return np.where(
        relevant, len(relevant) / (2 * positives), len(relevant) / (2 * (len(relevant) - positives))
    )


def fit(
    cosines: NDArray[np.floating[Any]],
    relevant: NDArray[np.bool_],
    weights: NDArray[np.floating[Any]] | None = None,
) -> Calibration:
    """Fit the logistic by weighted maximum likelihood (Platt 1999, without his smoothing of the targets).

    Args:
        cosines: one per pair, [n].
        relevant: the judgements, [n].
        weights: weight per pair, [n]; `balanced_weights` when None.

    Raises:
        CropsError: a class is empty, or the cosine separates the classes (no finite fit) or falls with
            relevance.
    """
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
    """Return the stored calibration of a model.

    Args:
        kind: relevance or similarity.
        model: the model's name in the settings.
        identity: the model's hash; a calibration for other weights is refused.
        path: JSON written by `store_calibration`; the packaged one when None.

    Raises:
        CropsError: nothing is stored for (kind, model), or it was fitted for other weights.
    """
    path = None if path is None else Path(path)
    source = path or PACKAGED_CALIBRATIONS
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
    return stored.calibration


def store_calibration(path: str | Path, kind: Kind, model: str, entry: StoredCalibration) -> None:
    """Add or replace one calibration in a JSON file, which is made when absent and always whole."""
    path = Path(path)
    values = _read(path) if path.exists() else {}
    values.setdefault(kind, {})[model] = asdict(entry)
    staging = path.with_name(f".{path.name}.tmp")
    staging.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    staging.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CropsError(f"{path}: cannot read the calibrations: {error}") from error
    return values
