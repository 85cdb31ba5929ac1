"""A full page of each kind, with every text from the caller so that a test can make it hostile."""

import dataclasses
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from crops.cli.llm import judge_page
from crops.cli.simulate import World, realism_page
from crops.cli.theta import calibration_page
from crops.config import EngineConfig, RunConfig
from crops.evaluation import Difference, Interval, TestSets
from crops.evaluation.evaluate import metric_values, summarise
from crops.evaluation.outlook import Expected, Outlook
from crops.relevance import StoredCalibration
from crops.relevance.calibrate import AlphaPoint
from crops.report import Bar, Dot, Figure, Line, Page, Section, Table
from crops.report.demo import Column, result_section
from crops.report.evaluation import Basis, evaluation_page
from crops.report.outlook import outlook_page
from crops.report.side_by_side import Cases, Hit, SideBySide, comparison_section
from crops.report.training import mining_page, sources_section, training_section

NAN = float("nan")


def pages(text="a word"):
    """Return (page, number of its charts) by kind."""
    training = training_section({text: log([3.0, 2.0])})
    return {
        "demo": (_demo(text, training), 4),
        "training": (Page(text, [text], [training], [(text, text)]), 2),
        "realism": (_realism(text), 1),
        "engine": (_engine(text), 5),
        "judge": (_judge(text), 2),
        "calibration": (_calibration(text), 2),
        "tables": (_tables(text), 3),
        "outlook": (_outlook(text), 1),
        "evaluation": (_evaluation(text), 1),
    }


def log(loss, temperature=0.05):
    """Return a training log with these losses."""
    steps = np.arange(1, len(loss) + 1)
    return SimpleNamespace(step=steps, loss=np.array(loss), temperature=np.full(len(loss), temperature))


def columns(text=None):
    return [
        Column("ct", text or "CT recall", text or "share of the clicked items that are found"),
        Column("qr", text or "QR recall", text or "share of the reworded items that are found"),
    ]


def results():
    """Two metrics of three models, and their differences to the second."""
    summaries = {
        "BM25": {"ct": Interval(0.40, 0.35, 0.45, 800), "qr": Interval(NAN, NAN, NAN, 0)},
        "baseline": {"ct": Interval(0.50, 0.45, 0.55, 800), "qr": Interval(0.30, 0.25, 0.35, 90)},
        "CroPS": {"ct": Interval(0.612, 0.56, 0.66, 800), "qr": Interval(0.3001, NAN, NAN, 8)},
    }
    against = {"BM25": {"ct": Difference(-0.1, -0.15, -0.05, 800, 0.001)},
               "CroPS": {"ct": Difference(0.112, 0.08, 0.14, 800, 0.0004),
                         "qr": Difference(0.0001, NAN, NAN, 8, NAN)}}  # fmt: skip
    return {name: SimpleNamespace(summary=own) for name, own in summaries.items()}, against


def result(names=("BM25", "baseline", "CroPS"), shown=None, **changes):
    """Return the section of results whose models have these names."""
    found, against = results()
    named = dict(zip(found, names, strict=True))
    values = {
        "columns": shown or columns(),
        "results": {named[name]: one for name, one in found.items()},
        "against": {named[name]: own for name, own in against.items()},
        "reference": named["baseline"],
        "coloured": [named["baseline"], named["CroPS"]],
    }
    return result_section(changes.pop("title", "Result"), **(values | changes))


def mined(**changes):
    """Return the report of a mining."""
    found = {
        "sources": {"search": {"clicked": {"candidates": 40, "kept": 40}},
                    "p1": {"candidates": 90, "after_similarity": 60, "after_relevance": 25, "kept": 20,
                           "theta": 0.6, "similarity": 0.5},
                    "p2": {"candidates": 30, "after_relevance": 12, "kept": 12},
                    "p3": {"candidates": 8, "kept": 8}},
        "novelty": {"p0": {"never_shown": 0}, "p1": {"never_shown": 15}, "p2": {"never_shown": 6},
                    "all": {"never_shown": 21, "share": 0.3}},
        "p3_coverage": {"queries": 50, "with_generation": 8, "samples": 8},
        "labels": {"5": 20, "4": 1048, "3": 100},
        "rescued": {"pairs": 7, "3": 6, "2": 1},
    }  # fmt: skip
    return found | changes


def side_by_side(text="quicksilver", **changes):
    before = [Hit(1, "astrology", "stars", 0.9, 0, "the sign", evidence=["clicked in 4 of its searches"])]
    after = [
        Hit(1, text, text, 0.8, 3, text, True, True, [f"P1: reworded to {text}"]),
        Hit(2, "metal", "", 0.7, 2, "the metal"),
    ]
    return dataclasses.replace(SideBySide(text, "ambiguous", "old", "new", before, after), **changes)


