"""Truth stays away from learning: nothing that checks, mines, trains or retrieves opens or imports it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import crops
from crops.platform import write_day, write_items, write_truth

SOURCE = Path(crops.__file__).parent
LEARNING = ("engine", "training", "logs", "encoders", "losses", "retrieval", "relevance", "llm", "negatives")
MAY_KNOW = ("platform", "simulation.py", "cli", "reproduce", "online", "report", "serving")
"""Rooms that build platforms or compose rooms."""
SETTINGS = """
[relevance]
model = "none"
[training]
steps = 4
batch_queries = 16
dim = 16
"""
opened: list[str] | None = None


def listen(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and opened is not None:
        opened.append(str(args[0]))


sys.addaudithook(listen)


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_that_learn_neither_import_the_platform_nor_name_the_files_of_the_truth():
    files = {file: file.relative_to(SOURCE).parts[0] for file in SOURCE.rglob("*.py")}
    assert set(LEARNING) <= set(files.values())
    for file, room in files.items():
        if room not in MAY_KNOW:
            assert not [name for name in imported(file) if name.startswith("crops.platform")], file
        if room in LEARNING:
            names = [name for name in ("grades", "needs", "abusers") if f"{name}.parquet" in file.read_text()]
            assert names == [], file


def test_the_platform_knows_no_room_that_learns():
    names = [name for file in (SOURCE / "platform").glob("*.py") for name in imported(file)]
    rooms = {name.split(".")[1] for name in names if name.startswith("crops.")}
    assert not rooms & {*LEARNING, "evaluation"} - {"logs"}


@pytest.fixture(scope="module")
def world(run_days, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    platform, days = run_days(days=2)
    for number, logs in enumerate(days):
        write_day(folder / "logs", number, logs)
    write_items(folder / "logs", platform)
    write_truth(folder / "truth", platform, [(logs.search_ids, logs.search_needs) for logs in days])
    (folder / "run.toml").write_text(SETTINGS)
    return folder


def learn(world: Path, out: Path) -> None:
    """Check, mine and train as a team would with its own logs."""
    config = world / "run.toml"
    crops.check(world / "logs", out / "checked")
    crops.mine(out / "checked" / "accepted", out / "mined", config=config, sources="search,p1,p2")
    crops.train(out / "mined", out / "model", config=config)
    assert crops.search(str(out / "model"), "transformer", items=out / "mined", k=3)


def results(out: Path) -> dict[str, bytes]:
    """The bytes of every table and weight."""
    files = [*out.rglob("*.parquet"), *out.rglob("*.safetensors")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def test_learning_neither_opens_the_truth_nor_depends_on_it(world, tmp_path):
    global opened
    opened = []
    try:
        learn(world, tmp_path / "with")
        touched = opened
    finally:
        opened = None
    assert [path for path in touched if str(world / "truth") in path] == []
    assert [path for path in touched if str(tmp_path / "with") in path] != []  # the ear is open
    # DuckDB opens files behind the ear's back: without the truth everything must come out the same
    (world / "truth").rename(tmp_path / "hidden")
    learn(world, tmp_path / "without")
    (tmp_path / "hidden").rename(world / "truth")
    first, second = results(tmp_path / "with"), results(tmp_path / "without")
    assert any(name.endswith("samples.parquet") for name in first)
    weights = next((tmp_path / "with" / "model").rglob("*.safetensors"))
    assert load_file(weights)
    assert first == second
