"""The result of an experiment in words."""

from __future__ import annotations

from crops.cli.online_text import change, titled
from crops.online.analysis import Analysis, Finding
from crops.online.metrics import PRIMARY


def headline(analysis: Analysis) -> str:
    """Return the result in a sentence: what was shown, or what could have been."""
    name = f"{titled(analysis.name)}: " if analysis.name else ""
    primary = [found for found in analysis.findings if found.metric.key in PRIMARY]
    if refused := [arm for arm, check in analysis.checks.items() if not check.holds]:
        return f"{name}no verdict on {', '.join(refused)}, the sample is unbalanced."
    shown = [
        f"{found.metric.label} of {found.treatment} {change(found.metric, found.effect.absolute)} points "
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


def lead(analysis: Analysis) -> str:
    """Return what was compared, and what forbids a verdict."""
    treatments = ", ".join(analysis.treatments)
    told = f"{treatments} against {analysis.control}, {len(analysis.days)} days from {analysis.days[0]}"
    before = (
        f"CUPED with {len(analysis.pre_days)} days before"
        if analysis.pre_days
        else "no days before: no CUPED"
    )
    weak = [
        found.refused or _too_few(analysis, found)
        for found in analysis.findings
        if found.metric.key in PRIMARY
    ]
    return ". ".join([told, before, *(text for text in dict.fromkeys(weak) if text)])


def _too_few(analysis: Analysis, found: Finding) -> str | None:
    """Return how many users the asked effect needs, where there are fewer."""
    there = min(analysis.users[analysis.control], analysis.users[found.treatment])
    if found.suffices is None or found.suffices <= there:
        return None
    return (
        f"Too few users for {found.metric.label} of {found.treatment}: {there:,} per arm, and an effect of "
        f"{100 * (analysis.wanted or 0):g} % needs {found.suffices:,}"
    )
