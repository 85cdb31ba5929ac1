"""Files of the repository that are pages of the site too, and links that hold in both places."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from sitegen.recipes import LOGS, page_name

ROOT = Path(__file__).parents[2]
INCLUDED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LOG.md": "log.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "benchmarks/calibration/README.md": "calibration.md",
    "src/crops/llm/data/README.md": "packaged-documents.md",
}
"""Pages that lie outside docs/, by their place in the repository."""
EXAMPLES = {
    path.relative_to(ROOT).as_posix(): path.relative_to(ROOT).with_suffix(".md").as_posix()
    for pattern in ("*.py", "*.sh", "*.ipynb", "extending/*.py")
    for path in sorted((ROOT / "examples").glob(pattern))
}
"""Scripts that have a page, and its place in the site."""
OPTIONAL = ("results.md",)
"""Pages that a command writes: in the navigation, and linked, once they exist."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^ {0,3}(```|~~~)")


def origin(page: str) -> str:
    """Return where the text of a page lies in the repository."""
    outside = {**INCLUDED, **EXAMPLES}
    return next((source for source, place in outside.items() if place == page), f"docs/{page}")


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Return the text with every line outside of fenced blocks changed."""
    lines, fenced = [], False
    for line in markdown.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else change(line))
    return "\n".join(lines)


def site_links(markdown: str, page: str) -> str:
    """Return a page's text with its links as the site needs them.

    A link to a file of the repository that is no page keeps its text only.
    """
    here = posixpath.dirname(page)
    folder = posixpath.dirname(origin(page))

    def link(match: re.Match[str]) -> str:
        bang, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return match[0]
        place = _place(posixpath.normpath(posixpath.join(folder, path)))
        if place is None:
            return text
        moved = posixpath.relpath(place, here or ".") + (f"#{anchor}" if anchor else "")
        return f"{bang}[{text}]({moved})"

    return outside_fences(markdown, lambda line: _LINK.sub(link, line))


def _place(path: str) -> str | None:
    """Return where a file of the repository is in the site, None where it is not."""
    if path in INCLUDED or path in EXAMPLES:
        return INCLUDED.get(path) or EXAMPLES[path]
    if path.startswith(f"{LOGS}/") and path.endswith("/run.sh"):
        return page_name(path.split("/")[-2])
    place = path.removeprefix("docs/")
    return None if place == path or is_absent(place) else place


def is_absent(place: str) -> bool:
    """Return whether a page is yet to be written by a command."""
    return place in OPTIONAL and not (ROOT / "docs" / place).exists()
