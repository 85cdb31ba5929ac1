"""An analysed experiment as tables: Tables 5, 6, 8 and 9 of CroPS, and what they need beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from crops.errors import CropsError
from crops.online.analysis import Analysis, DayEffect, Finding
from crops.online.experiment import A_A, EFFECT_TABLES, EFFECTS, RATIO_TABLES, RATIOS
from crops.online.metrics import CTR, LPR, PRIMARY, RQR, Metric, Role
from crops.online.statistics import Effect
from crops.report.charts import Figure, Line
from crops.report.page import Section, Table


def section(analysis: Analysis) -> Section:
    """Return everything about one experiment."""
    tables = [
        _checks_table(analysis),
        _ratio_table(analysis),
        _effect_table(analysis),
        _effects(
            analysis,
            "Shares per user, effects in points",
            "user",
            "mean over users of the share that each has, and the share of users with at least one; not "
            "corrected",
        ),
        _truth_table(analysis),
        _test_table(analysis),
        _look_table(analysis),
        _aa_table(analysis),
        _gap_table(analysis),
    ]
    return Section(
        title=f"Experiment {_titled(analysis.name)}" if analysis.name else "The experiment",
        lead=_lead(analysis),
        tables=[table for table in tables if table.rows],
        figures=_figures(analysis),
    )


def _checks_table(analysis: Analysis) -> Table:
    rows = []
    for arm, check in analysis.checks.items():
        users = f"{check.control:,}", f"{check.treatment:,}", f"{check.expected:g}"
        told = "holds" if check.holds else "unbalanced: the verdict is refused"
        rows.append([arm, *users, _p_text(check.p), told])
    head = ["arm", "users of control", "users", "promised ratio", "p", "check"]
    note = (
        "a split that is not the promised one means that assignment or logging lost users; p < 0.001 refuses"
    )
    return Table("Sample ratio", head, rows, note)


def _ratio_table(analysis: Analysis) -> Table:
    """Return the paper's Tables 5 and 8: what the route found of the ranked and of the shown results."""
    ratios = [metric for metric in analysis.metrics if metric.role == "route"]
    published = RATIOS.get(analysis.name, {})
    # Those of the first route: the paper has no other.
    first = [metric.key for metric in ratios if metric.key.startswith("ratio_")][:2]
    rows = []
    for arm in (analysis.control, *analysis.treatments) if ratios else ():
        paper = dict(zip(first, published.get(arm, ()), strict=False))
        rows.append([arm, *(_level(analysis, arm, metric, paper.get(metric.key)) for metric in ratios)])
    name = RATIO_TABLES.get(analysis.name)
    return Table(
        f"{f'{name}: ' if name else ''}Ratio_rank and Ratio_show",
        ["arm", *(f"{metric.label}, %" for metric in ratios)],
        rows,
        "share of the ranked and of the shown results that the route found; an item of several routes counts "
        "for each, the unique share counts what no other route found",
        reference=0,
    )


