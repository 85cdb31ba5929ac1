"""A page for each room, from its docstrings."""

from __future__ import annotations

from pathlib import Path

import crops

PREFIX = "api/"
BASE = ("labels", "schema", "protocols", "text", "outputs", "errors")
"""Small modules that share a page."""


def rooms() -> list[str]:
    """Return the names of the packages below `crops`, without the commands."""
    package = Path(crops.__file__).parent
    found = sorted(init.parent.name for init in package.glob("*/__init__.py"))
    return [name for name in found if name not in ("cli", *BASE)]


def api_pages() -> dict[str, str]:
    """Return the Markdown of the pages, by their place in the site."""
    functions = "\n".join(_function(name) for name in crops.__all__)
    pages = {f"{PREFIX}crops.md": f"# crops\n\nThe commands as functions.\n\n{functions}"}
    base = "\n".join(f"::: crops.{name}\n" for name in BASE)
    pages[f"{PREFIX}base.md"] = f"# Base files\n\nWhat every room stands on.\n\n{base}"
    for room in rooms():
        pages[f"{PREFIX}{room}.md"] = f"# crops.{room}\n\n::: crops.{room}\n"
    return pages


def _function(name: str) -> str:
    where = getattr(crops, name).__module__
    return f"::: {where}.{name}\n    options:\n      show_root_heading: true\n"
