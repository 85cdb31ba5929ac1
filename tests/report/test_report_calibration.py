"""The pages of `crops calibrate` and `crops judge report`: whole, escaped, without what has no value."""

import re

from crops.report import (
    AlphaRow,
    CalibrationReport,
    JudgedSource,
    JudgeReport,
    RaterPair,
    ReliabilityBin,
    render_report,
)


def calibration(**changes):
    values = {
        "title": "theta",
        "headline": ["fine"],
        "facts": [("source of the pairs", "<script>alert(1)</script>")],
        "alphas": [AlphaRow(0.5, 10, 0.9, 0.8), AlphaRow(0.6, 5, 1.0, 0.4), AlphaRow(0.95, 0, None, 0.0)],
        "bins": [ReliabilityBin(0.2, 0.1, 10), ReliabilityBin(0.8, 0.9, 12)],
        "default_alpha": 0.6,
    }
    return render_report(CalibrationReport(**(values | changes)))


def test_calibration_page():
    page = calibration()
    assert "<script>" not in page
    assert "0.60 (default)" in page
    assert page.count("<svg") == 2
    assert re.search(r"0\.95</th><td>0</td>\s*<td>–</td><td>0\.0</td>", page)


def judged(**changes):
    values = {
        "title": "judged",
        "headline": ["fine"],
        "facts": [],
        "people": [JudgedSource("P1", (1, 1, 2), 0.3, 0.95)],
        "llm": [],
        "agreement": [RaterPair("<b>ann</b>, bob", 4, 0.75, 0.6, None)],
    }
    return render_report(JudgeReport(**(values | changes)))


def test_judge_page_by_hand():
    page = judged()
    assert "<b>ann</b>" not in page
    # 2 of 4 very relevant, 1 relevant, 1 irrelevant.
    assert re.search(r"P1</th><td>4</td>\s*<td>50\.0</td>\s*<td>25\.0</td>\s*<td>25\.0</td>", page)
    assert re.search(r"<td>75\.0</td>\s*<td>0\.60</td>\s*<td>–</td>", page)
    assert page.count("<svg") == 1
    assert "By the LLM" not in page


def test_one_rater_has_nobody_to_agree_with():
    assert "nobody to agree with" in judged(agreement=[])


def test_useful_is_relevant_or_better():
    assert JudgedSource("P1", (1, 1, 2), 0.3, 0.95).useful == 0.75
