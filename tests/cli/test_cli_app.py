"""The command line starts fast: what is heavy is imported by the command that needs it."""

import ast
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from crops.cli import COMMANDS, GROUPS
from crops.cli.app import app

HEAVY = {"torch", "scipy", "pandas", "sklearn", "jax", "duckdb", "pyarrow", "numpy", "sentence_transformers"}


def imported(code, heavy=HEAVY):
    """Return the heavy packages, and the commands' modules, that code imports in a new process."""
    asked = f"{code}\nimport sys; print('\\n', sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    modules = set(ast.literal_eval(done.stdout.splitlines()[-1].strip()))
    return modules & heavy, {name for name in modules if name.startswith("crops.cli.")}


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["judge", "--help"], ["serach"]])
def test_help_imports_no_command_and_no_heavy_library(words):
    run = f"import sys, crops.cli; sys.argv = ['crops', *{words}]"
    assert imported(f"{run}\ntry: crops.cli.main()\nexcept SystemExit: pass") == (set(), {"crops.cli.app"})


def test_commands_explain_themselves_without_what_takes_seconds_to_import():
    heavy = {"torch", "transformers", "scipy.stats", "scipy.optimize", "pandas", "sklearn", "jax", "bm25s"}
    found, modules = imported("from crops.cli import COMMANDS\nfor row in COMMANDS: row.function()", heavy)
    assert found == set()
    assert {f"crops.cli.{row.place.partition(':')[0]}" for row in COMMANDS} <= modules


def test_the_package_imports_nothing():
    assert imported("import crops; assert 'mine' in dir(crops)") == (set(), set())


def test_commands_stand_in_groups_with_import_first():
    page = CliRunner().invoke(app, ["--help"]).output
    panels = re.findall(r"^╭─ (.+?) ─", page, re.MULTILINE)
    assert panels == [
        "Options", "Your logs", "Train and evaluate", "Serve", "Simulate and reproduce", "Online"
    ]  # fmt: skip
    names = re.findall(r"^│ ([a-z][a-z-]+)  ", page, re.MULTILINE)
    assert names[0] == "import"
    assert set(names) == {row.words.partition(" ")[0] for row in COMMANDS}
    assert {row.words.partition(" ")[0] for row in COMMANDS if " " in row.words} == set(GROUPS)


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["serach"], "search"), (["platform_report"], "platform-report"), (["judge", "shet"], "sheet")],
)
def test_a_mistyped_command_gets_the_nearest_name(words, meant):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert f"Did you mean '{meant}'?" in result.output


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.words)
def test_every_command_loads_and_explains_itself(row):
    assert row.function().__name__ == row.name
    result = CliRunner().invoke(app, [*row.words.split(), "--help"])
    assert result.exit_code == 0
    assert f"Usage: crops {row.words} " in " ".join(result.output.split())
