"""Events of the site's build (mkdocs): generated pages, links of the repository, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import TypeAlias

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from sitegen.api import api_pages
from sitegen.commands import by_task, command_pages, page_name, pages_by_command
from sitegen.examples import example_pages
from sitegen.recipes import recipe_pages
from sitegen.repository import INCLUDED, ROOT, is_absent, site_links
from sitegen.settings import settings_page

Nav: TypeAlias = "str | list[Nav] | dict[str, Nav]"
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>',
    re.DOTALL,
)
_FETCHED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
_METADATA = re.compile(r"rel=[\"']?(?:canonical|alternate|next|prev)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the navigation: `api/*` stands for all pages there that it does not name, `commands` for tasks."""
    pages = {
        **command_pages(pages_by_command(ROOT)),
        **api_pages(),
        **recipe_pages(ROOT),
        **example_pages(),
        "settings.md": settings_page(),
    }
    config.extra["generated"] = pages
    nav: Nav = config.nav or []
    tasks: list[Nav] = [{task: [page_name(words) for words in names]} for task, names in by_task().items()]
    config.nav = _filled(nav, sorted(pages.keys() - set(_named(nav))), tasks)
    return config


def _named(nav: Nav) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _named(entry)


def _filled(nav: Nav, generated: list[str], tasks: list[Nav]) -> Nav:
    if nav == "commands/*":
        return tasks
    if isinstance(nav, str):
        return [one for one in generated if one.startswith(nav[:-1])] if nav.endswith("/*") else nav
    if isinstance(nav, dict):
        return {title: _filled(value, generated, tasks) for title, value in nav.items()}
    entries = [_filled(one, generated, tasks) for one in nav if not _absent(one)]
    return [one for entry in entries for one in (entry if isinstance(entry, list) else [entry])]


def _absent(entry: Nav) -> bool:
    places = entry.values() if isinstance(entry, dict) else [entry]
    return any(is_absent(str(place)) for place in places)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and those that lie elsewhere in the repository."""
    for place, text in config.extra["generated"].items():
        files.append(File.generated(config, place, content=text))
    for source, place in INCLUDED.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    return site_links(markdown, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write formulas as MathML, which browsers draw without a script."""
    return _FORMULA.sub(
        lambda match: convert(unescape(match[2]), display="block" if match[1] == "div" else "inline"), html
    )


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would fetch anything from another server.

    Raises:
        PluginError: it would.
    """
    for match in _FETCHED.finditer(output):
        if not _METADATA.search(match[0]):
            raise PluginError(f"{page.file.src_uri} fetches {match[0]}; the site must work offline")
    return output
