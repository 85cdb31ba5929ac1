"""A page for each command, from the functions behind it: every argument, every option, its default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from rich.markup import render
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

import crops
from crops.cli import COMMANDS
from crops.cli.app import LazyCommand, app
from sitegen.repository import INCLUDED
from sitegen.usages import usages

PREFIX = "commands/"
OVERVIEW = "commands.md"
HISTORY = ("CHANGELOG.md", "LOG.md")
"""Pages that tell what was, not how to use a command."""
_FOOT = """
Each command is a typed function, `crops.train(...)` in Python, and checks its arguments before it writes
(`crops reproduce` is `crops.cli.simulate.reproduce`: `crops.reproduce` is the package). An option that is
left out falls back to the `--config` TOML of the run, and that to the default ([settings](settings.md)).
Exit code 2 is a fault that the user can fix, with a message that says how.
"""


@cache
def commands() -> dict[str, TyperCommand]:
    """Return every command by the words that call it: `train`, `judge sheet`."""
    return dict(_leaves(get_command(app), ()))


def _leaves(command: object, words: tuple[str, ...]) -> Iterator[tuple[str, TyperCommand]]:
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            yield from _leaves(child, (*words, name))
    elif isinstance(command, LazyCommand):
        yield " ".join(words), command.load()


def called(words: Sequence[str]) -> str | None:
    """Return the command that these words begin with, None where there is none."""
    known = commands()
    return next((name for n in (2, 1) if (name := " ".join(words[:n])) in known), None)


def pages_by_command(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Return title and place of the pages that show each command at work."""
    found: dict[str, list[tuple[str, str]]] = {}
    sources = {root / source: place for source, place in INCLUDED.items() if source not in HISTORY}
    sources |= {page: page.relative_to(root / "docs").as_posix() for page in (root / "docs").rglob("*.md")}
    for page, place in sorted(sources.items()):
        text = page.read_text()
        title = text.split("\n", 1)[0].lstrip("# ")
        names = {called(usage.words) for usage in usages(text)}
        for name in names - {None}:
            found.setdefault(str(name), []).append((title, place))
    return found


def page_name(words: str) -> str:
    """Return where the page of a command lies in the site."""
    return f"{PREFIX}{words.replace(' ', '-')}.md"


def command_pages(used_in: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, str]:
    """Return the Markdown of the pages, by their place in the site.

    Args:
        used_in: by command, the title and the place of the pages that show it.
    """
    found = commands()
    pages = {page_name(words): _page(words, one, used_in.get(words, ())) for words, one in found.items()}
    return {OVERVIEW: _overview(found), **pages}


def by_task() -> dict[str, list[str]]:
    """Return the words of the commands by what they are for, in the order of `crops --help`."""
    tasks: dict[str, list[str]] = {}
    for row in COMMANDS:
        tasks.setdefault(row.panel, []).append(row.words)
    return tasks


def _overview(found: Mapping[str, TyperCommand]) -> str:
    lines = ["# Commands"]
    for task, names in by_task().items():
        lines += ["", f"## {task}", "", "| command | |", "|---|---|"]
        for words in names:
            lines.append(f"| [`crops {words}`]({page_name(words)}) | {_cell(_sentences(found[words])[0])} |")
    return "\n".join(lines) + "\n" + _FOOT


def _page(words: str, command: TyperCommand, used_in: Sequence[tuple[str, str]]) -> str:
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    options = [one for one in command.params if isinstance(one, TyperOption) and not one.hidden]
    usage = " ".join(
        ["crops", words, *map(_written, arguments), *(f"{one.opts[0]} …" for one in options if one.required)]
    )
    lines = [f"# crops {words}", "", *_sentences(command), "", "```text", f"{usage} [OPTIONS]", "```"]
    if arguments:
        lines += ["", "| argument | |", "|---|---|"]
        lines += [f"| `{_written(one)}` | {_cell(render(one.help or '').plain)} |" for one in arguments]
    if options:
        lines += ["", "| option | default | |", "|---|---|---|"]
        lines += [
            f"| {_names(one)} | {_default(one)} | {_cell(render(one.help or '').plain)} |" for one in options
        ]
    function = command.callback
    if function is not None and function.__name__ in crops.__all__:
        anchor = f"{function.__module__}.{function.__name__}"
        lines += ["", f"In Python: [`crops.{function.__name__}`](../api/crops.md#{anchor})."]
    if used_in:
        links = ", ".join(f"[{title}](../{place})" for title, place in used_in)
        lines += ["", f"Shown at work in: {links}."]
    return "\n".join(lines) + "\n"


def _sentences(command: TyperCommand) -> list[str]:
    return str(command.help or "").strip().splitlines() or [""]


def _written(argument: TyperArgument) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _names(option: TyperOption) -> str:
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def _default(option: TyperOption) -> str:
    """Return the default as the help prints it: a text stands for one that is found later."""
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return _cell(option.show_default)
    if option.default is None:
        return "none"
    if isinstance(option.default, bool):
        return "yes" if option.default else "no"
    return f"`{option.default}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
