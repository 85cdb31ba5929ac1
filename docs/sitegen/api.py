"""A page for each package, from its docstrings."""

from __future__ import annotations

from pathlib import Path

import crops

PREFIX = "api/"
BASE = (
    "config",
    "schema",
    "labels",
    "database",
    "outputs",
    "text",
    "protocols",
    "plugins",
    "errors",
    "pipeline",
)
"""Modules outside the packages; they share a page."""


def packages() -> list[str]:
    """Return the names of the packages below `crops`, without the commands."""
    root = Path(crops.__file__).parent
    found = sorted(init.parent.name for init in root.glob("*/__init__.py"))
    return [name for name in found if name != "cli"]


def api_pages() -> dict[str, str]:
    """Return the Markdown of the pages, by their place in the site."""
    functions = "\n".join(_function(name) for name in crops.__all__)
    pages = {f"{PREFIX}crops.md": f"# crops\n\nThe commands as functions.\n\n{functions}"}
    base = "\n".join(f"::: crops.{name}\n" for name in BASE)
    pages[f"{PREFIX}base.md"] = f"# Modules\n\nThe modules outside the packages.\n\n{base}"
    for package in packages():
        pages[f"{PREFIX}{package}.md"] = f"# crops.{package}\n\n::: crops.{package}\n"
    return pages


def _function(name: str) -> str:
    where = getattr(crops, name).__module__
    return f"::: {where}.{name}\n    options:\n      show_root_heading: true\n"
