import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.labels import Source
from crops.llm import generate_documents, training_requests
from crops.llm.store import read_rows
from crops.schema import EVIDENCE, ITEMS, QUERIES, SAMPLES
from crops.text import query_id

CLICKED, EXPOSED, FEED = int(Source.CLICKED), int(Source.EXPOSED), int(Source.FEED)
TITLES = {
    1: "A fig in my kitchen",
    2: "Big cat at the river",
    3: "Fig pot day",
    4: "Order at www.evil.example",
    -5: "Made up",
}


def write(folder, table, rows):
    full = [dict.fromkeys(table.names()) | row for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=table.arrow()), folder / f"{table.name}.parquet")


def sample(query, item, sources):
    return {"query_id": query_id(query), "item_id": item, "label": 4, "sources": sources, "weight": 1.0}


def click(query, item, search):
    return {
        "query_id": query_id(query),
        "item_id": item,
        "source": CLICKED,
        "search_id": search,
        "day": "2024-05-01",
    }


@pytest.fixture
def mined(tmp_path):
    """Ficus: item 4 (an advert) has 3 clicks, 3 has 2, 1 has 1; jaguar: item 2; bat: none; owl: few users."""
    folder = tmp_path / "mined"
    folder.mkdir()
    users = {"ficus": (50, 30), "jaguar": (80, 40), "bat": (90, 60), "owl": (99, 5)}
    queries = [
        {"query_id": query_id(query), "query": query, "searches": searches, "users": count}
        for query, (searches, count) in users.items()
    ]
    write(folder, QUERIES, queries)
    write(folder, ITEMS, [{"item_id": item, "ocr_cover": title} for item, title in TITLES.items()])
    samples = [
        sample("ficus", 1, CLICKED | EXPOSED),
        sample("ficus", 3, CLICKED | FEED),
        sample("ficus", 4, CLICKED),
        sample("jaguar", 2, CLICKED),
        sample("jaguar", -5, CLICKED),
        sample("bat", 1, FEED | EXPOSED),
        sample("owl", 1, CLICKED),
    ]
    write(folder, SAMPLES, samples)
    evidence = [click("ficus", 3, 1), click("ficus", 3, 2), click("ficus", 1, 3), click("jaguar", 2, 7)]
    evidence += [click("ficus", 4, search) for search in (4, 5, 6)]
    evidence += [{**click("ficus", 1, search), "source": FEED} for search in range(10, 19)]
    write(folder, EVIDENCE, evidence)
    return folder


def test_most_searched_clicked_queries_first_with_their_most_clicked_exemplar(mined):
    found = list(training_requests(mined, limit=None, min_users=20))
    assert [(request.query, request.users, request.exemplar.item_id) for request in found] == [
        ("jaguar", 40, 2),
        ("ficus", 30, 3),
    ]
    assert found[1].exemplar.texts["ocr_cover"] == "Fig pot day"


def test_samples_differ_by_seed_and_come_after_every_first_one(mined):
    found = list(training_requests(mined, limit=None, min_users=20, samples_per_query=2, seed=10))
    assert [(request.query, request.seed) for request in found] == [
        ("jaguar", 10),
        ("ficus", 10),
        ("jaguar", 11),
        ("ficus", 11),
    ]


def test_limit_counts_queries(mined):
    assert [request.query for request in training_requests(mined, limit=1, min_users=5)] == ["owl"]


def test_documents_are_written_and_the_run_resumes(mined, fake, tmp_path):
    out = tmp_path / "out.jsonl"
    settings = {"base_url": fake.base_url, "model": "m", "model_sha256": "abc"}
    counts = generate_documents(mined, out, **settings, limit=1)
    assert (counts["queries"], counts["written"]) == (1, 1)
    counts = generate_documents(mined, out, **settings)
    assert (counts["queries"], counts["cached"], counts["written"]) == (2, 1, 1)
    assert [row["query"] for row in read_rows(out)] == ["jaguar", "ficus"]
    assert "evil" not in str(fake.bodies)


def test_no_query_with_enough_users_is_an_error(mined, tmp_path):
    with pytest.raises(CropsError, match="lower min_users"):
        generate_documents(
            mined, tmp_path / "out.jsonl", base_url="http://127.0.0.1:9/v1", model="m", min_users=1000
        )


def test_a_folder_that_is_no_mining_output_is_named(tmp_path):
    with pytest.raises(CropsError, match="not an output of `crops mine`"):
        list(training_requests(tmp_path, limit=None, min_users=1))
