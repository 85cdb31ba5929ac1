"""The whole site: it builds without a warning, and fetches nothing."""

import re
import shutil
import subprocess
import sys

import pytest
from sitegen.commands import commands, page_name
from sitegen.repository import ROOT

pytestmark = pytest.mark.verify


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_command_has_its_page_and_nothing_is_fetched_from_elsewhere(site):
    assert all((site / page_name(name)).with_suffix(".html").is_file() for name in commands())
    fetched = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//")
    imported = re.compile(r"@import\s+[\"']?http|url\([\"']?http")
    assert [page for page in site.rglob("*.html") if fetched.search(page.read_text())] == []
    assert [style for style in site.rglob("*.css") if imported.search(style.read_text())] == []


def test_formulas_are_drawn_without_a_script(site):
    page = (site / "concepts.html").read_text()
    assert "<math" in page
    assert "arithmatex" not in page


def test_search_works_in_a_page_that_is_opened_from_disk(site):
    shown = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a Chromium")
    with shown.sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.goto((site / "commands" / "mine.html").as_uri())
        page.click("input.md-search__input")
        page.keyboard.type("temperature")
        found = page.wait_for_selector(".md-search-result__link[href*='temperature']")
        assert found.get_attribute("href").startswith("file:")
