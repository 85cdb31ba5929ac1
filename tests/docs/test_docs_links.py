"""Links of README, docs and the other pages of the repository lead somewhere, there and on the site."""

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from pymdownx.slugs import slugify
from sitegen.examples import example_pages
from sitegen.repository import EXAMPLES, INCLUDED, OPTIONAL, site_links

ROOT = Path(__file__).parents[2]
PAGES = sorted({ROOT / source for source in INCLUDED} | set((ROOT / "docs").rglob("*.md")))
SLUG = slugify(case="lower")


def inline(text):
    return [token for token in MarkdownIt().enable("table").parse(text) if token.type == "inline"]


def links(text):
    children = [child for token in inline(text) for child in token.children]
    return [child.attrs[name] for child in children for name in ("href", "src") if name in child.attrs]


def anchors(text):
    tokens = MarkdownIt().parse(text)
    headings = [
        after for token, after in zip(tokens, tokens[1:], strict=False) if token.type == "heading_open"
    ]
    words = ["".join(child.content for child in heading.children) for heading in headings]
    return {SLUG(one, "-") for one in words}


def broken(page, text):
    """Return the links of a page whose file or heading is not there."""
    found = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if path and not target.exists():
            if target.name not in OPTIONAL:
                found.append(link)
        elif anchor and anchor not in anchors(text if target == page else target.read_text()):
            found.append(link)
    return found


TEXTS = {page: page.read_text() for page in PAGES} | {
    ROOT / source: example_pages()[place] for source, place in EXAMPLES.items()
}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_exist(page):
    assert broken(page, TEXTS[page]) == []


def test_a_broken_link_is_found():
    text = "# A b\n[x](nowhere.md) ![y](no.png) [z](#a-b) [w](#c) [v](tables.md#items) [u](tables.md#itemz)\n"
    assert broken(ROOT / "docs/page.md", text) == ["nowhere.md", "no.png", "#c", "tables.md#itemz"]


def test_links_of_the_repository_become_links_of_the_site():
    readme = "[a](docs/own-logs.md#x) ![p](docs/report.png) [b](LICENSE) [c](LOG.md) [d](https://e.org/f)\n"
    assert site_links(readme, "index.md") == (
        "[a](own-logs.md#x) ![p](report.png) b [c](log.md) [d](https://e.org/f)\n"
    )
    example = "[s](../examples/spark.sh) [e](engine.md)"
    assert site_links(example, "own-logs.md") == "[s](examples/spark.md) [e](engine.md)"
    assert site_links("[e](../docs/engine.md)", "examples/spark.md") == "[e](../engine.md)"
    importer = "[t](../tables.md) [r](../../benchmarks/RESULTS.md#losses) [h](#here)"
    assert (
        site_links(importer, "importers/ubi.md")
        == "[t](../tables.md) [r](../benchmarks.md#losses) [h](#here)"
    )


def test_code_is_no_link():
    block = "```python\nx[0](docs/y.md)\n```\n[a](docs/y.md)"
    assert site_links(block, "index.md") == "```python\nx[0](docs/y.md)\n```\n[a](y.md)"
