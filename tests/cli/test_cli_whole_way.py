"""From a team's own tables to a server, with the fewest columns, with one more, and with foreign ones."""

import importlib.util
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import crops
from crops.config import ServingConfig
from crops.schema import FEED_EVENTS, ITEMS, LOG_TABLES
from crops.serving.app import make_app
from crops.serving.service import open_service

DAY = 86_400_000_000
NOON = 1_767_614_400_000_000
USERS, TOPICS = 8, ("fern", "moss", "ivy", "palm", "reed", "lily")
TEXT = {"ocr_cover", "photo_caption", "keyword"}
UNITS = {"_at": ', unit = "us"', "_ms": ', unit = "ms"'}
HOSTILE = ("_file", "_row", "_day", "_reasons", "_source", "file_row_number", "filename", "day", "file")
OTHER_CASE = ("Query", "ITEM_ID", "Stage", "Search_ID", "OCR_Cover", "Liked", "Watched_At")


def rows_of(table):
    """Rows with every column of the contract: two days of six searches by eight users each, and a feed."""
    if table is ITEMS:
        return [
            {
                "item_id": 2 * n + m + 1,
                **dict.fromkeys(TEXT | {"click_query"}, f"{topic} pot {m}"),
                **dict.fromkeys(("play_cnt", "like_cnt", "long_view_cnt", "download_cnt"), n),
                "duration_ms": 9_000,
                "uploaded_at": NOON - (20 - n) * DAY,
                "author_id": m,
                "category": topic,
            }
            for n, topic in enumerate(TOPICS)
            for m in range(2)
        ]
    rows = []
    for day in range(2):
        for user in range(USERS):
            for n in range(len(TOPICS)):
                at = NOON + day * DAY + user * 7_200_000_000 // 8 + n * 30_000_000
                common = {"user_id": user, "play_ms": 20_000, "duration_ms": 30_000, "liked": n % 2 == 0}
                if table is FEED_EVENTS:
                    item = 1 + (2 * n + 3) % 12
                    rows.append({**common, "item_id": item, "watched_at": at + 5_000_000, "clicked": True})
                    continue
                for place in range(2):
                    rows.append(
                        {
                            **common,
                            "search_id": (day * USERS + user) * 10 + n,
                            "query": TOPICS[n].title(),
                            "searched_at": at,
                            "item_id": 2 * n + place + 1,
                            "stage": "exposed",
                            "rank": place + 1,
                            "pre_score": 0.5,
                            "routes": 1,
                            "arm": "ab"[user % 2],
                            "clicked": place == user % 2,
                        }
                    )
    return rows


def optional_columns():
    return [(t.name, c.name) for t in LOG_TABLES for c in t.columns if c.optional and not c.own_of]


def write_source(folder, kept, feed):
    """Write Parquet tables of the required columns and `kept`, and their mapping; return its path."""
    folder.mkdir()
    mapping = []
    for table in LOG_TABLES if feed else LOG_TABLES[:2]:
        names = [c.name for c in table.columns if not c.optional or (table.name, c.name) in kept]
        if table is ITEMS and not TEXT & set(names):
            names.append("ocr_cover")
        rows = [{name: row[name] for name in names} for row in rows_of(table)]
        types = {field.name: field.type for field in table.arrow()}
        columns = {name: pa.array([row[name] for row in rows], types[name]) for name in names}
        pq.write_table(pa.table(columns), folder / f"{table.name}.parquet")
        mapping += [f"[{table.name}]", f'files = "{table.name}.parquet"', f"[{table.name}.columns]"]
        mapping += [f'{name} = {{ column = "{name}"{UNITS.get(name[-3:], "")} }}' for name in names]
    (folder / "own.toml").write_text("\n".join(mapping) + "\n")
    return folder / "own.toml"


