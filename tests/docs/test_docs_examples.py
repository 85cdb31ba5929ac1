"""Each script of `examples` does what its page says, on small data."""

import csv
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import types
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sitegen.examples import example_pages
from sitegen.repository import EXAMPLES, ROOT
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model
from typer.testing import CliRunner

import crops
from crops.cli.app import app
from crops.config import RECIPES

SCRIPTS = ROOT / "examples"
sys.path.append(str(SCRIPTS / "logs"))
import make_logs  # noqa: E402

DAYS = ("2026-01-05", "2026-01-06", "2026-01-07")
MAP = SCRIPTS / "logs" / "impressions" / "map.toml"


def call(words):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (words, result.output, result.exception)


def commands_of(line, folder, **environment):
    """Run a shell line in a folder; return the calls of crops that it makes, which are noted and not done."""
    noted = folder / "noted"
    noted.mkdir(exist_ok=True)
    (noted / "crops").write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >>{noted}/calls\necho >>{noted}/calls\n")
    (noted / "torchrun").write_text("#!/bin/sh\nuntil [ $1 = crops ]; do shift; done\nexec $*\n")
    for name in ("crops", "torchrun"):
        (noted / name).chmod(0o755)
    path = f"{noted}:{os.environ['PATH']}"
    subprocess.run(line, shell=True, cwd=folder, check=True, env={**os.environ, **environment, "PATH": path})
    calls = (noted / "calls").read_text()
    (noted / "calls").unlink()
    return [one.split("\0")[:-1] for one in calls.splitlines()]


def script(name, *words, monkeypatch):
    """Run a script of Python as `python NAME WORDS` does."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    (folder / "source").mkdir()
    make_logs.impressions(folder / "source")
    crops.import_logs("table", folder / "source", out=folder / "logs", mapping=MAP)
    return folder / "logs"


@pytest.fixture(scope="module")
def mined(logs):
    crops.check(logs, logs.parent / "checked")
    crops.mine(logs.parent / "checked" / "accepted", logs.parent / "mined", relevance="none")
    return logs.parent / "mined"


@pytest.fixture(scope="module")
def words():
    """A tokenizer of pieces of bytes, as Qwen2.5 has it, of the words of the logs."""
    pieces, ends = Tokenizer(models.BPE()), "<|endoftext|>"
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[ends], initial_alphabet=alphabet)
    pieces.train_from_iterator((title for title, _ in make_logs.ITEMS.values()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token=ends, eos_token=ends)


@pytest.fixture(scope="module")
def qwen(words, tmp_path_factory):
    """A cache of the Hub that holds a model of Qwen2.5-0.5B's architecture under its name, very small."""
    cache = tmp_path_factory.mktemp("hub")
    of_model = cache / "models--Qwen--Qwen2.5-0.5B"
    (of_model / "refs").mkdir(parents=True)
    (of_model / "refs" / "main").write_text("small")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(words), intermediate_size=32, **sizes)
    Qwen2Model(config).save_pretrained(of_model / "snapshots" / "small")
    words.save_pretrained(of_model / "snapshots" / "small")
    return cache


def test_every_script_has_a_page_with_its_title_its_words_and_its_code():
    pages = example_pages()
    assert {f"examples/{path.name}" for path in SCRIPTS.glob("*.*")} <= set(EXAMPLES)
    assert set(pages) == set(EXAMPLES.values())
    page = pages["examples/spark.md"]
    assert page.startswith("# Mining on Spark\n\nThe same accepted rows and samples, row for row")
    assert "\n    sh spark.sh LOGS OUT " in page
    assert "```sh\nset -eu\n" in page
    assert pages["examples/judged.md"].startswith("# Graded judgements: any documents, queries and qrels\n")
    assert "```python\nimport sys\n" in pages["examples/judged.md"]


