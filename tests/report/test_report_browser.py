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
BEYOND = "all => all.map(table => table.scrollWidth - table.parentElement.clientWidth)"
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


def test_dark_is_dark_and_paper_is_white(pages):
    page, addresses = pages
    page.goto(addresses["demo"])
    seen = {}
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        page.emulate_media(color_scheme=scheme, media=media)
        seen[scheme, media] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert seen == {
        ("light", "screen"): "rgb(252, 251, 248)",
        ("dark", "screen"): "rgb(21, 24, 28)",
        ("dark", "print"): "rgb(255, 255, 255)",
    }


def test_what_is_folded_on_the_screen_is_printed(pages):
    page, addresses = pages
    page.goto(addresses["demo"])
    folded = page.locator("details table")
    page.emulate_media(media="screen")
    assert not folded.is_visible()
    page.emulate_media(media="print")
    assert folded.bounding_box()["height"] > 20


def test_charts_are_images_with_a_name_to_a_screen_reader(pages):
    page, addresses = pages
    page.goto(addresses["demo"])
    assert page.get_by_role("img").count() == 5
    assert page.get_by_role("img", name="Temperature").count() == 1
