"""How independent the two packaged thetas err, on the held-out half of the judged pairs.

    python benchmarks/calibration/agreement.py DATASETS [--pairs N] [--cache DIR]

Both use their packaged calibrations at the default thresholds. Shares are of all held-out pairs of the kind,
sets and classes of equal weight; "by chance" is what two thetas of the same shares of errors would both get
wrong if they erred independently within each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from fit_theta import KINDS, half, measure

from crops.relevance import load_calibration, text_encoder
from crops.relevance.encode import PACKAGED
from crops.relevance.score import prefixes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", type=Path)
    parser.add_argument("--pairs", type=int, help="pairs per set; all when absent")
    parser.add_argument("--cache", type=Path, help="folder that keeps text vectors between runs")
    arguments = parser.parse_args()
    models = list(PACKAGED)
    encoders = {model: text_encoder(model, cache=arguments.cache) for model in models}
    lines = [f"| kind | {' | '.join(f'{model} wrong' for model in models)} | both wrong | by chance |"]
    lines.append("|" + "---|" * (len(models) + 3))
    for kind, (threshold, names) in KINDS.items():
        wrong = []
        for model, (encoder, identity) in encoders.items():
            data = measure(arguments.datasets, encoder, prefixes(model, kind), names, arguments.pairs)
            encoder.save()
            judged = half(data, names, held_out=True)
            kept = load_calibration(kind, model, identity).probability(judged.cosine) > threshold
            wrong.append(kept != judged.relevant)
        chance = sum(
            judged.weight[members].sum()
            * np.prod([_share(one[members], judged.weight[members]) for one in wrong])
            for members in (judged.relevant, ~judged.relevant)
        )
        shares = [_share(one, judged.weight) for one in (*wrong, wrong[0] & wrong[1])]
        shares.append(float(chance / judged.weight.sum()))
        lines.append(f"| {kind} | {' | '.join(f'{share:.3f}' for share in shares)} |")
    print("\n" + "\n".join(lines))


def _share(flags: np.ndarray, weights: np.ndarray) -> float:
    return float(np.average(flags, weights=weights))


if __name__ == "__main__":
    main()
