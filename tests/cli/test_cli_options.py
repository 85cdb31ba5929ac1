"""The commands as functions: text or paths, one value or several, checked before anything is written."""

import datetime
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import pytest

import crops
from crops.cli.options import Options, command
from crops.config import RunConfig
from crops.errors import CropsError


@command
def echo(
    folder: Path,
    day: list[str] | None = None,
    ids: list[int] | None = None,
    others: list[Path] | None = None,
    out: Path | None = None,
    name: str = "a",
) -> tuple:
    return folder, day, ids, others, out, name


def test_text_paths_days_and_lists_of_one_are_taken(tmp_path):
    assert echo(str(tmp_path), "2026-01-05", 3, "b", "c", Path("d")) == (
        tmp_path,
        ["2026-01-05"],
        [3],
        [Path("b")],
        Path("c"),
        "d",
    )
    day, other = datetime.date(2026, 1, 5), "2026-01-06"
    assert echo(tmp_path, (day, other), np.array([3, 4]), [Path("b"), "c"])[1:4] == (
        ["2026-01-05", other],
        [3, 4],
        [Path("b"), Path("c")],
    )
    assert echo(tmp_path, []) == (tmp_path, [], None, None, None, "a")


@pytest.mark.parametrize("name", crops.__all__)
def test_every_argument_of_every_command_is_checked_before_anything_is_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(crops, name)
    parameters = inspect.signature(function).parameters
    required = {key: "x" for key, one in parameters.items() if one.default is one.empty}
    for key in parameters:
        with pytest.raises(CropsError, match=rf"^crops\.{name}: {key}="):
            function(**required | {key: object()})
    assert list(tmp_path.iterdir()) == []


def test_bounds_of_options_hold_in_python():
    with pytest.raises(
        CropsError, match=r"crops.power: chance=5: input should be less than or equal to 0.999"
    ):
        crops.power("logs", chance=5)
    with pytest.raises(CropsError, match=r"crops.encode: dims=0: input should be greater than or equal to 1"):
        crops.encode("model", "items", out="out.parquet", dims=0)
    with pytest.raises(TypeError, match="dayz"):
        crops.mine("logs", "mined", dayz="2026-01-05")


@command
def settled(
    out: Path,
    memory: str | None = None,
    *,
    run: Annotated[
        RunConfig,
        Options(
            memory="engine.memory",
            days="engine.days",
            sources="engine.sources",
            window="engine.daily.window",
            bf16="training.bf16",
            users="platform.users",
            click_model="platform.click_model",
        ),
    ],
) -> tuple:
    return out, memory, run


def test_options_of_settings_override_the_toml_and_are_told_to_who_asks(tmp_path):
    (tmp_path / "run.toml").write_text('seed = 4\n[engine]\nmemory = "3GB"\nk = 7\n')
    out, memory, run = settled("out", days="2026-01-05,2026-01-06", config=tmp_path / "run.toml")
    assert (out, memory) == (Path("out"), None)
    assert (run.seed, run.engine.k, run.engine.memory) == (4, 7, "3GB")
    assert run.engine.days == ("2026-01-05", "2026-01-06")
    _, memory, run = settled("out", "1GB", config=tmp_path / "run.toml", bf16=True)
    assert (memory, run.engine.memory, run.engine.days, run.training.bf16) == ("1GB", "1GB", None, True)
    assert settled("out", run=run)[2] is run
    with pytest.raises(CropsError, match=r"crops\.settled: give run, or its settings one by one, not both"):
        settled("out", days="2026-01-05", run=run)
    with pytest.raises(CropsError, match=r"crops\.settled: run='run\.toml': give what crops\.config\.load"):
        settled("out", run="run.toml")
    with pytest.raises(CropsError, match=r"^--users = 1: input should be greater"):
        settled("out", users=1, config=tmp_path / "run.toml")
    (tmp_path / "run.toml").write_text("[platform]\nusers = 1\n[index]\nkind = 'hnws'\n")
    with pytest.raises(CropsError, match=r"run\.toml: setting 'platform\.users' = 1: .* mean 'hnsw'\?"):
        settled("out", config=tmp_path / "run.toml")


def test_an_option_has_the_type_the_default_and_the_help_of_its_setting():
    def made(key):
        kind, info = get_args(inspect.signature(settled).parameters[key].annotation)
        return kind, info.show_default, info.help

    assert made("window") == (
        int | None, "7", "Days in the window of daily builds; what is older is dropped.",
    )  # fmt: skip
    assert made("bf16")[:2] == (bool | None, "no")
    kind, shown, text = made("sources")
    assert (kind, shown) == (list[str] | None, "search,p1,p2,p3")
    assert text.endswith("Repeat, or separate by commas.")
    kind, shown, text = made("click_model")
    assert (kind, shown, text[-22:]) == (str | None, "dbn", "One of: dbn, dcm, pbm.")
    assert made("users")[:2] == (int | None, False)


def test_the_commands_are_listed():
    assert set(crops.__all__) < set(dir(crops))
    assert "importlib" not in dir(crops)
    assert "mine" in crops.__all__
    assert "reproduce" not in crops.__all__  # the room


def public_functions():
    for module in pkgutil.iter_modules(crops.__path__):
        room = importlib.import_module(f"crops.{module.name}")
        for name in getattr(room, "__all__", ()):
            if inspect.isfunction(function := getattr(room, name)) and module.name != "cli":
                yield pytest.param(function, id=f"{module.name}.{name}")


@pytest.mark.parametrize("function", public_functions())
def test_functions_of_the_rooms_take_paths_as_text(function):
    """mypy sees that what is declared as text or path is made a path."""
    signature = inspect.signature(function)
    narrow = {
        name: hint.annotation
        for name, hint in signature.parameters.items()
        if "Path" in str(hint.annotation) and "str | Path" not in str(hint.annotation)
    }
    assert narrow == {}


def test_a_check_and_a_mining_by_text_and_by_path_are_the_same(write_logs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_logs(tmp_path / "logs", impressions=[{"clicked": True}, {"item_id": 2}])
    report = crops.check("logs", "checked")
    assert report.tables == crops.check(tmp_path / "logs", Path("again")).tables
    for number, day in enumerate(("2026-01-05", ["2026-01-05"], datetime.date(2026, 1, 5))):
        mined = crops.mine("checked/accepted", f"mined{number}", day=day, relevance="none")
        assert mined["days"] == ["2026-01-05"]
    found = crops.search("bm25", "item", items="mined0")
    assert [item for item, *_ in found] == ["1", "2"]
    assert crops.search(Path("bm25"), "item", items=Path("mined0")) == found