def add_columns(folder, names):
    """Put columns of text in front of those of every file, in every table."""
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        for name in names:
            if name not in table.column_names:
                values = pa.array([f"{name} {row}" for row in range(len(table))])
                table = table.add_column(0, name, values)
        pq.write_table(table, path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "words"
    words = ["[UNK]", *TOPICS, "pot", "0", "1"]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(words), 8)).astype(np.float32)
    modules = [StaticEmbedding(tokenizer, weights), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory, encoder):
    path = tmp_path_factory.mktemp("settings") / "run.toml"
    training = f'[training]\nencoder = "{encoder}"\nsteps = 3\nbatch_queries = 4\n'
    rest = '[relevance]\nmodel = "none"\n[engine]\nk = 2\n[evaluation]\nresamples = 100\nrecall_k = 5\n'
    path.write_text(training + rest)
    return path


def whole_way(folder, settings, kept=(), feed=True, foreign=(), engine="duckdb"):
    """Go the whole way and return the samples."""
    mapping = write_source(folder / "source", set(kept), feed)
    add_columns(folder / "source", foreign)
    imported = crops.import_logs("table", folder / "source", folder / "logs", mapping)
    assert all(counts.rejected == 0 and not counts.lost for counts in imported.tables.values())
    add_columns(folder / "logs", foreign)
    report = crops.check(folder / "logs", folder / "checked")
    assert report.faults == ()
    logs, mined = folder / "checked" / "accepted", folder / "mined"
    crops.mine(logs, mined, day=["2026-01-05"], engine=engine, config=settings)
    crops.train(mined, folder / "model", config=settings)
    model = str(folder / "model")
    results = crops.evaluate(
        [model, "bm25"], logs=logs, samples=mined, config=settings, out=folder / "ev", trec=True
    )
    assert results[model].summary["recall@5/ct"].n == len(TOPICS)
    crops.index(model, logs, out=str(folder / "index"), kind="ivfpq", config=settings)
    crops.index(model, folder / "logs", out=str(folder / "exact"), config=settings)
    assert crops.search(model, "fern", items=folder / "logs", k=3)
    assert crops.explain("fern", mined).positives
    crops.engine_report(mined, folder / "report", owner=True)
    crops.export(mined, folder / "exported", format="jsonl")
    if ("search_impressions", "arm") in kept:
        crops.analyse(logs, folder / "analysis", control="a", treatment=["b"], config=settings)
    service = open_service(
        {"index": (str(folder / "index"), "new")}, ServingConfig(max_wait_s=30, timeout_s=60), mined
    )
    with TestClient(make_app(service)) as client:
        found = client.post("/search", json={"query": "fern", "k": 3}).json()
        assert len(found["hits"]) == 3
        told = client.post("/explain", json={"query": "fern", "item_ids": [1]})
        assert told.status_code == 200
        assert client.get("/", params={"q": "fern"}).status_code == 200
    return pq.read_table(mined / "samples.parquet")


def test_the_required_columns_are_enough(tmp_path, settings):
    assert len(whole_way(tmp_path, settings, feed=False))


@pytest.mark.verify
@pytest.mark.parametrize("kept", optional_columns(), ids=".".join)
def test_every_optional_column_may_come_alone(tmp_path, settings, kept):
    assert len(whole_way(tmp_path, settings, [kept]))


def test_foreign_columns_change_no_sample(tmp_path, settings):
    """Names that the programs use themselves, and names that differ from the contract's in case only."""
    samples = []
    for foreign in ((), (*HOSTILE, *OTHER_CASE)):
        (tmp_path / str(len(foreign))).mkdir()
        samples.append(whole_way(tmp_path / str(len(foreign)), settings, optional_columns(), foreign=foreign))
    assert samples[0].equals(samples[1])


@pytest.mark.verify
@pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="needs pyspark (extra [spark]) and Java 17",
)
@pytest.mark.parametrize(
    "foreign", [(), HOSTILE, OTHER_CASE], ids=["required only", "own names", "other case"]
)
def test_spark_mines_the_same_on_the_way(tmp_path, settings, foreign):
    kept = optional_columns() if foreign else ()
    found = []
    for engine in ("duckdb", "spark"):
        (tmp_path / engine).mkdir()
        found.append(whole_way(tmp_path / engine, settings, kept, foreign=foreign, engine=engine))
    assert found[0].equals(found[1])
