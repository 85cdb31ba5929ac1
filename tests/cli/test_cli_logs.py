"""From a foreign log to a trained and evaluated model, and raw logs with faults, through the commands."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import crops
from crops.cli.app import app
from crops.errors import CropsError

TRAIN_S = 1_684_800_000
"""2023-05-23 00:00:00 UTC."""
DAY_S = 86_400
SETTINGS = "[training]\nsteps = 3\nbatch_queries = 8\n[evaluation]\nresamples = 100\n"


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)


def reformulations(rng, searches):
    """Pairs of searches: a topic's short words, then 20 s later its long ones, where an item is clicked."""
    for i in range(searches // 2):
        topic, user = int(rng.integers(8)), int(rng.integers(1, 20))
        at = TRAIN_S + i * 200 + (2 * DAY_S if i >= searches // 4 else 0)
        items = [int(item) for item in rng.permutation(range(1, 41))[:5]]
        yield user, 2 * i, at, [topic], items, None
        yield user, 2 * i + 1, at + 20, [topic, topic + 100], items, items[0]


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(SETTINGS)
    return path


def write_csv(path, header, rows):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def write_kuaisar(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    searches = [
        (user, search, "x", at * 1000, str(query), "USER_INPUT", item, int(item == clicked), "VIDEO")
        for user, search, at, query, items, clicked in reformulations(rng, 120)
        for item in items
    ]
    header = "user_id,search_session_id,search_session_time,search_session_timestamp,keyword,search_source"
    write_csv(folder / "src_inter.csv", [*header.split(","), "item_id", "click_cnt", "item_type"], searches)
    feed = [
        (
            int(rng.integers(1, 20)),
            int(rng.integers(1, 41)),
            20_000.0,
            19_000.0,
            (TRAIN_S + 60 * i) * 1000,
            1,
            0,
        )
        for i in range(200)
    ]
    header = "user_id,item_id,playing_time,duration_ms,timestamp,click,like"
    write_csv(folder / "rec_inter.csv", header.split(","), feed)
    items = [(item, str([item % 8, item % 8 + 100, item + 500]), "VIDEO") for item in range(1, 41)]
    write_csv(folder / "item_features.csv", ["item_id", "caption", "item_type"], items)


def test_kuaisar_goes_from_import_to_an_evaluated_model(tmp_path, settings):
    write_kuaisar(tmp_path / "KuaiSAR")
    run("import", "kuaisar", tmp_path / "KuaiSAR", "--out", tmp_path / "logs")
    run("check", tmp_path / "logs", tmp_path / "checked")
    accepted = tmp_path / "checked" / "accepted"
    with pytest.raises(CropsError, match="anonymised tokens, which the pre-trained minilm cannot read"):
        crops.mine(accepted, tmp_path / "mined")
    run("mine", accepted, tmp_path / "mined", "--day", "2023-05-23", "--relevance", "none")
    report = json.loads((tmp_path / "mined" / "report.json").read_text())
    assert report["sources"]["p1"]["theta"] == "none"
    assert report["sources"]["p1"]["kept"] > 0
    assert report["sources"]["p2"]["kept"] > 0
    assert any("theta = none" in note for note in report["notes"])
    run("train", tmp_path / "mined", tmp_path / "model", "--config", settings)
    arguments = ("--logs", accepted, "--day", "2023-05-25", "--relevance", "none", "--config", settings)
    run("evaluate", tmp_path / "model", "bm25", *arguments, "--out", tmp_path / "results")
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert any(one["n"] > 0 for one in next(iter(summary.values())).values())


def write_ubi(folder):
    folder.mkdir()
    words = ("ficus", "bread", "guitar", "bonsai", "braid", "bicycle", "candle", "kite")
    rng = np.random.default_rng(0)
    queries, events = [], []
    for user, search, at, query, items, clicked in reformulations(rng, 120):
        text = f"{words[query[0]]} how to" if len(query) > 1 else words[query[0]]
        hits = [f"sku-{item}" for item in items]
        one = {"query_id": f"q{search}", "client_id": f"c{user}", "user_query": text, "timestamp": at * 1000}
        queries.append({**one, "query_response_hit_ids": hits})
        if clicked:
            named = {"object_id": f"sku-{clicked}"}
            event = {"action_name": "click", "query_id": f"q{search}", "client_id": f"c{user}"}
            events.append({**event, "timestamp": at * 1000, "event_attributes": {"object": named}})
    items = [{"sku": f"sku-{item}", "title": f"{words[item % 8]} number {item}"} for item in range(1, 41)]
    for name, documents in (("queries", queries), ("events", events), ("catalogue", items)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(one) for one in documents))
    mapping = folder.with_suffix(".toml")
    mapping.write_text(
        '[items]\nfiles = "catalogue.jsonl"\ncolumns = { item_id = "sku", ocr_cover = "title" }\n'
    )
    return mapping


def test_ubi_goes_from_import_to_samples(tmp_path):
    mapping = write_ubi(tmp_path / "ubi")
    run("import", "ubi", tmp_path / "ubi", "--out", tmp_path / "logs", "--mapping", mapping)
    run("check", tmp_path / "logs", tmp_path / "checked")
    run("mine", tmp_path / "checked" / "accepted", tmp_path / "mined", "--day", "2023-05-23")
    report = json.loads((tmp_path / "mined" / "report.json").read_text())
    assert report["sources"]["p1"]["theta"] == 0.6
    assert report["sources"]["p1"]["candidates"] > 0
    assert pq.read_table(tmp_path / "mined" / "samples.parquet").num_rows > 0


def test_raw_logs_are_checked_before_they_are_mined(tmp_path, write_logs):
    rows = [
        {"search_id": 1, "query": "bow", "item_id": 1, "clicked": True, "rank": 1},
        {"search_id": 1, "query": "bow", "item_id": 2, "rank": 0},
        {"search_id": 2, "query": "bat", "item_id": 2, "rank": 1},
    ]
    logs = write_logs(tmp_path / "logs", impressions=rows)
    report = crops.mine(logs, tmp_path / "mined", sources="search")
    assert report["input"]["searches"] == 2
    rejected = pq.read_table(tmp_path / "mined.checked" / "rejects" / "search_impressions")
    assert rejected["reasons"].to_pylist() == [["rank_not_positive"]]
    samples = pq.read_table(tmp_path / "mined" / "samples.parquet").to_pylist()
    assert sorted((row["item_id"], row["label"]) for row in samples) == [(1, 4), (2, 3)]
    assert "no unexposed documents in the logs: label 2 is absent" in report["notes"]
    with pytest.raises(CropsError, match="nothing usable is left"):
        crops.mine(write_logs(tmp_path / "blank", impressions=[{"query": " "}]), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_check_prints_each_fault_and_what_the_logs_would_bring(tmp_path, write_logs):
    rows = [
        {},
        {"search_id": 2, "searched_at": 1_767_614_400},
        {"search_id": 3, "query": "b", "clicked": True},
    ]
    logs, page = write_logs(tmp_path / "logs", impressions=rows), tmp_path / "page.html"
    arguments = ["check", str(logs), str(tmp_path / "checked"), "--page", str(page)]
    result = CliRunner().invoke(app, [*arguments, "--max-rejected", "40%"])
    assert result.exit_code == 0
    assert (tmp_path / "checked" / "accepted" / "items.parquet").exists()
    report = json.loads((tmp_path / "checked" / "report.json").read_text())
    assert [fault["reason"] for fault in report["faults"]] == ["time_unit"]
    said = " ".join(result.output.split())
    assert "Rewordings (P1) cannot help: no user searched with other words within 90 s." in said
    assert "The feed (P2) cannot help: no feed." in page.read_text()
    with pytest.raises(
        CropsError, match=r"1 of 3 rows of search_impressions were rejected, 33\.3%"
    ) as refused:
        crops.check(logs, max_rejected="5%")
    assert refused.value.exit_code == 1
    with pytest.raises(CropsError, match="--max-rejected many: write a share such as 5% or 0.05"):
        crops.check(logs, max_rejected="many")


@pytest.mark.parametrize("other", [{"day": "2026-01-05"}, {"last": "2026-01-06"}, {"daily": True}])
def test_a_holdout_beside_named_days_is_refused(tmp_path, other):
    with pytest.raises(CropsError, match="--holdout keeps the last days; with --day"):
        crops.mine(tmp_path, tmp_path / "mined", holdout=1, **other)
    (tmp_path / "run.toml").write_text("[engine]\nholdout = 2\n")
    with pytest.raises(CropsError, match=r"engine.holdout = 2 in the file of --config .* say --holdout 0"):
        crops.mine(tmp_path, tmp_path / "mined", config=tmp_path / "run.toml", **other)
    with pytest.raises(CropsError, match="search_impressions"):  # there are no logs, but that is all
        crops.mine(tmp_path, tmp_path / "mined", config=tmp_path / "run.toml", holdout=0, **other)


DAYS = [f"2026-01-0{n}" for n in range(5, 9)]


@pytest.mark.parametrize(("options", "mined", "said"), [
    ({}, DAYS[:3], "kept for evaluation: 2026-01-08, later with: crops evaluate MODEL"),
    ({"holdout": 2, "gap": 1}, DAYS[:1], "--day 2026-01-07..2026-01-08"),
    ({"holdout": 0}, DAYS, "no day is kept for evaluation"),
    ({"first": DAYS[1], "last": DAYS[2]}, DAYS[1:3], "2 queries and 2 searches of 2026-01-06 to"),
    ({"first": DAYS[2]}, [DAYS[2]], "kept for evaluation: 2026-01-08"),
    ({"day": "2026-01-06..2026-01-09"}, DAYS[1:], "no feed events on these days: P2 is absent"),
])  # fmt: skip
def test_the_last_days_are_kept_for_evaluation(tmp_path, write_logs, capsys, options, mined, said):
    rows = [
        {
            "search_id": n,
            "query": f"q{n}",
            "searched_at": (TRAIN_S + (958 + n) * DAY_S) * 1_000_000,
            "clicked": True,
        }
        for n in range(4)
    ]
    logs = write_logs(tmp_path / "logs", impressions=rows, feed=[{}])
    report = crops.mine(logs, tmp_path / "mined", relevance="none", **options)
    assert report["days"] == mined
    assert said in capsys.readouterr().err


def test_what_a_mining_found_is_told_with_the_reasons_for_what_it_did_not(tmp_path, write_logs, capsys):
    rows = [{"clicked": True}, {"search_id": 2, "query": "b", "searched_at": 1_767_614_430_000_000}]
    crops.mine(write_logs(tmp_path / "logs", impressions=rows), tmp_path / "mined", relevance="none")
    said = capsys.readouterr().err
    for step in ("relevance", "write"):
        assert said.count(f"· {step}\n") == 1
    assert "│ clicks │ 1     │ –             │ –        │ 1    │ 0           │" in said
    why = "no positives from rewording: nothing was consumed within 90 s after a rewording"
    assert why in " ".join(said.split())


@pytest.mark.parametrize(("options", "said"), [
    ({"day": "jan"}, "'jan' is no day: write YYYY-MM-DD, or FIRST..LAST"),
    ({"first": "2026-02-01"}, "no search from 2026-02-01 to 2026-01-05; the days there are: 2026-01-05"),
    ({"day": "2026-01-05", "last": "2026-01-05"}, "give --day, or --from and --to, not both"),
])  # fmt: skip
def test_days_that_cannot_be_mined_are_named(tmp_path, write_logs, options, said):
    with pytest.raises(CropsError, match=said):
        crops.mine(write_logs(tmp_path / "logs"), tmp_path / "mined", relevance="none", **options)


def test_each_command_ends_with_the_next_one_as_it_can_be_typed(tmp_path, write_logs, monkeypatch, capsys):
    """Paths, the held-out day and the options are those of the mining; the baseline is named beside."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"search_id": n, "query": query, "item_id": item, "clicked": clicked, "searched_at": at}
        for n, (query, item, clicked, at) in enumerate(
            (text, item, text == "b", (TRAIN_S + (958 + day) * DAY_S + 20 * place) * 1_000_000)
            for day in range(2)
            for place, (text, item) in enumerate((("a", 1), ("b", 2)))
        )
    ]
    items = [{"item_id": 1, "ocr_cover": "how to a"}, {"item_id": 2, "ocr_cover": "how to b"}]
    logs = write_logs(tmp_path / "logs", items, rows)

    def last(*names):
        capsys.readouterr()
        return lambda: [line for line in capsys.readouterr().err.splitlines() if line.startswith(names)]

    said = last("next", "did", "and then")
    crops.mine(logs, "mined", relevance="none")
    rest = "--logs mined.checked/accepted --samples mined --day 2026-01-06 --relevance none"
    assert said() == [
        "next: crops train mined MODEL",
        "did the new sources help? crops train mined BASE --sources search",
        f"and then: crops evaluate MODEL BASE bm25 {rest}",
    ]
    crops.train("mined", "model", steps=2, batch_queries=2)
    assert said() == [
        f"next: crops evaluate model bm25 {rest}",
        "did the new sources help? crops train mined model-base --sources search",
        f"and then: crops evaluate model model-base bm25 {rest}",
    ]
    crops.train("mined", "base", sources="search", steps=2, batch_queries=2)
    assert said() == [f"next: crops evaluate MODEL base bm25 {rest}"]
    crops.index("model", "mined.checked/accepted", out="index")
    assert said() == ["next: crops serve index --samples mined"]
