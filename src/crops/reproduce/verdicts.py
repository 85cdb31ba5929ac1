"""What the cells say of the paper's claims, by the rules of claims.toml."""

from __future__ import annotations

import csv
import importlib.resources
import io
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from crops.errors import CropsError
from crops.evaluation import Difference
from crops.evaluation.significance import holm
from crops.report import Section, Table
from crops.reproduce.design import CT, NDCG, ORACLES, QR, QR_TRUTH
from crops.reproduce.tables import Convergence, Group

Ruling = Literal["reproduced", "not reproduced", "inconclusive", "no headroom", "not tested"]
FEWEST_P3 = 0.05
"""Below this share of training queries with a generated document, P3 is not tested."""
ONLINE = "online"
"""The "table" of claims that take an experiment with users."""
NAMES = {CT: "CT recall@100", QR: "QR recall@100", QR_TRUTH: "QR recall@100 by truth", NDCG: "NDCG@4"}


@dataclass(frozen=True)
class Claim:
    """A claim on one metric."""

    text: str
    table: str
    kind: Literal["greater", "not_less", "faster", "elsewhere"]
    metric: str = ""
    sums: tuple[Mapping[str, float], ...] = ()
    """Weighted sums of methods that should be above 0."""
    needs_p3: bool = False
    headroom: str = ""
    """The method that the oracles must beat, or a failure to be above 0 is nobody's."""
    slow: str = ""
    fast: str = ""
    ratio: float = 0.0

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the methods that it is about."""
        return tuple(dict.fromkeys(name for one in self.sums for name in one)) or (self.slow, self.fast)


@dataclass(frozen=True)
class Rules:
    """What claims.toml says."""

    alpha: float
    fewest_queries: int
    margins: Mapping[str, float]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Verdict:
    """What a run says of a claim."""

    claim: str
    metric: str
    ruling: Ruling
    why: str
    cells: Sequence[str] = field(default_factory=tuple)
    """The cell folders that it rests on."""


def read_rules(titles: Mapping[str, str]) -> Rules:
    """Return the packaged rules; `titles` are the names of methods as they are printed."""
    text = importlib.resources.files("crops.reproduce").joinpath("claims.toml").read_text()
    found = tomllib.loads(text)
    claims = [claim for entry in found["claim"] for claim in _claims(entry, titles)]
    return Rules(found["alpha"], found["fewest_queries"], found["margins"], tuple(claims))


def _claims(entry: dict[str, Any], titles: Mapping[str, str]) -> Iterator[Claim]:
    """Yield an entry's claims: one for each metric and each method it is compared with."""
    text, table, kind = entry["text"], entry["table"], entry["kind"]
    if kind == "elsewhere":
        yield Claim(text, table, kind)
    elif kind == "faster":
        yield Claim(text, table, kind, slow=entry["slow"], fast=entry["fast"], ratio=entry["ratio"])
    elif kind in ("greater", "not_less"):
        sums = {text: tuple(entry["sums"])} if "sums" in entry else {}
        for name in entry.get("than", ()):
            sums[text.format(than=titles.get(name, name))] = ({entry["more"]: 1.0, name: -1.0},)
        for metric in entry["metrics"]:
            for told, own in sums.items():
                yield Claim(
                    told, table, kind, metric, own, entry.get("needs_p3", False), entry.get("headroom", "")
                )
    else:
        raise CropsError(f"claims.toml: '{text}' has the unknown kind '{kind}'")


def judge(
    rules: Rules, table: str, group: Group, speeds: Mapping[str, Sequence[Convergence]]
) -> list[Verdict]:
    """Return the verdicts on the claims of a table in one world, their p-values corrected together.

    `speeds` holds the convergence by method, seed by seed.
    """
    claims: list[tuple[Claim, str, list[Difference]]] = []
    for claim in rules.claims:
        if claim.table == table:
            reason = "" if claim.kind == "faster" else _untested(claim, rules, group)
            resampled = group.resampled(claim.metric) if claim.sums and not reason else None
            sums = [resampled.contrast(group.weights(one)) for one in claim.sums] if resampled else []
            claims.append((claim, reason, sums))
    corrected = iter(holm([one.p for *_, sums in claims for one in sums]))
    verdicts = []
    for claim, reason, sums in claims:
        metric = NAMES.get(claim.metric, claim.metric)
        if claim.kind == "faster":
            verdicts.append(_speed_verdict(claim, group, speeds))
        elif not sums:
            verdicts.append(Verdict(claim.text, metric, "not tested", reason))
        else:
            p_values = [next(corrected) for _ in sums]
            margin = rules.margins[claim.metric]
            ruling = rule(claim.kind, sums, p_values, rules.alpha, margin)
            why = "; ".join(f"{_points(one)}, p = {p:.3f}" for one, p in zip(sums, p_values, strict=True))
            oracles = _oracles(claim, group)
            if ruling != "reproduced" and oracles and not any(moves(one, margin) for one in oracles.values()):
                ruling = "no headroom"
            why += "".join(f"; {name.replace('_', ' ')} {_points(one)}" for name, one in oracles.items())
            verdicts.append(Verdict(claim.text, metric, ruling, why, group.folders(*claim.methods)))
    return verdicts


