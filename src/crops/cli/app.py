"""The `crops` command: loads the function that is asked for, and turns errors into messages."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from crops.cli import COMMANDS, GROUPS, Command
from crops.errors import CropsError
from crops.outputs import console, versions

HELP = (
    "Mine graded positives from search and feed logs, train a retriever with H-InfoNCE, "
    "and see whether the filter bubble broke."
)


def run() -> None:
    """Run the command line.

    Exit code 2 for what the user can fix, 1 for a worse model or too many rejected rows, 130 for Ctrl-C.
    """
    warnings.showwarning = _print_warning
    try:
        app()
    except CropsError as error:
        console.print("[bold red]error:[/bold red]", end=" ")
        console.print(str(error), markup=False, highlight=False)
        sys.exit(error.exit_code)


def _print_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print the warning of a library in a line, without the code that it came from."""
    said = " ".join(str(message).split())
    console.print(f"note ({category.__name__}): {said}", style="dim", markup=False, highlight=False)


class LazyCommand(TyperCommand):
    """A command that is imported when it is called; its help line is known before."""

    def __init__(self, row: Command) -> None:
        """Make the command of a row of the table."""
        name = row.words.rpartition(" ")[2]
        super().__init__(name, help=row.help, rich_help_panel=None if " " in row.words else row.panel)
        self._row = row

    def load(self) -> TyperCommand:
        """Import the function and return the command with its options."""
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(self.name)(self._row.function())
        loaded = typer.main.get_command(single)
        assert isinstance(loaded, TyperCommand)
        return loaded

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:  # noqa: ANN401
        """Parse the arguments of the real command; its import takes a second or two, and says so."""
        module = f"crops.cli.{self._row.place.partition(':')[0]}"
        if module in sys.modules or (not console.is_terminal and "--help" in args):
            return self.load().make_context(info_name, args, *rest, **extra)
        if console.is_terminal:
            with console.status("loading ..."):
                self._row.function()
        else:
            console.print("[dim]·[/dim] load")
        return self.load().make_context(info_name, args, *rest, **extra)


class Commands(TyperGroup):
    """All commands of the table; those of two words in groups."""

    def __init__(self, **attrs: Any) -> None:  # noqa: ANN401 (typer's)
        """Fill the table in."""
        super().__init__(**attrs)
        groups = {
            name: TyperGroup(name=name, help=text, rich_help_panel=panel, no_args_is_help=True)
            for name, (panel, text) in GROUPS.items()
        }
        for row in COMMANDS:
            first, _, second = row.words.partition(" ")
            if second:
                groups[first].add_command(LazyCommand(row))
                self.add_command(groups[first])
            else:
                self.add_command(LazyCommand(row))


app = typer.Typer(
    name="crops", cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"crops {versions()['crops']}", highlight=False)
        raise typer.Exit


@app.callback(help=HELP)
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
