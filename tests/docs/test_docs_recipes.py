"""The pages of the recipes are made from their folders."""

from sitegen.commands import called
from sitegen.recipes import page_name, recipe_pages
from sitegen.repository import ROOT, site_links
from sitegen.usages import usages

LOGS = ROOT / "examples" / "logs"


def test_each_recipe_has_a_page_with_its_files_map_and_commands():
    pages = recipe_pages(ROOT)
    scripts = {path.parent.name: path.read_text() for path in LOGS.glob("*/run.sh")}
    assert set(pages) == {page_name(name) for name in scripts}
    for name, script in scripts.items():
        page, map_ = pages[page_name(name)], LOGS / name / "map.toml"
        shown = [one.words for one in usages(page) if not one.inline]
        assert shown == [tuple(line.split()[1:]) for line in script.splitlines() if line.startswith("crops ")]
        assert all(called(words) for words in shown)
        assert not map_.exists() or map_.read_text() in page
    assert "`items.csv`:\n\n```text\nid,title\n1001,oak desk lamp\n" in pages["recipes/click_lists.md"]
    assert '"items.item_id" = "items.0.item_id"' in pages["recipes/ga4.md"]  # the packaged map


def test_a_link_to_its_script_leads_to_the_page():
    text = "[r](../examples/logs/ubi/run.sh) [m](../examples/logs/make_logs.py)"
    assert site_links(text, "own-logs.md") == "[r](recipes/ubi.md) m"