def _points(one: Difference) -> str:
    return f"{100 * one.mean:+.1f} points {one.ends('+.1f')}"


def _oracles(claim: Claim, group: Group) -> dict[str, Difference]:
    """Return the difference of each oracle with cells to the method that a claim names for its headroom."""
    resampled = group.resampled(claim.metric)
    if not claim.headroom or claim.headroom not in group.methods or resampled is None:
        return {}
    return {name: group.gain(resampled, name, claim.headroom) for name in ORACLES if name in group.methods}


def moves(oracle: Difference, margin: float) -> bool:
    """Return whether an oracle moves a metric: its interval is above 0, and its mean not below the margin."""
    return oracle.ci_low > 0 and oracle.mean >= margin


def _untested(claim: Claim, rules: Rules, group: Group) -> str:
    """Return why a claim cannot be tested in a group, or an empty string."""
    if claim.kind == "elsewhere":
        return "needs an experiment with users: crops experiment"
    if missing := [name for name in claim.methods if name not in group.methods]:
        return f"no cell of {', '.join(missing)} for every seed"
    if claim.needs_p3:
        least = min(info["p3_coverage"]["share_of_queries"] or 0.0 for info in group.info("crops"))
        if least < FEWEST_P3:
            return f"P3 has documents for {100 * least:.1f} % of the training queries; it takes 5 %"
    resampled = group.resampled(claim.metric)
    queries = resampled.n // len(group.seeds) if resampled else 0
    if queries < rules.fewest_queries:
        return f"{queries:,} queries a world have this metric; it takes {rules.fewest_queries}"
    return ""


def rule(
    kind: str, sums: Sequence[Difference], p_values: Sequence[float], alpha: float, margin: float
) -> Ruling:
    """Return the ruling on sums that should be above 0 (`greater`) or not below it (`not_less`)."""
    both = list(zip(sums, p_values, strict=True))
    if kind == "greater":
        if all(one.mean > 0 and p < alpha for one, p in both):
            return "reproduced"
        return "not reproduced" if any(one.ci_high < margin for one in sums) else "inconclusive"
    if all(one.ci_low > -margin for one in sums):
        return "reproduced"
    return "not reproduced" if any(one.mean < 0 and p < alpha for one, p in both) else "inconclusive"


def _speed_verdict(claim: Claim, group: Group, speeds: Mapping[str, Sequence[Convergence]]) -> Verdict:
    if claim.slow not in speeds or claim.fast not in speeds:
        return Verdict(
            claim.text, "CPU time to convergence", "not tested", "no watched cells of both methods"
        )
    pairs = zip(speeds[claim.slow], speeds[claim.fast], strict=True)
    ratios = [slow.cpu_seconds / fast.cpu_seconds for slow, fast in pairs]
    holds = [ratio >= claim.ratio for ratio in ratios]
    ruling: Ruling = "inconclusive"
    if all(holds) or not any(holds):
        ruling = "reproduced" if holds[0] else "not reproduced"
    told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    why = f"ratio by seed {told}, wanted at least {claim.ratio:g}"
    watched = (one.watched for method in (claim.slow, claim.fast) for one in speeds[method])
    first = [group.cells[name, seed][0] for name in (claim.slow, claim.fast) for seed in group.seeds]
    folders = (*(cell.folder.name for cell in first), *watched)
    return Verdict(claim.text, "CPU time to convergence", ruling, why, folders)


# The verdicts on a page.


def verdict_section(world: str, verdicts: Sequence[Verdict]) -> Section:
    """Return a line for each claim, and below them the cells that each rests on."""
    rows = [[one.claim, one.metric or "–", one.ruling, one.why] for one in verdicts]
    cells = [[one.claim, one.metric or "–", "\n".join(one.cells)] for one in verdicts if one.cells]
    return Section(
        f"Verdicts, world “{world}”",
        "The rules were written before the runs (claims.toml): reproduced, if above 0 with p < 0.05 after "
        "Holm's correction over the claims of a table; not reproduced, if the 95 % interval ends below half "
        "a point (NDCG: one); no headroom, if it fails where the oracles fail too; inconclusive otherwise.",
        [
            Table("The paper's claims", ["claim", "on", "verdict", "why"], rows, words=(1, 2, 3)),
            Table("Cells behind the verdicts", ["claim", "on", "cells"], cells, words=(1, 2), folded=True),
        ],
    )


def verdicts_csv(verdicts: Mapping[str, Sequence[Verdict]]) -> str:
    """Return a row for each claim in each world, with the cells that the verdict rests on."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["world", "claim", "on", "verdict", "why", "cells"])
    for world, own in verdicts.items():
        rows.writerows(
            [world, one.claim, one.metric, one.ruling, one.why, " ".join(one.cells)] for one in own
        )
    return text.getvalue()


def verdict_sentence(world: str, verdicts: Sequence[Verdict]) -> str:
    """Return how many claims have which ruling."""
    counts = Counter(one.ruling for one in verdicts)
    told = ", ".join(f"{counts[ruling]} {ruling}" for ruling in get_args(Ruling) if counts[ruling])
    return f"World “{world}”: of {len(verdicts)} claims, each on one metric, {told}."
