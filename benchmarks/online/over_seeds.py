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
    metrics = {one["key"]: one for run in runs for one in run["metrics"] if one["key"] in TOLD}
    scales = {key: 100 if one["share"] else 1 for key, one in metrics.items()}
    levels = {key: [run["levels"][run["control"]][key]["value"] for run in runs] for key in TOLD}
    for kind, title in (("paired", "paired worlds"), ("effect", "A/B test")):
        heads = (metrics[key]["label"] for key in TOLD)
        print(f"\n| {title} | {' | '.join(heads)} |\n|{'---|' * (1 + len(TOLD))}")
        told = (f"{scales[key] * mean(levels[key]):.2f}" for key in TOLD)
        print(f"| {runs[0]['control']}: the level | {' | '.join(told)} |")
        for arm in runs[0]["treatments"]:
            cells = []
            for key in TOLD:
                found = (one for run in runs for one in run["findings"])
                effects = [one[kind] for one in found if (one["metric"], one["treatment"]) == (key, arm)]
                cells.append(cell(effects, scales[key]))
            print(f"| {arm} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
