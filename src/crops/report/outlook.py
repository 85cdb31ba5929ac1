"""Whether crops would help on some logs, in words first: what `crops check` says besides the faults."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from crops.config import EngineConfig
from crops.evaluation.outlook import KEPT, SPREAD, Outlook
from crops.evaluation.significance import smallest_difference
from crops.labels import POSITIVE_ORIGINS
from crops.logs.days import spans
from crops.report.charts import Figure, SplitBar
from crops.report.page import Page, Section, Table, count, percent


class Missing(NamedTuple):
    """Something that the logs do not hold."""

    what: str
    """As a clause: "no user searched twice"."""
    effect: str
    source: str = ""
    """The key of the source that cannot help without it."""


def outlook_page(
    found: Outlook, config: EngineConfig, notes: Sequence[str] = (), rejected: Collection[str] = ()
) -> Page:
    """Return the page of an outlook, the verdict first; the check rejected all rows of `rejected` stages."""
    missing = list(_missing(found, config, rejected))
    rows = [(one.what, one.effect) for one in missing]
    table = Table("What is missing", ["Missing", "Effect"], rows, words=[0, 1], headed=False)
    gaps = [Section("What is missing, and its effect", tables=[table])] if rows else []
    return Page(
        "Would it help on these logs?",
        verdict(found, missing),
        [_sources_section(found), _test_section(found), *gaps, _logs_section(found, config)],
        [
            ("days that would be mined", spans(found.mined)),
            ("day that would be held out", found.tested or "none"),
            ("window of rewordings", f"{config.reformulation.window_s:g} s"),
            ("window of the feed", f"{config.feed.window_s / 60:g} min before and after a search"),
        ],
        notes,
    )


def verdict(found: Outlook, missing: Sequence[Missing]) -> list[str]:
    """Return what the sources would bring, and what a held-out day could show, as sentences."""
    clicked, counts, sentences = found.sources["p0"], found.counts, []
    for key, name in (("p1", "Rewordings (P1)"), ("p2", "The feed (P2)")):
        why = next((one.what for one in missing if one.source == key), "")
        one = found.sources[key]
        would = f"{name} would bring about {about(one.pairs)} positives for {about(one.queries)} queries; "
        would += f"{about(one.fresh)} of them had never been shown for their query."
        sentences.append(f"{name} cannot help: {why}." if why else would)
        if why and key == "p1" and counts["reworded"]:
            share = f"{100 * counts['reworded'] / counts['searches']:.0f} %"
            sentences.append(
                f"Yet {share} of the searches were followed by other words: log what came of them."
            )
    told = "There are no clicked positives."
    if clicked.found:
        told = f"They come on top of {count(clicked.found)} clicked positives for "
        told += f"{about(clicked.queries)} queries."
    tested = _ONE_DAY
    if found.tested is not None:
        sets = [
            f"about {about(queries)} queries with {what} "
            + (
                "(too few to show any difference)"
                if visible is None
                else f"(shows {100 * visible:.1f} points)"
            )
            for _, what, queries, visible in _test_sets(found)
        ]
        tested = f"A held-out day such as {found.tested} has {' and '.join(sets)}."
    return [*sentences, told, tested, conclusion(found)]


LITTLE = 0.02
"""New positives are few below this share of the clicked ones."""
FEW = 10
"""And below this number."""


def conclusion(found: Outlook) -> str:
    """Return the answer by its rule: whether there are positives that clicks could not have taught."""
    new, clicked = sum(found.sources[key].fresh for key in ("p1", "p2")), found.sources["p0"].found
    said = f"about {about(new)} new positives had never been shown for their query"
    rule = f"the rule: at least {FEW}, and {100 * LITTLE:g} % of the {count(clicked)} clicked ones"
    if new < FEW or new < LITTLE * clicked:
        return f"Conclusion: CroPS has little to add on these logs, as {said} ({rule})."
    if all(visible is None for *_, visible in _test_sets(found)) or found.tested is None:
        return (
            f"Conclusion: it may help, as {said} ({rule}); yet no held-out day could show it: log more days "
            "or searches."
        )
    return f"Conclusion: it is worth a try, as {said} ({rule}); crops evaluate then says whether it helped."


_ONE_DAY = "The logs hold one day: none is left to evaluate on."


def _test_sets(found: Outlook) -> list[tuple[str, str, float, float | None]]:
    """Return name, content, expected queries and smallest visible difference of the test sets."""
    sets = (
        ("CT", "a click", float(found.counts["ct_queries"])),
        ("QR", "something consumed after a rewording", found.qr.queries),
    )
    return [
        (name, what, queries, smallest_difference(queries, SPREAD[name.lower()]))
        for name, what, queries in sets
    ]


def about(number: float) -> str:
    """Write an expected number of things, to two digits."""
    whole = round(number)
    return f"{round(whole, min(0, 2 - len(str(whole)))):,}"


def _missing(found: Outlook, config: EngineConfig, rejected: Collection[str]) -> Iterator[Missing]:
    counts = found.counts
    yield from _missing_rewordings(found, f"{config.reformulation.window_s:g} s")
    yield from _missing_feed(found, f"{config.feed.window_s / 60:g} minutes")
    if not counts["shown_unclicked"]:
        what = "no shown results without a click: label 3 is absent"
        yield Missing(what, "log all results shown: a click among them says more than a click alone")
    for stage, label in (("unexposed", 2), ("filtered", 1)):
        if not found.stages.get(stage):
            what = f"no results that were {_STAGES[stage]}: label {label} is absent"
            if stage in rejected:
                what = f"all results that were {_STAGES[stage]} are rejected: label {label} is absent"
            yield Missing(what, "fewer hard negatives: shown results and other queries' documents remain")
    if not counts["llm_queries"]:
        what = f"no query of {config.knowledge.min_users} users"
        yield Missing(what, "none may be sent to an LLM: P3 is absent")
    if found.tested is None:
        yield Missing("a second day", "nothing can be held out to evaluate on")


def _missing_rewordings(found: Outlook, window: str) -> Iterator[Missing]:
    counts, what, effect = found.counts, "", "no positives from rewordings"
    if not counts["consumed"]:
        what = "nothing in the results was clicked, liked or played long"
        effect = "no positives from clicks or rewordings: log what people choose"
    elif not counts["returning_users"]:
        what = "no user searched twice"
        effect = "no rewordings: does every search or session get a user id of its own?"
    elif not counts["rewordings"]:
        what = f"no user searched with other words within {window}"
        one_time = counts["times_of_day"] == 1
        effect = "no rewordings: " + (
            "all searches have one time of day, log seconds" if one_time else "are users and times right?"
        )
    elif not found.sources["p1"].found:
        what = "nothing was consumed after a rewording"
    if what:
        yield Missing(what, effect, "p1")


def _missing_feed(found: Outlook, near: str) -> Iterator[Missing]:
    counts, what, effect = found.counts, "", ""
    if not counts["feed_events"]:
        what, effect = "no feed", "search logs alone train and evaluate; only P2 is absent"
    elif not counts["feed_consumed"]:
        what, effect = "nothing in the feed was clicked, liked or played long", "log play times or likes"
    elif not counts["feed_users"]:
        what = "nobody is both in the searches and in the feed"
        effect = "give a user the same id in both tables"
    elif not found.sources["p2"].found:
        what = f"nothing was consumed in the feed within {near} of a search"
        effect = "are the times of both tables in one time zone?"
    if what:
        yield Missing(what, effect, "p2")


_STAGES = {"unexposed": "ranked, but not shown", "filtered": "found, but filtered before ranking"}


def _sources_section(found: Outlook) -> Section:
    known = [(row, found.sources[row.key]) for row in POSITIVE_ORIGINS if row.key in KEPT]
    rows = [
        [
            f"{row.name}: {row.meaning}",
            count(one.found),
            about(one.pairs) if KEPT[row.key][0] < 1 else count(one.found),
            about(one.queries),
            about(one.fresh),
        ]
        for row, one in known
    ]
    split = [SplitBar(row.human, round(one.pairs), round(one.fresh), row.tone) for row, one in known]
    shares = " and ".join(f"{100 * KEPT[key][0]:g} % of {key.upper()}" for key in ("p1", "p2"))
    table = Table(
        "Positives that the sources would bring",
        ["Source", "Found", "Expected", "Queries", "Never shown"],
        rows,
        below=f"Found: pairs of a query and an item, before theta and the similarity of queries have judged "
        f"them. Expected: what is left if these keep {shares}, as in the demo; on your logs they may keep "
        "much more or less, and mining says how much.",
        beside=Figure("Expected positives", split, marked="never shown"),
        headed=False,
    )
    lead = (
        "Never shown: the system had not shown the item for that query, so clicks could not have taught it."
    )
    return Section("What each source would bring", lead, [table])


def _test_section(found: Outlook) -> Section:
    title = "What a held-out day could show"
    if found.tested is None:
        return Section(title, _ONE_DAY)
    rows = [
        [f"{name}: queries with {what}", about(queries), "–" if visible is None else f"{100 * visible:.1f}"]
        for name, what, queries, visible in _test_sets(found)
    ]
    table = Table(
        "Test sets of the held-out day",
        ["Test set", "Queries", "Visible\npoints"],
        rows,
        below="Visible: the smallest difference in recall@100 that is found with 80 % chance at p < 0.05, if "
        "the difference between two models spreads over queries with a standard deviation of "
        f"{100 * SPREAD['ct']:g} (CT) and {100 * SPREAD['qr']:g} points (QR), as between two trained models "
        "of the demo. QR is what theta is expected to leave. Several days together show smaller differences.",
        headed=False,
        narrow=True,
    )
    clicks, fresh = found.counts["test_clicks"], found.counts["test_clicks_fresh"]
    share = f"{100 * fresh / clicks:.0f} %" if clicks else "None"
    lead = (
        f"{share} of the {clicks:,} clicks of {found.tested} are on results that had not been shown for "
        "their query on the days before: a model that repeats what was shown cannot find them."
    )
    return Section(title, lead, [table])


def _logs_section(found: Outlook, config: EngineConfig) -> Section:
    counts, window = found.counts, f"{config.reformulation.window_s:g} s"

    def row(what: str, name: str, whole: str = "") -> list[str]:
        share = "" if not whole else percent(counts[name] / counts[whole] if counts[whole] else None)
        return [what, count(counts[name]), share]

    rows = [
        row("searches", "searches"),
        row("– without anything consumed", "searches_without_click", "searches"),
        row(f"– followed by other words within {window}", "reworded", "searches"),
        row(f"– followed by the same words within {window} (paging)", "paged", "searches"),
        row("– near something consumed in the feed", "searches_near_feed", "searches"),
        row("users who searched", "users"),
        row("– more than once", "returning_users", "users"),
        row("– and are in the feed", "feed_users", "users"),
        row("rewordings", "rewordings"),
        row("– with something consumed after", "rewordings_consumed", "rewordings"),
        row("– that the first query had never shown", "rewordings_fresh", "rewordings"),
        row("queries that an LLM may write documents for", "llm_queries"),
    ]
    table = Table("Counts", ["What", "Number", "Share\n%"], rows, headed=False, narrow=True)
    return Section("What the logs hold", tables=[table])
