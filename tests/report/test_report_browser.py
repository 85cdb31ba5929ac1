"""Every kind of report in a real browser: nothing sticks out, on a phone, a screen and paper."""

import shutil

import pytest
from report_samples import pages as reports

from crops.report import write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium on the path: the browser tests need one", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

LONG = "the share of what a retriever that learns from its own clicks never shows"
PAPER = 703
"""Pixels between the margins of a sheet of A4 (210 mm - 2 x 12 mm at 96 per inch)."""
STICKS_OUT = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A browser page and the addresses of the reports; at the end nothing may have been asked of a server."""
    folder = tmp_path_factory.mktemp("reports")
    for kind, (page, _) in reports(LONG).items():
        write_page(page, folder / f"{kind}.html")
    complaints = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("request", lambda one: one.url.startswith("file:") or complaints.append(one.url))
        page.on("console", lambda said: complaints.append(said.text))
        yield page, {path.stem: path.as_uri() for path in sorted(folder.glob("*.html"))}
        browser.close()
    assert complaints == []


@pytest.mark.parametrize("kind", sorted(reports()))
def test_nothing_sticks_out(pages, kind):
    page, addresses = pages
    page.goto(addresses[kind])
    for width, media in ((360, "screen"), (768, "screen"), (1280, "screen"), (PAPER, "print")):
        page.emulate_media(media=media)
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(STICKS_OUT) == 0, (width, media)
    tables = page.locator("table").evaluate_all(
        "all => all.map(t => t.scrollWidth - t.parentElement.clientWidth)"
    )
    assert all(extra <= 0 for extra in tables), "a table is cut off on paper"


def test_dark_is_dark_paper_is_white_folds_are_printed_and_charts_have_names(pages):
    page, addresses = pages
    page.goto(addresses["demo"])
    folded, seen, shown = page.locator("details table"), [], []
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        page.emulate_media(color_scheme=scheme, media=media)
        seen.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        shown.append(folded.is_visible())
    assert seen == ["rgb(252, 251, 248)", "rgb(21, 24, 28)", "rgb(255, 255, 255)"]
    assert shown == [False, False, True]
    assert folded.bounding_box()["height"] > 20
    assert page.get_by_role("img").count() == 4
    assert page.get_by_role("img", name="Temperature").count() == 1