def _demo(text, training):
    sections = [
        result(("BM25", text, "later"), columns(text), title=text, not_tested={"+ P3": text}),
        sources_section(mined()),
        dataclasses.replace(training, folded=True),
        comparison_section(Cases([side_by_side(text, note=text, before_name=text, after_name=text)], text)),
    ]
    return Page(text, [text], sections, [(text, text)], [text])


def _realism(text):
    curves = {text: ([1.0, 2.0], [0.2, 0.1])}
    measured = {"CTR at rank 1": 5.0}
    return realism_page([World(text, measured, curves, text), World("other", {}, curves, text)])


def _engine(text):
    stages = ("clicked", "exposed", "unexposed", "filtered", "nothing")
    search = dict(zip(stages, (0, 6, 0, 1, 13), strict=True))
    tail = {"part": "tail", "queries": None, "searches": None, "least": None, "most": None}
    head = {"part": text, "queries": 10, "searches": 90, "least": 3, "most": 40}
    return mining_page(
        mined(
            days=[text],
            input={"searches": 90, "queries": 10, "users": 9},
            k=20,
            notes=[text],
            disagreements=[{"source": "p1", "positives": 20, "also": {"p2": 3}, "search": search}],
            coverage=[head | {"shares": {"p1": 0.4}}, tail | {"shares": {"p1": None}}],
            influence={
                "users": 9,
                "pairs": 20,
                "of_one_user": 5,
                "contributions": 50,
                "blocks": [{"first": 1, "last": 5, "contributions": 30, "share": 0.6}],
                "top": [{"user_id": text, "alone": 2, "pairs": 10}],
            },
        )
    )


def graded(name="P1"):
    return {"name": name, "counts": [1, 1, 2], "low": 0.3, "high": 0.95}


def judged(text="judged", **changes):
    agreement = {"names": text, "pairs": 4, "same": 0.75, "kappa": 0.6, "weighted_kappa": None}
    found = {"title": text, "headline": [text], "facts": [(text, text)]}
    return found | {"people": [graded()], "llm": [graded()], "agreement": [agreement]} | changes


def _judge(text):
    return judge_page(judged(text))


def _calibration(text):
    entry = StoredCalibration(1.0, 0.0, text, text, 10, 0.6, 0.9, 0.8, text)
    points = [AlphaPoint(0.5, 10, 0.9, 0.8), AlphaPoint(0.6, 5, 1.0, 0.4), AlphaPoint(0.95, 0, None, 0.0)]
    probability, relevant = np.array([0.2, 0.8, 0.9]), np.array([False, True, True])
    return calibration_page(entry, text, "relevance", points, probability, relevant)


def _outlook(text):
    one = Expected(2500, 1234.0, 650.0, 700.0)
    counts = defaultdict(lambda: 1, feed_events=0)
    found = Outlook(("2026-01-05",), text, counts, {}, dict.fromkeys(("p0", "p1", "p2"), one), one)
    return outlook_page(found, EngineConfig(), [text])


def _evaluation(text):
    ids, sets = list(range(12)), {}
    for name, value in ((text, 0.5), ("b", 0.75)):
        values = {"recall@100/ct": metric_values("recall@100/ct", np.arange(12), np.full(12, value))}
        sets[name] = summarise(values, 100, 0)
    queries = pa.table({"query_id": ids, "query": [text] * 12, "searches": ids, "users": ids})
    pairs = pa.table({"query_id": ids, "search_id": ids, "item_id": ids})
    day = TestSets(("2026-01-05",), 0, queries, pairs, pairs, pairs.slice(0, 0), None, {"ct_queries": 12})
    return evaluation_page(sets, text, Basis(text, day), RunConfig(), [text])


def _tables(text):
    figures = ["61.4\n[58.1, 64.2]\n+5.1*\npaper 66.0"] * 10
    wide = Table(text, ["method", text, *["CT: recent items"] * 10], [[text, text, *figures]], text, 0)
    words = Table(text, ["claim", text], [[text, text]], words=[1])
    charts = [
        Figure(text, [Line(text, [1, 2], [3, 4])], text),
        Figure(text, [Bar(text, 0.5)], reference=0.4),
        Figure(text, [Dot(text, 0.1, -0.1, 0.3, 1, text, sure=False)]),
    ]
    return Page(text, [text], [Section(text, text, [wide, words], charts)], [(text, text)], [text])
