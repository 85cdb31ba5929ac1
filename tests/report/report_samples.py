"""A full report of each kind, with every text from the caller so that a test can make it hostile."""

from crops.report import (
    AlphaRow,
    Bar,
    BarFigure,
    Block,
    CalibrationReport,
    Cell,
    Coverage,
    Curve,
    DemoReport,
    Difference,
    Disagreement,
    EngineReport,
    Estimate,
    FrequencyRow,
    Hit,
    Influence,
    JudgedSource,
    JudgeReport,
    Line,
    LineFigure,
    MetricColumn,
    QueryCase,
    RaterPair,
    RealismReport,
    RealismRow,
    ReliabilityBin,
    ResultRow,
    ResultTable,
    Section,
    SourceCounts,
    SourceRow,
    TablesReport,
    TextTable,
    TrainingCurve,
)


def reports(text="a word"):
    """Return (report, number of its charts) by kind."""
    return {
        "demo": (_demo(text), 5),
        "training": (DemoReport(text, [text], [(text, text)], curves=_curves(text)), 2),
        "realism": (_realism(text), 1),
        "engine": (_engine(text), 5),
        "judge": (_judge(text), 2),
        "calibration": (_calibration(text), 2),
        "tables": (_tables(text), 2),
    }


def _curves(text):
    return [TrainingCurve(text, [1, 2], [3.0, 2.0], [0.05, 0.04])]


def _sources(text):
    rows = [SourceRow(text, text, 90, 20, 60, 25, 15), SourceRow("P3", text, 8, 8)]
    return SourceCounts(rows, {5: 20, 4: 1048}, Coverage(50, 8, 1068, 8), {3: 6})


def _demo(text):
    names = ["ct", "qr", "truth", "ndcg", "mrr", "recall"]
    columns = [MetricColumn(name, text, text, plotted=name in ("ct", "qr")) for name in names]
    cells = {name: Estimate(0.5, 0.4, 0.6, 80) for name in names} | {"qr": Estimate(0.3, None, None, 9)}
    better = {name: Difference(0.1, 0.05, 0.15, 80, 0.001) for name in names}
    rows = [
        ResultRow("baseline", cells, is_reference=True),
        ResultRow(text, cells, better),
        ResultRow("later", not_tested=text),
    ]
    hits = [Hit(1, text, text, 0.9, 2, text, True, True, [text])]
    table = ResultTable(text, text, columns, rows)
    case = QueryCase(text, text, text, text, hits, hits)
    return DemoReport(text, [text], [(text, text)], [table], _sources(text), _curves(text), [case], [text])


def _realism(text):
    rows = [RealismRow(text, text, text, (0.2, 0.4), [Cell(0.5, False), None])]
    curve = Curve(text, text, {text: ([1.0, 2.0], [0.2, 0.1])})
    return RealismReport(text, [text], [(text, text)], [text, "other"], rows, rows, [curve])


def _engine(text):
    disagreements = [Disagreement(text, 20, {"P1": None, "P2": 3}, {"shown": 6, "filtered": 1}, 7)]
    coverage = [
        FrequencyRow(text, 10, 90, 3, 40, {text: 0.4}),
        FrequencyRow("tail", None, None, None, None, {text: None}),
    ]
    influence = Influence(9, 20, 5, [Block(text, 30, 0.6)])
    return EngineReport(
        text, [text], [(text, text)], _sources(text), disagreements, coverage, influence, 20, [text]
    )


def _judge(text):
    graded = [JudgedSource(text, (1, 1, 2), 0.3, 0.95)]
    return JudgeReport(text, [text], [(text, text)], graded, graded, [RaterPair(text, 4, 0.75, 0.6, None)])


def _calibration(text):
    alphas = [AlphaRow(0.5, 10, 0.9, 0.8), AlphaRow(0.95, 0, None, 0.0)]
    bins = [ReliabilityBin(0.2, 0.1, 10), ReliabilityBin(0.8, 0.9, 12)]
    return CalibrationReport(text, [text], [(text, text)], alphas, bins, 0.5)


def _tables(text):
    figures = ["61.4\n[58.1, 64.2]\n+5.1*\npaper 66.0"] * 10
    wide = TextTable(text, ["method", text, *["CT: recent items"] * 10], [[text, text, *figures]], text, 0)
    words = TextTable(text, ["claim", text], [[text, text]], words=True)
    charts = [LineFigure(text, text, [Line(text, [1, 2], [3, 4])]), BarFigure(text, [Bar(text, 0.5)], 0.4)]
    section = Section(text, text, [wide, words], charts)
    return TablesReport(text, [text], [section], [(text, text)], [text])
