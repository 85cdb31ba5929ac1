"""The explorer and a report in a real browser; pictures go to $CROPS_ARTIFACTS or out/browser.

Any request to elsewhere and any message on the console, such as one about the content policy, fails a test.
"""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from served_world import HOSTILE, fake_load_model, open_world

from crops.config import ServingConfig
from crops.serving import service as service_module
from crops.serving.app import listen, make_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium on the path: the browser tests need one", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PICTURES = Path(os.environ.get("CROPS_ARTIFACTS", "out/browser"))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(world):
    """Where the world is served, by a real server in a thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service_module, "load_model", fake_load_model)
        service = open_world(world)
    listening = listen(ServingConfig(port=0))
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def open_page(browser):
    """A function that opens an address in a fresh window; at the end nothing may have gone wrong in it."""
    contexts, complaints = [], []

    def opened(url, width=1200, height=900, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: "status of 404" in said.text or complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        own = url.split("/")[2]
        page.on("request", lambda asked: asked.url.split("/")[2] in (own, "") or complaints.append(asked.url))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def picture(page, name):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def test_search_and_compare(open_page, address):
    page = open_page(address)
    picture(page, "start")
    page.get_by_role("searchbox").fill("jaguar")
    page.get_by_role("button", name="Search").click()
    assert page.title() == "jaguar – crops explorer"
    columns = {name: page.get_by_test_id(name).locator(".hit") for name in ("baseline", "index")}
    assert {name: hits.count() for name, hits in columns.items()} == {"baseline": 8, "index": 8}
    assert page.get_by_role("heading", name="“jaguar”").is_visible()
    before = page.get_by_test_id("baseline").locator('[data-item="6"]')
    assert before.get_by_text("was filtered").is_visible()
    page.goto(f"{address}/?q=jaguar&k=3")
    new = page.get_by_test_id("index").locator(".fresh")
    gone = page.get_by_test_id("baseline").locator(".gone")
    assert [one.get_attribute("data-item") for one in (new, gone)] == ["7", "2"]  # only these differ
    assert new.first.get_by_text("new", exact=True).is_visible()
    picture(page, "compare")
    page.goto(address)
    page.get_by_role("link", name="spotted cat").click()  # a suggestion
    assert "q=spotted+cat" in page.url
    assert page.get_by_test_id("index").locator(".hit").count() == 8


def test_open_the_evidence_and_follow_it_to_the_training_group(open_page, address):
    page = open_page(f"{address}/?q=jaguar")
    hit = page.locator("#index-3")
    evidence = hit.get_by_text("consumed after rewording as “spotted cat”, 4 times")
    pair = hit.get_by_text("consumed after rewording as “spotted cat”: 4 times by 4 people")
    assert evidence.count() == 0
    hit.get_by_role("link", name="Why?").click()
    assert "open=3" in page.url
    assert page.url.endswith("#index-3")
    assert evidence.is_visible()
    assert not pair.is_visible()  # a line for each source; the pairs are folded
    hit.get_by_text("training pairs").click()
    assert pair.is_visible()
    assert hit.get_by_text("Test-LM 1B").is_visible()
    picture(page, "evidence")
    page.locator("#index-3").get_by_role("link", name="“jaguar”").first.click()
    assert page.get_by_role("heading", name="Training group of “jaguar”").is_visible()
    assert [page.locator(f"#label-{label} .hit").count() for label in (5, 4, 1)] == [2, 3, 1]
    picture(page, "group")
    page.get_by_role("link", name="results of this query").click()
    assert page.url == f"{address}/?q=jaguar"


def test_filters_are_in_the_address_and_back_brings_them_back(open_page, address):
    page = open_page(f"{address}/?q=jaguar")
    page.get_by_label("category").select_option("cars")
    page.get_by_role("button", name="Apply").click()
    assert {"topic=cars", "q=jaguar"} <= set(page.url.partition("?")[2].split("&"))
    for name in ("baseline", "index"):
        assert page.get_by_test_id(name).locator(".hit").count() == 3
        assert page.get_by_test_id(name).get_by_text("3 of 8 results").is_visible()
    page.get_by_label("category").select_option("")
    page.get_by_label("show").select_option("changed")
    page.get_by_role("button", name="Apply").click()
    assert page.get_by_text("No result passes the filters.").first.is_visible()  # all 8 are in both
    page.go_back()
    assert page.get_by_label("category").input_value() == "cars"


def test_hostile_titles_and_queries_are_text(open_page, address):
    page = open_page(f"{address}/?q=jaguar")
    assert page.get_by_test_id("index").get_by_text(HOSTILE).is_visible()
    query = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
    page.get_by_role("searchbox").fill(query)
    page.get_by_role("button", name="Search").click()
    assert page.get_by_role("searchbox").input_value() == query
    assert page.locator("h1").inner_text() == f"“{query}”"
    assert page.locator("img, script").count() == 0
    picture(page, "hostile")
    page.goto(f"{address}/group?q=<script>alert(3)</script>")
    assert page.get_by_role("alert").is_visible()
    assert page.locator("script").count() == 0
    page.goto(f"{address}/?q=יגואר")
    picture(page, "right-to-left")
    for query in ("%00", "a" * 2000):
        reply = page.request.get(f"{address}/?q={query}")
        assert reply.status == 422
        assert "cannot be answered" in reply.text()


def test_it_works_by_keyboard_alone(open_page, address):
    page = open_page(address)
    page.wait_for_function("document.activeElement.name === 'q'")  # the box takes the focus once drawn
    page.keyboard.type("jaguar")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=jaguar")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    picture(page, "focus")
    page.keyboard.press("Enter")
    for _ in range(5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Why?":
            break
    assert page.evaluate("document.activeElement.textContent") == "Why?"
    page.keyboard.press("Enter")
    page.wait_for_url("**open=*")
    assert page.locator("details[open]").count() == 1


def luminance(page):
    """Return the brightness of the page's paper and ink, 0 to 255."""
    style = "getComputedStyle(document.body)"
    colours = [page.evaluate(f"{style}.{name}") for name in ("backgroundColor", "color")]
    return [sum(int(part) for part in colour[4:-1].split(",")) / 3 for colour in colours]


def test_light_and_dark(open_page, address):
    light = luminance(open_page(f"{address}/?q=jaguar", color_scheme="light"))
    page = open_page(f"{address}/?q=jaguar", color_scheme="dark")
    dark = luminance(page)
    picture(page, "dark")
    assert light[0] > 200 > 100 > light[1]
    assert dark[0] < 60 < 180 < dark[1]


def test_a_phone_shows_one_column_and_nothing_beyond_its_edge(open_page, address):
    page = open_page(f"{address}/?q=jaguar&open=3", width=375, height=700, has_touch=True)
    page.locator("select[name=topic] option").first.evaluate("one => one.textContent = 'a'.repeat(99)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.locator("select[name=show]").bounding_box()["x"] < 200
    picture(page, "phone")
    page.goto(f"{address}/?q=jaguar&k=3")
    boxes = [page.get_by_test_id(name).bounding_box() for name in ("index", "baseline")]
    assert boxes[0]["x"] == boxes[1]["x"]
    assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]
    shown = [one for one in page.locator(".hit").all() if one.is_visible()]
    assert [one.get_attribute("id").split("-")[0] for one in shown] == ["baseline", *["index"] * 3]
    assert shown[0].get_attribute("data-item") == "2"  # what is gone; the others of the baseline are above
    page.goto(f"{address}/group?q=jaguar")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
