"""What every report page promises: one file, read aloud, in order, on paper, in the dark, on a phone."""

import re
from pathlib import Path
from typing import get_args

import pytest
from report_samples import reports

import crops.report
from crops.report import render_report
from crops.report.render import Report

KINDS = sorted(reports())
TEMPLATES = Path(crops.report.__file__).parent / "templates"
PARTS = {"base.html", "parts.html", "sources.html"}


@pytest.fixture(scope="module", params=KINDS)
def page(request):
    report, charts = reports()[request.param]
    return render_report(report), charts


def headings(html):
    return [int(level) for level in re.findall(r"<h([1-6])\b", html)]


def test_every_kind_and_every_template_is_looked_at():
    kinds = {type(report) for report, _ in reports().values()}
    assert kinds == set(get_args(Report))
    for template in TEMPLATES.glob("*.html"):
        extends = template.read_text().startswith('{% extends "base.html" %}')
        assert extends == (template.name not in PARTS), template.name


def test_one_file_that_asks_nothing_of_anybody(page):
    html, _ = page
    assert html.lstrip().startswith("<!doctype html>")
    assert not re.search(r"<(script|link|iframe|img|object|embed|form)\b", html)
    assert not re.search(r"\b(src|href|srcset|action|on\w+|style)=", html)
    assert not re.search(r"://|@import|url\(", html)
    assert "Content-Security-Policy" in html
    assert "default-src 'none'" in html


def test_every_chart_is_told_in_words_and_has_a_caption(page):
    html, number = page
    charts = re.findall(r"<figure><figcaption>[^<]+</figcaption>(<svg.*?</svg>)</figure>", html, re.DOTALL)
    assert len(charts) == number == html.count("<svg")
    for chart in charts:
        assert 'role="img"' in chart
        (told,) = re.findall(r"<title>[^<]+</title><desc>([^<]+)</desc>", chart)
        assert re.search(r"\d", told)


def test_headings_are_in_order(page):
    levels = headings(page[0])
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_no_section_is_empty(page):
    html, _ = page
    for section in re.findall(r"<section>(.*?)</section>", html, re.DOTALL):
        assert re.search(r"</h2>\s*\S", section), section


def test_tables_are_named_scroll_by_keyboard_and_name_rows_and_columns(page):
    html, _ = page
    tables = html.count("<table")
    region = r'<div class="scroll" role="region" tabindex="0" aria-label="[^"]+">\s*<table[^>]*>\s*<caption'
    assert len(re.findall(region, html)) == tables
    assert all(
        re.search(r'scope="(row|col|rowgroup|colgroup)"', tag) for tag in re.findall(r"<th\b[^>]*>", html)
    )


def test_language_width_and_colour_schemes_are_declared(page):
    html, _ = page
    assert '<html lang="en">' in html
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in html
    assert 'name="color-scheme" content="light dark"' in html
    for rule in ("@media (prefers-color-scheme: dark)", "@media print", "@media (max-width: 40rem)"):
        assert rule in html


def test_it_ends_with_how_it_was_made(page):
    html, _ = page
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", html)
    assert titles[-1] == "How this was made"
    assert html.count("<header") == html.count("<main>") == html.count("<footer>") == 1
    assert html.index("</main>") < html.index("<footer>Made by crops.")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x>', "{{ 7 * 7 }}"])
def test_texts_are_shown_and_never_obeyed(kind, text):
    html = render_report(reports(text)[kind][0])
    assert "<script" not in html
    assert "<img" not in html
    assert "49" not in re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", html, flags=re.DOTALL)


def contrast(one, other):
    """WCAG 2 contrast of two #rrggbb colours."""
    lights = sorted(map(_luminance, (one, other)), reverse=True)
    return (lights[0] + 0.05) / (lights[1] + 0.05)


def _luminance(colour):
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def schemes():
    """The colours of light, dark and print."""
    css = (TEMPLATES / "style.css").read_text()
    for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL):
        named = dict(re.findall(r"--([\w-]+): #(\w+)", block))
        yield {
            name: f"#{code if len(code) == 6 else ''.join(2 * c for c in code)}"
            for name, code in named.items()
        }


def test_colours_are_readable_in_both_schemes_and_in_print():
    found = list(schemes())
    assert len(found) == 3
    for colours in found:
        paper = colours["paper"]
        assert contrast(colours["ink"], paper) >= 7
        for name in ("soft", "up", "down"):  # text: WCAG AA
            assert contrast(colours[name], paper) >= 4.5, (name, paper)
        for name in ("neutral", "t1", "t2", "t3", "t4", "t5", "t6"):  # graphics
            assert contrast(colours[name], paper) >= 3, (name, paper)


def test_contrast_by_hand():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)  # (1 + .05) / (0 + .05)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # W3C's own example of a near miss
