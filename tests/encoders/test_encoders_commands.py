"""Encoders that are not the default, through the functions behind the commands."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

import crops
from crops.config import TrainingConfig
from crops.encoders import load_encoder, save_encoder
from crops.encoders.two_tower import FEATURES
from crops.errors import CropsError
from crops.labels import Source
from crops.pipeline import load_retriever
from crops.schema import ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS

TOPICS = 6


def write(folder, table, rows):
    filled = [{name: row.get(name) for name in table.names()} for row in rows]
    pq.write_table(pa.Table.from_pylist(filled, table.arrow()), folder / f"{table.name}.parquet")


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """Six queries, whose words are no item's, and four items each; of items 4, 8, .. nothing is known."""
    folder = tmp_path_factory.mktemp("two_tower") / "mined"
    folder.mkdir()
    items = [
        {"item_id": 4 * topic + i, "keyword": f"tag{topic}", "category": f"c{topic}", "play_cnt": i}
        for topic in range(TOPICS)
        for i in range(1, 5)
    ]
    write(folder, ITEMS, items)
    write(folder, SYNTHETIC_ITEMS, [{"item_id": -1, "keyword": "tag0 tag0more"}])
    known = {"searches": 1, "users": 1}
    write(folder, QUERIES, [{"query_id": t, "query": f"wanted{t}", **known} for t in range(TOPICS)])
    pairs = [(topic, 4 * topic + i) for topic in range(TOPICS) for i in range(1, 4)] + [(0, -1)]
    samples = [{"query_id": query, "item_id": item, "label": 4, "weight": 1.0} for query, item in pairs]
    for row in samples:
        row["sources"] = int(Source.CLICKED if row["item_id"] > 0 else Source.KNOWLEDGE)
    write(folder, SAMPLES, samples)
    return folder


@pytest.fixture(scope="module")
def model(mined):
    out = mined.parent / "model"
    settings = mined.parent / "run.toml"
    settings.write_text("[training]\nencoder = 'two_tower'\ndim = 16\nid_table = 4096\nsteps = 80\n")
    crops.train(mined, out, config=settings)
    return out


def test_a_two_tower_encoder_trains_and_searches_by_commands(mined, model):
    """All four items of the topic are found first: the three of the samples, and the one without any past."""
    for topic in range(TOPICS):
        hits = crops.search(str(model), f"Wanted{topic}", items=mined, k=4)
        assert {item for item, _, _ in hits} == {str(4 * topic + i) for i in range(1, 5)}
    assert hits[0][2] == f"tag{topic}"  # people read the text of the item, not its features


def test_plain_sentence_transformers_uses_the_model(mined, model):
    plain = SentenceTransformer(str(model), device="cpu")
    ids = pq.read_table(mined / "items.parquet")["item_id"].to_numpy()
    retriever = load_retriever(model, ids, [""] * len(ids), mined)
    rows = pq.read_table(mined / "items.parquet").to_pylist()
    ours = retriever.scores(["wanted3"], ids[None, :])[0]
    documents = plain.encode_document([FEATURES.document(row) for row in rows])
    np.testing.assert_allclose(ours, documents @ plain.encode_query(FEATURES.query("wanted3")), atol=1e-5)


def test_ids_cannot_be_searched_without_the_item_table(model):
    with pytest.raises(CropsError, match="reads ids of items, not texts; there is no item table"):
        load_retriever(model, np.array([1]), ["text"])


def test_a_model_with_separate_towers_and_prompts_is_searched_through_them(tiny_base, tmp_path):
    config = TrainingConfig(encoder=str(tiny_base), towers="separate", query_prompt="the dog ")
    encoder = load_encoder(config)
    save_encoder(encoder, tmp_path / "model")
    retriever = load_retriever(tmp_path / "model", np.array([1, 2]), ["red cat", "blue car"])
    expected = encoder.encode_query(["mat"]) @ encoder.encode_document(["red cat", "blue car"]).T
    np.testing.assert_allclose(retriever.scores(["mat"], np.array([[1, 2]])), expected, atol=1e-5)