def test_the_loss_trains_in_the_trainer_of_sentence_transformers(mined, qwen, tmp_path, monkeypatch):
    crops.export(mined, tmp_path / "groups", owner=True)
    start = qwen / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "small"
    words = (tmp_path / "groups" / "samples.jsonl", start, tmp_path / "model")
    script("loss_in_trainer.py", *words, monkeypatch=monkeypatch)
    before, after = (SentenceTransformer(str(one), device="cpu") for one in (start, tmp_path / "model"))
    assert abs(before.encode("desk lamp") - after.encode("desk lamp")).max() > 1e-4


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.verify)])
def test_judgements_become_a_comparison_of_losses_that_knows_their_grades(tmp_path, monkeypatch, whole):
    """In short up to the comparison, which `crops demo --judged` has a test of its own for."""
    compared = []
    if not whole:
        monkeypatch.setattr(crops, "demo", lambda *given, **named: compared.append((given, named)))
    source, rng = tmp_path / "source", random.Random(0)
    (source / "qrels").mkdir(parents=True)
    docs = [{"_id": f"d{n}", "title": title, "text": ""} for n, (title, _) in make_logs.ITEMS.items()]
    kinds = [(kind, thing) for thing, kinds in make_logs.GOODS.items() for kind in kinds]
    queries = [{"_id": f"q{n}", "text": f"{kind} {thing}"} for n, (kind, thing) in enumerate(kinds)]
    for name, rows in (("corpus", docs), ("queries", queries)):
        (source / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grades = ["query-id\tcorpus-id\tscore"]
    for n, (kind, thing) in enumerate(kinds):
        for item, (title, category) in make_logs.ITEMS.items():
            grade = 2 if f"{kind} {thing}" in title else int(category == thing)
            if grade or rng.random() < 0.05:
                grades.append(f"q{n}\td{item}\t{grade}")
    (source / "qrels" / "test.tsv").write_text("\n".join(grades) + "\n")
    settings = tmp_path / "run.toml"
    settings.write_text("[training]\nsteps = 3\nbatch_queries = 8\n[evaluation]\nresamples = 100\n")
    script("judged.py", source, tmp_path / "out", 2, settings, monkeypatch=monkeypatch)
    if not whole:
        written = tmp_path / "out" / "judged"
        told = {"judged": written, "positive_label": 2, "out": tmp_path / "out/demo", "config": str(settings)}
        assert compared == [((), told)]
        rows = {name: pq.read_table(written / f"{name}.parquet") for name in ("docs", "queries", "qrels")}
        assert [len(table) for table in rows.values()] == [len(docs), len(queries), len(grades) - 1]
        assert rows["qrels"].to_pylist()[0].keys() == {"query_id", "doc_id", "grade"}
        return
    found = json.loads((tmp_path / "out/demo/evaluation/summary.json").read_text())
    assert {"BM25", "infonce_binary", "h_infonce"} <= set(found)
    recall = next(one for name, one in found["h_infonce"].items() if name.startswith("recall"))
    assert recall["n"] == len(queries)
    assert (tmp_path / "out/demo/report.html").exists()


def test_a_language_model_trains_by_the_command_for_gpus(mined, qwen, tmp_path):
    start = qwen / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "small"
    sizes = {"MODEL": str(start), "CHUNK": "8", "QUERIES": "8", "STEPS": "2"}
    (words,) = commands_of(f"sh {SCRIPTS}/gpu.sh {mined} {tmp_path}/model", tmp_path, **sizes)
    call(words)
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["desk lamp"]).shape == (1, 16)
    log = [json.loads(line) for line in (tmp_path / "model/training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]


@pytest.mark.verify
def test_a_language_model_trains_in_two_processes_by_the_command_for_gpus(mined, qwen, tmp_path):
    sizes = {"PROCESSES": "2", "CHUNK": "8", "QUERIES": "8", "STEPS": "2", "OMP_NUM_THREADS": "1"}
    known = {"HF_HUB_CACHE": str(qwen), "HF_HUB_OFFLINE": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = ["sh", SCRIPTS / "gpu.sh", mined, tmp_path / "model"]
    subprocess.run(run, env={**os.environ, **known, **sizes, "PATH": path}, check=True, capture_output=True)
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["desk lamp"]).shape == (1, 16)
    log = [json.loads(line) for line in (tmp_path / "model/training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("spark", marks=pytest.mark.verify)])
def test_spark_mines_what_this_process_mines(logs, mined, tmp_path, engine):
    """The command of the script, in short with the engine that starts at once."""
    settings = tmp_path / "none.toml"
    settings.write_text('[relevance]\nmodel = "none"\n')
    checked, on_spark = commands_of(f"sh {SCRIPTS}/spark.sh {logs} {tmp_path}/mined", tmp_path)
    call(checked)
    place = on_spark.index("--engine") + 1
    assert on_spark[place : place + 3] == ["spark", "--master", "local[2]"]
    call([*on_spark[:place], engine, *on_spark[place + 1 :], "--config", str(settings)])
    order = [("query_id", "ascending"), ("item_id", "ascending")]
    tables = [pq.read_table(one / "samples.parquet").sort_by(order) for one in (mined, tmp_path / "mined")]
    assert tables[0].equals(tables[1])
    assert len(tables[0]) > 100


@pytest.fixture
def airflow(monkeypatch):
    """Stands for Airflow: the tasks that a file makes, in the order that its arrows give."""
    tasks = []

    class Task:
        def __init__(self, task_id, bash_command, cwd, retries):
            self.line, self.after = bash_command, None
            tasks.append(self)

        def __rshift__(self, other):
            other.after = self

    class Dag:
        def __init__(self, name, **settings):
            assert settings["max_active_runs"] == 1

        def __enter__(self):
            return self

        def __exit__(self, *_):
            for before, task in zip([None, *tasks], tasks, strict=False):
                assert task.after is before

    for name in ("airflow", "airflow.providers", "airflow.providers.standard",
                 "airflow.providers.standard.operators"):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, one in (("airflow.providers.standard.operators.bash", Task), ("airflow.sdk", Dag)):
        module = types.ModuleType(name)
        setattr(module, {Task: "BashOperator", Dag: "DAG"}[one], one)
        monkeypatch.setitem(sys.modules, name, module)
    return tasks


def test_a_day_of_the_pipeline_ends_with_a_tested_model_in_the_index(airflow, tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    make_logs.impressions(tmp_path / "source")
    head, *rows = csv.reader((tmp_path / "source/impressions.csv").open())
    for day in DAYS:
        (tmp_path / "dump" / day).mkdir(parents=True)
        with (tmp_path / "dump" / day / "impressions.csv").open("w") as file:
            csv.writer(file).writerows([head, *(row for row in rows if row[3].startswith(day))])
    shutil.copy(MAP, tmp_path / "map.toml")
    small = (SCRIPTS / "logs/small.toml").read_text()
    recipe = 'recipe = "recommended"\n'
    (tmp_path / "run.toml").write_text(f'{recipe}{small}[relevance]\nmodel = "none"\n')
    runpy.run_path(str(SCRIPTS / "daily_dag.py"))
    steps = [task.line for task in airflow]
    assert len(steps) == 6
    monkeypatch.chdir(tmp_path)
    call(*commands_of(steps[0].replace("{{ ds }}", DAYS[0]), tmp_path))
    for day in DAYS[1:]:
        for step in (
            *steps,
            *(steps[:3] if day == DAYS[1] else ()),
        ):  # the first three again: nothing changes
            for words in commands_of(step.replace("{{ ds }}", day), tmp_path):
                call(words)
        assert os.readlink("models/current") == day
    summary = json.loads(Path(f"tests/{DAYS[2]}/summary.json").read_text())
    assert set(summary) == {f"models/{DAYS[2]}", "models/current"}
    assert json.loads(Path("mined/window/report.json").read_text())["days"] == list(DAYS[:2])
    assert Path("index/current").read_text().strip() == "000002"
    indexed = json.loads(Path("index/versions/000002/manifest.json").read_text())
    assert tuple(indexed["fields"]) == RECIPES["recommended"]["document.fields"]
    by_cron = commands_of(f"sh {SCRIPTS}/daily.sh all {DAYS[2]}", tmp_path)
    by_steps = [commands_of(step.replace("{{ ds }}", DAYS[2]), tmp_path) for step in steps]
    assert by_cron == [words for calls in by_steps for words in calls]


def test_an_ab_test_finds_the_arm_that_is_clicked_more(tmp_path, monkeypatch):
    rng, users = random.Random(0), [f"u{n}" for n in range(120)]
    (tmp_path / "source").mkdir()
    rows, start = [], datetime.fromisoformat(f"{DAYS[0]}T08:00:00")
    for n, user in enumerate(users):
        for day in range(3):
            for search in range(4):
                at = start + timedelta(days=day, minutes=5 * n + search)
                likely = 0.8 if n % 2 and day else 0.4
                for place in range(2):
                    clicked = place == 0 and rng.random() < likely
                    shown = (user, "lamp", f"{at.isoformat()}Z", 10 + place, "a lamp", place, clicked)
                    rows.append((len(rows), *shown))
    head = ("", "user_id", "query", "timestamp", "item_id", "title", "position", "clicked")
    for name, table in (
        ("source/impressions.csv", [head, *rows]),
        (
            "arms.csv",
            [("user_id", "arm", "since"), *((one, "AB"[n % 2], DAYS[1]) for n, one in enumerate(users))],
        ),
    ):
        with (tmp_path / name).open("w") as file:
            csv.writer(file).writerows(table)
    salt = tmp_path / "salt"
    crops.import_logs("table", tmp_path / "source", out=tmp_path / "logs", mapping=MAP, salt=salt)
    words = (tmp_path / "logs", salt, tmp_path / "arms.csv", tmp_path / "out", "A", "B")
    script("ab_test.py", *words, monkeypatch=monkeypatch)
    (found,) = json.loads((tmp_path / "out/analysis/analysis.json").read_text())["analyses"]
    assert found["users"] == {"A": 60, "B": 60}
    assert found["pre_days"] == [DAYS[0]]
    ctr = next(one for one in found["findings"] if one["metric"] == "ctr")
    assert ctr["verdict"] == "better"
    assert 0.3 < ctr["effect"]["absolute"] < 0.5


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=pytest.mark.verify)])
def test_the_notebook_runs_from_logs_to_its_table_and_keeps_what_it_showed(tmp_path, monkeypatch, kernel):
    """In short in this process, which has its libraries already."""
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import Markdown
    from nbclient import NotebookClient

    file = SCRIPTS / "before_after.ipynb"
    kept = example_pages()["examples/before_after.md"]
    assert kept.count("data:image/png;base64,") == 2
    assert kept.count("| difference, points |") == 2  # in the code, and below it
    settings = '[platform]\nsize = "tiny"\n[training]\nsteps = 2\ndim = 16\n[evaluation]\nresamples = 100\n'
    (tmp_path / "run.toml").write_text(f'{settings}[relevance]\nmodel = "none"\n')
    for name, place in (("WORLD", "world"), ("OUT", "out"), ("CONFIG", "run.toml")):
        monkeypatch.setenv(name, str(tmp_path / place))
    notebook = nbformat.read(file, as_version=4)
    if kernel:
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
        tables = [
            output["data"]["text/markdown"]
            for cell in notebook.cells
            for output in cell.get("outputs", ())
            if "text/markdown" in output.get("data", {})
        ]
    else:
        monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
        shell = InteractiveShell()
        ran = [shell.run_cell(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
        for one in ran:
            one.raise_error()
        tables = [one.result.data for one in ran if isinstance(one.result, Markdown)]
    assert [len(table.splitlines()) for table in tables[1:]] == [6, 6]
    assert "| rewordings (P1) | " in tables[0]
    assert "| true recall@100 | " in tables[1]