def _level(analysis: Analysis, arm: str, metric: Metric, paper: float | None) -> str:
    found = analysis.levels[arm].get(metric.key)
    if found is None:
        return "–"
    lines = [f"{100 * found.value:.1f}", f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"]
    if arm != analysis.control:
        gained = analysis.of(arm, metric.key)
        if gained.effect is not None:
            ends = _interval(metric, gained.effect)
            lines.append(f"gained {_change(metric, gained.effect.absolute)} {ends}")
            lines.append(f"MDE {value(metric, gained.effect.mde)}")
        lines += _paired(gained)
    return "\n".join([*lines, *([] if paper is None else [f"paper {paper:.1f}"])])


def _effect_table(analysis: Analysis) -> Table:
    """Return the paper's Tables 6 and 9: effects on CTR, LPR and RQR."""
    name = EFFECT_TABLES.get(analysis.name)
    published = EFFECTS.get(analysis.name, {})
    return _effects(
        analysis,
        f"{f'{name}: ' if name else ''}effects on CTR, LPR and RQR, in points",
        "effect",
        "absolute effect in points with its 95 % interval, then relative; * after Holm over the primary "
        "metrics and arms. The paper does not say whether its effects are absolute or relative. MDE: the "
        "smallest absolute effect that these users would show with a chance of 80 %",
        {arm: dict(zip((CTR, LPR, RQR), values, strict=True)) for arm, values in published.items()},
    )


def _truth_table(analysis: Analysis) -> Table:
    """Return what only a simulation can tell, and the creators that were reached."""
    reach = analysis.reach
    table = _effects(
        analysis,
        "Satisfaction, senses, creators",
        "truth",
        "satisfied and senses by the simulator's truth, effects; creators: share of all creators that was "
        "shown to equally many users of each arm, without an interval",
    )
    if not reach:
        return table
    rows = [list(row) for row in table.rows] or [[arm] for arm in analysis.treatments]
    for row in rows:
        row.append(f"{100 * reach[row[0]]:.2f} %\ncontrol {100 * reach[analysis.control]:.2f} %")
    return Table(table.title, [*table.head, "creators reached"], rows, table.note)


def _effects(
    analysis: Analysis,
    title: str,
    role: Role,
    note: str,
    paper: Mapping[str, Mapping[str, float]] | None = None,
) -> Table:
    """Return a row per treatment with its effects on the metrics of a role; `paper` by arm and metric."""
    metrics = [metric for metric in analysis.metrics if metric.role == role]
    rows = []
    for arm in analysis.treatments if metrics else ():
        known = (paper or {}).get(arm, {})
        cells = (_effect_cell(analysis.of(arm, metric.key), known.get(metric.key)) for metric in metrics)
        rows.append([arm, *cells])
    return Table(title, ["arm", *(metric.label for metric in metrics)], rows, note)


def _effect_cell(found: Finding, paper: float | None) -> str:
    lines = ["–"]
    if found.effect is not None:
        star = "*" if found.holm is not None and found.verdict in ("better", "worse") else ""
        lines = [
            f"{_change(found.metric, found.effect.absolute)}{star}",
            _interval(found.metric, found.effect),
            _relative(found.effect),
            f"MDE {value(found.metric, found.effect.mde)}",
        ]
    return "\n".join([*lines, *_paired(found), *([] if paper is None else [f"paper {_signed(paper, 3)}"])])


def _paired(found: Finding) -> list[str]:
    """Return the effect in paired worlds, where it was measured."""
    if found.paired is None:
        return []
    return [f"paired {_change(found.metric, found.paired.absolute)} {_interval(found.metric, found.paired)}"]


def _test_table(analysis: Analysis) -> Table:
    """Return one row per treatment and primary metric, with what was tested and what may be said."""
    head = ["arm, metric", analysis.control, "arm", "p", "p, Holm", "p, BH", "verdict"]
    if analysis.wanted is not None:
        head.append(f"users per arm for {100 * analysis.wanted:g} %")
    rows = []
    for found in (found for found in analysis.findings if found.metric.key in PRIMARY):
        cells, suffices = ["–"] * 5, "–"
        if found.effect is not None:
            cells = [
                value(found.metric, found.effect.control),
                value(found.metric, found.effect.treatment),
                *(_p_text(p) for p in (found.effect.p, found.holm, found.benjamini_hochberg)),
            ]
            suffices = f"{found.suffices:,}" if found.suffices else "–"
        row = [f"{found.treatment}, {found.metric.label}", *cells, found.verdict, suffices]
        rows.append(row[: len(head)])
    note = (
        "values in %; p of the user-level delta method; Holm bounds the chance of any false claim, BH "
        "(Benjamini-Hochberg) the share of false ones among all claims; the verdict is Holm's"
    )
    return Table("Tests", head, rows, note)


def _look_table(analysis: Analysis) -> Table:
    """Return the daily looks: effect so far, z, and the boundary."""
    rows = []
    for arm, by_metric in analysis.daily.items():
        for metric in analysis.metrics:
            cells = []
            for look in by_metric.get(metric.key, ()):
                if look.so_far is None:
                    cells.append("–")
                    continue
                z = look.so_far.absolute / look.so_far.standard_error if look.so_far.standard_error else 0.0
                cells.append(
                    f"{_change(metric, look.so_far.absolute)}{'*' if look.claims else ''}\n"
                    f"z {_signed(z, 2)} of {look.bound:.2f}"
                )
            if cells:
                rows.append([f"{arm}, {metric.label}", *cells])
    return Table(
        "Daily looks",
        ["arm, metric", *analysis.days],
        rows,
        "effect of the days so far, in points, its z and the O'Brien-Fleming boundary that |z| must reach; "
        "* where whoever looks every day may claim an effect; the boundary counts all metrics and arms "
        "(Bonferroni); a dash: until that day there are too few users or events, or no spread",
    )


def _aa_table(analysis: Analysis) -> Table:
    """Return how often arms that differ in nothing were called different."""
    labels, rows = {metric.key: metric.label for metric in analysis.metrics}, []
    for found in analysis.false_positives:
        called, ends = (
            f"{found.positives:,} of {found.salts:,}",
            f"{100 * found.low:.1f} to {100 * found.high:.1f} %",
        )
        rows.append([labels[found.metric], called, f"{100 * found.rate:.1f} %", ends])
    head = ["metric", "called different", "rate", "95 % interval"]
    return Table("A/A: users of the control, re-salted into two arms", head, rows, "promised: 5 %")


def _gap_table(analysis: Analysis) -> Table:
    """Return why a dash is where an effect, a level or an A/A test would."""
    gaps = {f"{one.metric.label} of {one.treatment}": one.refused for one in analysis.findings if one.refused}
    what: dict[str, list[str]] = {}
    for name, why in {**gaps, **analysis.gaps}.items():
        what.setdefault(why, []).append(name)
    rows = [[", ".join(names), why] for why, names in what.items()]
    return Table("Why a dash", ["of what", "because"], rows, "what cannot be measured is not guessed")


# The result of an experiment in words.


def headline(analysis: Analysis) -> str:
    """Return the result in a sentence: what was shown, or what could have been."""
    name = f"{_titled(analysis.name)}: " if analysis.name else ""
    primary = [found for found in analysis.findings if found.metric.key in PRIMARY]
    if refused := [arm for arm, check in analysis.checks.items() if not check.holds]:
        return f"{name}no verdict on {', '.join(refused)}, the sample is unbalanced."
    shown = [
        f"{found.metric.label} of {found.treatment} {_change(found.metric, found.effect.absolute)} points "
        f"({found.verdict})"
        for found in primary
        if found.effect and found.verdict != "no effect shown"
    ]
    if shown:
        return f"{name}{', '.join(shown)}, against {analysis.control}."
    seen = {found.metric.label: found.effect.mde for found in primary if found.effect}
    floors = ", ".join(f"{100 * mde:.1f} for {label}" for label, mde in seen.items())
    return (
        f"{name}no effect shown against {analysis.control} by {len(primary)} tests; what these users would "
        f"show, in points: {floors or 'nothing'}."
    )


def _lead(analysis: Analysis) -> str:
    """Return what was compared, and what forbids a verdict."""
    treatments = ", ".join(analysis.treatments)
    told = [f"{treatments} against {analysis.control}, {len(analysis.days)} days from {analysis.days[0]}"]
    before = len(analysis.pre_days)
    told.append(f"CUPED with {before} days before" if before else "no days before: no CUPED")
    for found in (found for found in analysis.findings if found.metric.key in PRIMARY):
        there = min(analysis.users[analysis.control], analysis.users[found.treatment])
        if found.refused:
            told.append(found.refused)
        elif found.suffices is not None and found.suffices > there:
            told.append(
                f"Too few users for {found.metric.label} of {found.treatment}: {there:,} per arm, and an "
                f"effect of {100 * (analysis.wanted or 0):g} % needs {found.suffices:,}"
            )
    return ". ".join(dict.fromkeys(told))


# The daily effects of an experiment as charts.

Looks = Mapping[str, Sequence[DayEffect]]
"""The looks at one metric, by arm."""


def _figures(analysis: Analysis) -> list[Figure]:
    """Return the daily effects on each primary metric: of the days so far, and of each day alone."""
    charts = []
    for metric in analysis.metrics:
        if metric.key not in PRIMARY or not analysis.daily:
            continue
        arms = {arm: by_metric[metric.key] for arm, by_metric in analysis.daily.items()}
        so_far = [*_lines(arms, "so_far"), *_funnel(arms)]
        charts.append(Figure(f"{metric.label}: effect of the days so far, points", so_far, "day"))
        alone = _lines(arms, "alone")
        charts.append(Figure(f"{metric.label}: effect of each day alone, points", alone, "day"))
    return charts


def _lines(arms: Looks, which: str) -> list[Line]:
    lines = []
    for tone, (arm, looks) in enumerate(arms.items(), start=1):
        points = {
            day: 100 * found.absolute for day, look in enumerate(looks, 1) if (found := getattr(look, which))
        }
        lines.append(Line(arm, list(points), list(points.values()), tone))
    return lines


def _funnel(arms: Looks) -> list[Line]:
    """Return the widest boundary of the arms: beyond it every arm's effect may be claimed."""
    reach: dict[int, float] = {}
    for looks in arms.values():
        for day, look in enumerate(looks, 1):
            if look.so_far:
                edge = 100 * look.bound * look.so_far.standard_error
                reach[day] = max(edge, reach.get(day, 0.0))
    days = sorted(reach)
    above, below = [reach[day] for day in days], [-reach[day] for day in days]
    return [Line("claimed above", days, above), Line("claimed below", days, below)]


# How the tables of an experiment write numbers.


def _titled(experiment: str) -> str:
    """Write the name of an experiment; the one without a difference by what it is."""
    return "A/A" if experiment == A_A else experiment


def value(metric: Metric, number: float) -> str:
    """Write a value: shares in %."""
    return f"{100 * number:.2f}" if metric.share else f"{number:.3f}"


def _change(metric: Metric, number: float) -> str:
    """Write a difference: of shares in points."""
    return _signed(100 * number, 2) if metric.share else _signed(number, 3)


def _interval(metric: Metric, found: Effect) -> str:
    return f"[{_change(metric, found.low)}, {_change(metric, found.high)}]"


def _relative(found: Effect) -> str:
    """Write a relative effect with its interval, in %; a dash and the reason where there is none."""
    if not math.isfinite(found.relative):
        nothing = [name for name, mean in (("control", found.control), ("arm", found.treatment)) if not mean]
        return f"relative – ({' and '.join(nothing)} at 0)" if nothing else "relative – (too near 0)"
    ends = f"[{_signed(100 * found.relative_low, 1)}, {_signed(100 * found.relative_high, 1)}]"
    return f"{_signed(100 * found.relative, 2)} % {ends}"


def _signed(number: float, decimals: int) -> str:
    """Write a number with its sign, a true minus."""
    return f"{number:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _p_text(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def checked_effect(effect: float | None) -> None:
    """Refuse a relative effect that no experiment could look for.

    Raises:
        CropsError: it is none that an experiment could look for.
    """
    if effect is not None and not 1e-6 <= abs(effect) <= 1e6:
        raise CropsError(f"--effect {effect:g}: give the relative effect that matters, e.g. 0.01 for 1 %")
