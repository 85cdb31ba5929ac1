"""A page for each recipe of `examples/logs`, from its folder: its raw files, its map, its commands."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "recipes/"
LOGS = "examples/logs"
_LINES, _WIDTH = 3, 150
"""What is shown of a raw file."""


def page_name(recipe: str) -> str:
    """Return where the page of a recipe lies in the site."""
    return f"{PREFIX}{recipe}.md"


def recipe_pages(root: Path) -> dict[str, str]:
    """Return the Markdown of the pages, by their place in the site."""
    folders = sorted(path.parent for path in (root / LOGS).glob("*/run.sh"))
    return {page_name(folder.name): "\n".join(_page(folder, root)) + "\n" for folder in folders}


def _page(folder: Path, root: Path) -> Iterator[str]:
    lines = (folder / "run.sh").read_text().splitlines()
    yield from (f"# Recipe: {folder.name}", "", lines[1].removeprefix("# "), "", "## The files", "")
    for name, shown in _raw(folder):
        yield from (f"`{name}`:", "", "```text", *shown, "```", "")
    packaged = root / "src" / "crops" / "logs" / "maps" / f"{folder.name}.toml"
    for map_ in (folder / "map.toml", packaged):
        if map_.exists():
            text = map_.read_text().rstrip()
            yield from (f"## The map, `{map_.relative_to(root)}`", "", "```toml", text, "```", "")
    commands = [line for line in lines if line.startswith("crops ")]
    small = (root / LOGS / "small.toml").read_text().splitlines()
    yield from ("## The commands", "", "```sh", *commands, "```", "")
    yield from (f"`small.toml`: {small[0].removeprefix('# ')}", "", "```toml", *small[1:], "```", "")
    script = f"{folder.relative_to(root)}/run.sh"
    yield f"`{script}` runs them on these files, which `{LOGS}/make_logs.py` writes; a test does too."


def _raw(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the files of the recipe, as its script makes them, with their first lines."""
    with tempfile.TemporaryDirectory() as made:
        make = [sys.executable, str(folder.parent / "make_logs.py"), folder.name, made]
        subprocess.run(make, check=True)
        for file in sorted(Path(made).iterdir()):
            first = file.read_text("utf-8").splitlines()[:_LINES]
            yield file.name, [line if len(line) <= _WIDTH else f"{line[:_WIDTH]}…" for line in first]
