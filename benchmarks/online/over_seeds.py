"""What several runs of one experiment, each a world of its own, say together: effects by arm.

    python benchmarks/online/over_seeds.py OUT-0 OUT-1 OUT-2
    python benchmarks/online/over_seeds.py --add strong --csv docs/online/effects.csv OUT-0 OUT-1 OUT-2

reads the analysis of each `crops experiment --out OUT-SEED` and prints two tables: the effects in the paired
copies of the worlds, and those of the A/B test. A cell is the mean over the worlds that have the arm, then
each world's: shares in points. A star: in each of these worlds the 95 % interval lies on the same side of 0.
With `--csv` the effects are also written to a file, in place of those that it has under the name.
"""

import argparse
import csv
import json
from pathlib import Path
from statistics import mean

TOLD = ("ctr", "lpr", "rqr", "satisfied", "senses", "ratio_rank", "ratio_show")
"""Keys of metrics (docs/online-metrics.md), of those of a route before its name."""
KINDS = {"paired": "paired worlds", "effect": "A/B test"}
COLUMNS = ("experiment", "kind", "seed", "arm", "metric", "control", "effect", "low", "high")


def effects_of(folder, experiment):
    """Return a row of `COLUMNS` for each effect of an experiment; shares in points."""
    run = json.loads((folder / "analysis" / "analysis.json").read_text())["analyses"][0]
    seed = int(json.loads((folder / "analysis" / "manifest.json").read_text())["seed"])
    scales = {one["key"]: 100 if one["share"] else 1 for one in run["metrics"]}
    return [
        {
            "experiment": experiment,
            "kind": kind,
            "seed": seed,
            "arm": one["treatment"],
            "metric": one["metric"],
            **{
                column: round(scales[one["metric"]] * one[kind][name], 4)
                for column, name in zip(COLUMNS[5:], ("control", "absolute", "low", "high"), strict=True)
            },
        }
        for one in run["findings"]
        for kind in KINDS
        if one["metric"].partition(":")[0] in TOLD and one[kind] is not None
    ]


def sure(effects):
    """Return whether the intervals of all worlds lie on the same side of 0."""
    return all(one["low"] > 0 for one in effects) or all(one["high"] < 0 for one in effects)


def cell(effects):
    """Write the mean and each world's effect."""
    values = [one["effect"] for one in effects]
    each = ", ".join(f"{value:+.2f}" for value in values)
    return f"{mean(values):+.2f}{'*' * sure(effects)} ({each})"


def level(found, metric):
    """Return the baseline's mean over the worlds, of lists of rows by (arm, metric)."""
    of_seed = {
        one["seed"]: one["control"] for (_, own), rows in found.items() for one in rows if own == metric
    }
    return mean(of_seed.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUT")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--add", default="default", help="name of the experiment in the file")
    args = parser.parse_args()
    rows = [row for folder in args.folders for row in effects_of(folder, args.add)]
    rows.sort(key=lambda row: row["seed"])
    told = sorted({row["metric"] for row in rows}, key=lambda metric: TOLD.index(metric.partition(":")[0]))
    for kind, title in KINDS.items():
        print(f"\n| {title} | {' | '.join(told)} |\n|{'---|' * (1 + len(told))}")
        found = {}
        for row in rows:
            if row["kind"] == kind:
                found.setdefault((row["arm"], row["metric"]), []).append(row)
        arms = dict.fromkeys(row["arm"] for row in rows)
        levels = (f"{level(found, metric):.2f}" for metric in told)
        print(f"| the baseline's level | {' | '.join(levels)} |")
        for arm in arms:
            print(f"| {arm} | {' | '.join(cell(found[arm, metric]) for metric in told)} |")
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        others = []
        if args.csv.exists():
            with args.csv.open(newline="") as file:
                others = [row for row in csv.DictReader(file) if row["experiment"] != args.add]
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*others, *rows])


if __name__ == "__main__":
    main()
