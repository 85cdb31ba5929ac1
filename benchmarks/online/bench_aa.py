"""A/A: how often are arms that differ in nothing called different, over re-randomised assignments of one log?

    python benchmarks/online/bench_aa.py OUT/paired/dense/baseline/logs --pre OUT/world/logs

reads a simulated log (everybody in it was served alike), draws two arms with each of 2,000 salts, and prints
the rate of false positives of every metric: with the user-level delta method, with CUPED, and, as the rival,
with the pooled z-test over searches. Then what daily peeking does, with and without the boundary, what Holm
does, and how often the sample-ratio check would refuse.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from crops.cli.analyse import reading
from crops.config import load_config
from crops.logs import open_logs
from crops.online.analysis import earlier_days, everybody, looks
from crops.online.metrics import PRIMARY, metrics_of, user_days
from crops.online.statistics import (
    ALPHA,
    SRM_ALPHA,
    corrected,
    false_positives,
    memberships,
    rerandomised,
    sample_check,
)

ROUTES = {"dense": 1, "sparse": 2}


def pooled_z(metric, sums, sides):
    """|z| of the test that takes every search for independent, [salts]."""
    n, d = ([side @ sums[name] for side in sides] for name in (metric.numerator, metric.denominator))
    pool = (n[0] + n[1]) / (d[0] + d[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(pool * (1 - pool) * (1 / d[0] + 1 / d[1]))
        return np.abs(n[1] / d[1] - n[0] / d[0]) / error


def rate(found):
    """Write a rate of false positives and its 95 % interval."""
    one = false_positives("", found)
    return f"{100 * one.rate:5.2f} [{100 * one.low:.2f}, {100 * one.high:.2f}]"


def metric_table(panel, metrics, before, salts, share):
    """Print the rates per metric and return the p-values of the primary ones, [metrics, salts]."""
    sums = panel.sums()
    sides = [side.astype(float) for side in memberships(panel.users, salts, share)]
    print(f"\n{'metric':28} {'delta method':>22} {'with CUPED':>22} {'pooled z':>22}  (% false positives)")
    primary = []
    for metric in metrics:
        plain = rerandomised(metric, sums, panel.users, salts, share=share)
        cuped = (
            rerandomised(metric, sums, panel.users, salts, before=before, share=share) if before else plain
        )
        of_events = metric.role in ("effect", "route")
        rival = rate(pooled_z(metric, sums, sides) > 1.959964) if of_events else "counts users"
        print(
            f"{metric.label:28} {rate(plain.p < ALPHA):>22} "
            f"{rate(cuped.p < ALPHA) if before else 'no days before':>22} {rival:>22}"
        )
        if metric.key in PRIMARY:
            primary.append(cuped.p)
    return np.array(primary)


def peeking(panel, metrics, before, salts, share):
    """Print how often any of the daily looks claims an effect, naively and by the boundary."""
    bounds = [look.z for look in looks(len(panel.days))]
    print(f"\n{len(panel.days)} daily looks: any claims an effect   naive |z| > 1.96      O'Brien-Fleming")
    for metric in metrics:
        if metric.key not in PRIMARY:
            continue
        z = np.abs(
            [
                rerandomised(
                    metric,
                    panel.sums(panel.days[: look + 1]),
                    panel.users,
                    salts,
                    before=before,
                    share=share,
                ).z
                for look in range(len(panel.days))
            ]
        ).T
        naive, kept = (z > 1.959964).any(axis=1), (z >= bounds).any(axis=1)
        print(f"{metric.label:36} {rate(naive):>22} {rate(kept):>22}")


def main():
    """Read one log and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("logs", type=Path, help="logs in which everybody was served alike")
    parser.add_argument("--pre", type=Path, help="logs of days before, for CUPED")
    parser.add_argument("--salts", type=int, default=2000)
    parser.add_argument("--share", type=float, default=0.5, help="of the users in each arm")
    parser.add_argument("--relevance", default="minilm", help="theta of the reformulations, or none")
    options = parser.parse_args()
    start = time.process_time()
    run = load_config(None, relevance__model=options.relevance)
    how = reading(options.logs, run, ROUTES)
    panel = everybody(user_days(open_logs(options.logs), how))
    before = earlier_days(user_days(open_logs(options.pre), how), panel).sums() if options.pre else None
    read = time.process_time()
    salts = [f"aa-{salt}" for salt in range(options.salts)]
    metrics = metrics_of(tuple(ROUTES), tuple(panel.statistics))
    searches = panel.sums()["searches"].sum()
    print(
        f"{len(panel.users):,} users, {len(panel.days)} days, {searches:,.0f} searches; "
        f"{len(salts):,} salts, {options.share:g} of the users in each arm; promised {100 * ALPHA:g} %"
    )
    p = metric_table(panel, metrics, before, salts, options.share)
    peeking(panel, metrics, before, salts, options.share)
    holm = np.array([min(corrected(column.tolist())[0]) < ALPHA for column in p.T])
    print(f"\nany of CTR, LPR, RQR at p < 0.05: {rate((p < ALPHA).any(axis=0))}; after Holm: {rate(holm)}")
    sides = memberships(panel.users, salts, options.share)
    ratio = np.array([sample_check(int(a.sum()), int(b.sum())).p for a, b in zip(*sides, strict=True)])
    print(
        f"sample ratio, p < 0.05: {rate(ratio < 0.05)}; refused, p < {SRM_ALPHA}: {rate(ratio < SRM_ALPHA)}"
    )
    print(f"CPU: {read - start:.1f} s to read, {time.process_time() - read:.1f} s for all tests")


if __name__ == "__main__":
    main()
