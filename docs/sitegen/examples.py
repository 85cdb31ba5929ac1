"""A page for each example, from the example alone: its docstring or first comment, then its code."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from sitegen.repository import EXAMPLES, ROOT

_COMMENT = re.compile(r"#!.*\n((?:#.*\n)+)")


def example_pages() -> dict[str, str]:
    """Return the Markdown of the pages, by their place in the site."""
    return {place: _page(ROOT / source) for source, place in EXAMPLES.items()}


def _page(path: Path) -> str:
    text = path.read_text()
    if path.suffix == ".ipynb":
        return "\n\n".join(part for cell in json.loads(text)["cells"] for part in _cell(cell)) + "\n"
    if path.suffix == ".py":
        told = ast.get_docstring(ast.parse(text)) or ""
        code, language = text.split('"""\n', 2)[-1], "python"
    else:
        comment = _COMMENT.match(text)
        lines = comment[1].splitlines() if comment else []
        told = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)
        code, language = _COMMENT.sub("", text, count=1), "sh"
    title, _, words = told.partition("\n")
    source = path.relative_to(ROOT).as_posix()
    return f"# {title.rstrip('.')}\n\n{words.strip()}\n\n`{source}`:\n\n```{language}\n{code.strip()}\n```\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    """Yield a cell of a notebook as Markdown: words, or code and the outputs that are kept with it."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for data in (output["data"] for output in cell["outputs"] if "data" in output):
        if "image/png" in data:
            told = "".join(data["text/plain"])
            yield f'<img alt="{escape(told)}" src="data:image/png;base64,{data["image/png"].strip()}">'
        elif "text/markdown" in data:
            yield "".join(data["text/markdown"])
