"""The shipped documents are what they claim to be."""

import importlib.resources
import json

import pytest

from crops.llm import load_prompt
from crops.text import normalise_query

PATH = importlib.resources.files("crops.llm") / "data" / "documents.jsonl"


@pytest.fixture(scope="module")
def documents() -> list[dict]:
    return [json.loads(line) for line in PATH.read_text().splitlines()]


def test_they_were_written_with_the_shipped_prompt(documents):
    assert {row["prompt_version"] for row in documents} == {load_prompt().version}


def test_they_name_the_model_and_its_hash(documents):
    assert {row["model"] for row in documents} == {"Qwen2.5-Coder-1.5B-Instruct Q4_K_M"}
    assert {len(row["model_sha256"]) for row in documents} == {64}


def test_one_whole_document_per_normalised_query(documents):
    queries = [row["query"] for row in documents]
    assert len(set(queries)) == len(queries) > 200
    assert all(query == normalise_query(query) for query in queries)
    for row in documents:
        assert len(row["ocr_cover"]) >= 4
        assert len(row["photo_caption"]) >= 20
        assert row["keyword"].strip()
        assert row["exemplar"]["item_id"] > 0
