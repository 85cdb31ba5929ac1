import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.llm import Endpoint, generate_documents, training_requests
from crops.llm.batch import read_rows


def test_exemplar_is_the_most_reliable_logged_positive_that_passes_the_guards(mined):
    found = list(training_requests(mined, limit=None, min_users=20, priority="searches"))
    # Most searched first. Bat was never clicked: what its searchers watched stands in. Item 4 is an advert.
    assert [(request.query, request.users, request.exemplar.item_id) for request in found] == [
        ("bat", 60, 1),
        ("jaguar", 40, 2),
        ("ficus", 30, 3),
    ]
    assert found[2].exemplar.texts["ocr_cover"] == "Fig pot day"


def test_priority_is_the_mean_rank_of_ambiguous_rare_and_badly_served(mined):
    # Of bat, jaguar, ficus: click entropy 0, 0, > 0 -> ranks 0, 0, 1; users 60, 40, 30 -> 0, .5, 1;
    # searches with a click 0/90, 1/80, 6/50 -> 1, .5, 0. Means: bat 1/3, jaguar 1/3, ficus 2/3;
    # bat before jaguar, as it is searched more.
    found = [request.query for request in training_requests(mined, limit=None, min_users=20)]
    assert found == ["ficus", "bat", "jaguar"]


def test_samples_differ_by_seed_and_come_after_every_first_one(mined):
    found = list(training_requests(mined, limit=2, min_users=20, samples_per_query=2, seed=10))
    assert [(request.query, request.seed) for request in found] == [
        ("ficus", 10),
        ("bat", 10),
        ("ficus", 11),
        ("bat", 11),
    ]


def test_documents_are_written_and_the_run_resumes(mined, fake, tmp_path):
    out = tmp_path / "out.jsonl"
    endpoint = Endpoint(fake.base_url, "m", "abc", concurrency=1)
    counts = generate_documents(mined, out, endpoint, limit=1)
    assert (counts["queries"], counts["written"]) == (1, 1)
    counts = generate_documents(mined, out, endpoint)
    assert (counts["queries"], counts["cached"], counts["written"]) == (3, 1, 2)
    assert [row["query"] for row in read_rows(out)] == ["ficus", "bat", "jaguar"]
    assert "evil" not in str(fake.bodies)


def test_missing_only_leaves_out_queries_with_a_document_of_another_exemplar(mined, fake, tmp_path):
    out = tmp_path / "out.jsonl"
    rows = [{"key": "of another day", "query": "bat", "seed": 0}, {"key": "x", "query": "jaguar", "seed": 1}]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    endpoint = Endpoint(fake.base_url, "m", "abc", concurrency=1)
    counts = generate_documents(mined, out, endpoint, missing_only=True)
    # Of ficus, bat and jaguar, bat has a document; that of jaguar is a second sample (seed 1).
    assert (counts["queries"], counts["cached"], counts["written"]) == (3, 0, 2)
    assert [row["query"] for row in read_rows(out)] == ["bat", "jaguar", "ficus", "jaguar"]


def test_no_query_with_enough_users_and_no_mining_output_are_errors(mined, tmp_path):
    nobody = Endpoint("http://127.0.0.1:9/v1", "m")
    with pytest.raises(CropsError, match=r"lower engine\.knowledge\.min_users"):
        generate_documents(mined, tmp_path / "out.jsonl", nobody, min_users=1000)
    with pytest.raises(CropsError, match="not an output of `crops mine`"):
        list(training_requests(tmp_path, limit=None, min_users=1))


def test_click_queries_of_few_users_are_not_sent(mined):
    """Jaguar and bat are typed by 40 and 60 people, owl by 5, the others by nobody that the mining knows."""
    path = mined / "items.parquet"
    items = pq.read_table(path)
    typed = pa.array(["owl|Jaguar|my own address|BAT"] * len(items))
    pq.write_table(items.set_column(items.schema.get_field_index("click_query"), "click_query", typed), path)
    for request in training_requests(mined, limit=None, min_users=20):
        assert request.exemplar.texts["click_query"] == "Jaguar|BAT"
