"""The `crops` command: registers the functions, and turns errors into messages."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from crops.cli import judge
from crops.cli.analyse import analyse
from crops.cli.bubble_loop import bubble_loop
from crops.cli.calibrate import calibrate
from crops.cli.demo import demo
from crops.cli.engine_report import engine_report
from crops.cli.evaluate import evaluate
from crops.cli.experiment import experiment
from crops.cli.generate import generate
from crops.cli.index import encode, index
from crops.cli.logs import check, import_logs
from crops.cli.mine import mine
from crops.cli.mined import explain, export
from crops.cli.platform_report import platform_report
from crops.cli.power import power
from crops.cli.reproduce import reproduce
from crops.cli.search import search
from crops.cli.serve import serve
from crops.cli.simulate import simulate
from crops.cli.train import train
from crops.errors import CropsError
from crops.outputs import console, versions

HELP = (
    "Mine graded positives from search and feed logs, train a retriever with H-InfoNCE, "
    "and see whether the filter bubble broke."
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"crops {versions()['crops']}", highlight=False)
        raise typer.Exit


app = typer.Typer(
    name="crops",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for function in (
    demo,
    simulate,
    check,
    mine,
    engine_report,
    explain,
    export,
    train,
    evaluate,
    search,
    serve,
    index,
    encode,
    platform_report,
    generate,
    calibrate,
    reproduce,
    experiment,
    bubble_loop,
    analyse,
    power,
):
    app.command()(function)
app.command("import")(import_logs)
app.add_typer(judge.app, name=judge.COMMAND)


@app.callback(help=HELP)
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _tell_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print the warning of a library in a line, without the code that it came from."""
    said = " ".join(str(message).split())
    console.print(f"note ({category.__name__}): {said}", style="dim", markup=False, highlight=False)


def main() -> None:
    """Run the command line; exit code 2 for what the user can mend, 1 for a worse model, 130 for Ctrl-C."""
    warnings.showwarning = _tell_warning
    try:
        app()
    except CropsError as error:
        console.print("[bold red]error:[/bold red]", end=" ")
        console.print(str(error), markup=False, highlight=False)
        sys.exit(error.exit_code)
