"""What the pages tell the reader to type exists; each command and each room has a page."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from sitegen.api import api_pages
from sitegen.commands import HISTORY, OVERVIEW, by_task, called, command_pages, commands, page_name
from sitegen.examples import example_pages
from sitegen.repository import INCLUDED, ROOT
from sitegen.settings import settings_page
from sitegen.usages import usages
from typer.core import TyperArgument, TyperOption

from crops.cli import LOGS
from crops.config import RunConfig

TOLD = {ROOT / source for source in INCLUDED if source not in HISTORY}
PAGES = sorted(TOLD | set((ROOT / "docs").rglob("*.md")))
COMMANDS = commands()
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}


def fault(usage):
    """Return what is wrong with a call of `crops`, None where nothing is."""
    name = called(usage.words)
    if name is None:
        words = [word for word in usage.words if not word.startswith("-")]
        return None if words and words[0] in GROUPS and len(words) == 1 else f"no command {usage.words[0]}"
    parameters = COMMANDS[name].params
    options = {flag: one for one in parameters if isinstance(one, TyperOption) for flag in _flags(one)}
    arguments = [one for one in parameters if isinstance(one, TyperArgument)]
    given, rest = [], list(usage.words[len(name.split()) :])
    while rest:
        word, _, value = rest.pop(0).partition("=")
        if not word.startswith("--"):
            given.append(word)
        elif word not in options and word != "--help":
            return f"crops {name} has no option {word}"
        elif word != "--help" and not options[word].is_flag and not value and rest:
            rest.pop(0)
    return _wrong_number(name, given, arguments) if usage.complete and not usage.inline else None


def _flags(option):
    return [*option.opts, *option.secondary_opts]


def _wrong_number(name, given, arguments):
    fewest = sum(one.required for one in arguments)
    many = any(one.nargs == -1 for one in arguments)
    if len(given) < fewest or (len(given) > len(arguments) and not many):
        return f"crops {name} takes {fewest} to {len(arguments)} arguments, not {given}"
    return None


TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES} | example_pages()


@pytest.mark.parametrize("page", TEXTS)
def test_commands_and_options_on_a_page_exist(page):
    found = [(usage.line, fault(usage)) for usage in usages(TEXTS[page])]
    assert [one for one in found if one[1]] == []


def test_containers_run_commands_that_exist_and_extras_that_exist():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    calls = [
        f"crops {shlex.join(one['command'])}" for one in services.values() if one.get("image") == "crops"
    ]
    assert len(calls) == 4
    (found,) = {fault(usage) for usage in usages("```sh\n" + "\n".join(calls) + "\n```\n")}
    assert found is None
    text = (ROOT / "compose.yaml").read_text() + (ROOT / "Dockerfile").read_text()
    extras = {extra for match in re.findall(r"EXTRAS[=:] ?\"?([a-z,]+)", text) for extra in match.split(",")}
    assert extras <= set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))


@pytest.mark.parametrize(("line", "wrong"), [
    ("crops train mined model --steps 5 --bf16  # a comment", None),
    ("torchrun --no-python --nproc-per-node 2 crops train mined model", None),
    ("crops train mined model \\\n  --encoder=minilm | tee log", None),
    ("crops train mined", "crops train takes 2 to 2 arguments, not ['mined']"),
    ("crops mine ... --engine spark", None),
    ("crops train a b --stepz 5", "crops train has no option --stepz"),
    ("crops tran a b", "no command tran"),
    ("crops judge sheet mined sheet.csv --each 3", None),
    ("crops judge sheets mined sheet.csv", "no command judge"),
    ("crops bubble-loop --days 2 && crops evaluat x", None),
])  # fmt: skip
def test_faults_of_a_call_are_named(line, wrong):
    (usage, *_) = usages(f"```sh\n{line}\n```\n")
    assert fault(usage) == wrong


def test_calls_are_found_in_shell_blocks_and_in_running_text():
    text = (
        "Use `crops mine LOGS`, `crops train`, not `crops.train` or crops mine.\n\n```python\ncrops x\n```\n"
    )
    assert [usage.words for usage in usages(text)] == [("mine", "LOGS"), ("train",)]
    (usage,) = usages("text\n\n```sh\nls\ncrops check logs  # here\n```\n")
    assert (usage.line, usage.words) == (5, ("check", "logs"))


def test_each_command_has_a_page_with_every_option_and_default():
    pages = command_pages({"mine": [("Engine", "engine.md")]})
    assert set(pages) == {OVERVIEW, *map(page_name, COMMANDS)}
    tasks = [line.removeprefix("## ") for line in pages[OVERVIEW].splitlines() if line.startswith("## ")]
    assert (tasks[0], len(tasks)) == (LOGS, len(by_task()))
    for name, command in COMMANDS.items():
        page = pages[page_name(name)]
        assert f"({page_name(name)})" in pages[OVERVIEW]
        for option in (one for one in command.params if isinstance(one, TyperOption)):
            assert re.search(rf"^\| `{option.opts[0]}`.* \| \S.* \|", page, re.MULTILINE), (name, option.opts)
    assert "| `--window` | 7 |" in pages["commands/mine.md"]
    assert "[Engine](../engine.md)" in pages["commands/mine.md"]
    assert "| `--out` | required |" in pages["commands/theta-calibrate.md"]


def test_each_package_has_a_page_and_a_line_in_the_architecture():
    packages = {path.parent.name for path in (ROOT / "src/crops").glob("*/__init__.py")} - {"cli"}
    assert {f"api/{package}.md" for package in packages} < set(api_pages())
    architecture = (ROOT / "docs/architecture.md").read_text()
    assert [package for package in packages | {"cli"} if f"`{package}/`" not in architecture] == []


def test_every_setting_stands_on_the_settings_page():
    page = settings_page()
    assert "## engine.daily.decay" in page
    assert "| `p2` | `0.8` | What people watch" in page
    assert '| `sources` | `["search", "p1", "p2", "p3"]` |' in page
    for section, values in RunConfig().model_dump().items():
        for key in values if isinstance(values, dict) else [section]:
            assert f"| `{key}` |" in page or f"## {section}.{key}\n" in page, (section, key)


def test_extras_that_pages_name_exist():
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"'(?:crops|\.)\[([\w,]+)\]'", Path(page).read_text())
        assert {one for extra in named for one in extra.split(",")} <= extras, page
