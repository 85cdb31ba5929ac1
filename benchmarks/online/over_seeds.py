"""What several runs of one experiment, each a world of its own, say together: effects by arm.

    python benchmarks/online/over_seeds.py OUT-0 OUT-1 OUT-2

reads the analysis of each `crops experiment --out OUT-SEED` and prints two tables: the effects in the paired
copies of the worlds, and those of the A/B test. A cell is the mean over the worlds, then each world's: shares
in points. A star: in every world the 95 % interval lies on the same side of 0.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

TOLD = ("ctr", "lpr", "rqr", "satisfied", "senses", "ratio_rank:dense", "ratio_show:dense")
"""Keys of metrics (docs/online-metrics.md)."""


def cell(effects, scale):
    """Write the mean and each world's effect."""
    values = [scale * one["absolute"] for one in effects]
    agree = all(one["low"] > 0 for one in effects) or all(one["high"] < 0 for one in effects)
    return f"{mean(values):+.2f}{'*' * agree} ({', '.join(f'{value:+.2f}' for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUT")
    files = [folder / "analysis" / "analysis.json" for folder in parser.parse_args().folders]
    runs = [json.loads(file.read_text())["analyses"][0] for file in files]
    if len({(one["name"], *one["treatments"], *one["days"]) for one in runs}) > 1:
        parser.error("the experiments differ in their model, arms or days")
    metrics = {one["key"]: one for one in runs[0]["metrics"] if one["key"] in TOLD}
    for kind, title in (("paired", "paired worlds"), ("effect", "A/B test")):
        found = {
            (key, arm): [
                one[kind]
                for run in runs
                for one in run["findings"]
                if (one["metric"], one["treatment"]) == (key, arm)
            ]
            for key in metrics
            for arm in runs[0]["treatments"]
        }
        if None in (one for effects in found.values() for one in effects):
            continue  # there were no paired worlds, or an arm was refused
        print(f"\n| {title} | {' | '.join(one['label'] for one in metrics.values())} |")
        print(f"|{'---|' * (1 + len(metrics))}")
        scales = {key: 100 if one["share"] else 1 for key, one in metrics.items()}
        levels = {
            key: mean(one["control"] for one in found[key, runs[0]["treatments"][0]]) for key in metrics
        }
        told = (f"{scale * levels[key]:.2f}" for key, scale in scales.items())
        print(f"| {runs[0]['control']}: the level | {' | '.join(told)} |")
        for arm in runs[0]["treatments"]:
            print(f"| {arm} | {' | '.join(cell(found[key, arm], scale) for key, scale in scales.items())} |")


if __name__ == "__main__":
    main()
