import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from retrieval_hand import WordEncoder, word_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from crops.config import IndexConfig
from crops.errors import CropsError
from crops.evaluation.evaluate import Rankings
from crops.relevance.encode import model_hash
from crops.retrieval import (
    BM25Retriever,
    ExactRetriever,
    Model,
    build_index,
    check_model,
    load_model,
    load_queries,
    open_index,
    open_retriever,
    update_index,
    write_vectors,
)
from crops.retrieval import encoding as sharding
from crops.retrieval.encoding import encode_texts
from crops.retrieval.uri import Texts
from crops.text import PLAIN, query_id

NONE = np.empty(0, dtype=np.int64)


def write_items(path, ids, **columns):
    texts = [f"title {one}" for one in ids]
    pq.write_table(pa.table({"item_id": pa.array(ids, pa.int64()), "ocr_cover": texts, **columns}), path)
    return path


@pytest.fixture
def items(tmp_path):
    own = ["A9", None, "A7", "A5"]
    return write_items(tmp_path / "items.parquet", [9, 3, 7, 5], author_id=[1, 2, 3, 4], source_id=own)


def test_an_interrupted_build_goes_on_where_it_was(tmp_path, monkeypatch):
    """Six texts in shards of two; the first run dies in the third, the second encodes that one alone."""
    monkeypatch.setattr(sharding, "SHARD", 2)
    items = write_items(tmp_path / "items.parquet", [1, 2, 3, 4, 5, 6])
    first, second = word_model(fail_after=4), word_model()
    with pytest.raises(KeyboardInterrupt):
        build_index(f"{tmp_path / 'index'}", first, items, IndexConfig())
    assert first.encoder.encoded == ["title 1", "title 2", "title 3", "title 4"]
    build_index(f"{tmp_path / 'index'}", second, items, IndexConfig())
    assert second.encoder.encoded == ["title 5", "title 6"]
    assert not (tmp_path / "index/building").exists()
    index = open_index(f"{tmp_path / 'index'}")
    expected = WordEncoder().encode(
        ["title 4"], batch_size=1, normalize_embeddings=True, show_progress_bar=False
    )
    assert index.vectors(np.array([4])) == pytest.approx(expected)


def test_a_text_that_changed_meanwhile_and_another_model_are_encoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "SHARD", 2)
    sharding.encode_shards(word_model(), ["a", "b", "c"], tmp_path)
    changed, other, role = word_model(), word_model("b"), word_model()
    sharding.encode_shards(changed, ["a", "b", "d"], tmp_path)
    assert changed.encoder.encoded == ["d"]
    sharding.encode_shards(other, ["a", "b"], tmp_path)
    assert other.encoder.encoded == ["a", "b"]
    sharding.encode_shards(role, ["a", "b"], tmp_path, "query")
    assert role.encoder.encoded == ["a", "b"]


def test_items_are_kept_without_what_people_typed(tmp_path):
    items = write_items(
        tmp_path / "items.parquet", [4, 2], click_query=["secret", "words"], play_cnt=[40, 20]
    )
    build_index(f"{tmp_path / 'index'}", word_model(), items, IndexConfig())
    kept = open_index(f"{tmp_path / 'index'}").items(np.array([2, 4]))
    assert kept["ocr_cover"].to_pylist() == ["title 2", "title 4"]
    assert kept["play_cnt"].to_pylist() == [20, 40]
    assert kept["category"].to_pylist() == [None, None]
    assert kept["click_query"].null_count == 2


def test_click_queries_that_were_counted_are_a_part_of_the_text(tmp_path, items):
    uri, model = f"{tmp_path / 'index'}", word_model()
    counted = pa.table({"item_id": [5, 9], "click_query": ["red shoes|heels", "boots"]})
    fields = ("ocr_cover", "click_query")
    build_index(uri, model, items, IndexConfig(), texts=Texts(fields, counted))
    assert model.encoder.encoded == ["title 3", "red shoes heels title 5", "title 7", "boots title 9"]
    update = write_items(tmp_path / "new.parquet", [7, 11])
    with pytest.raises(CropsError, match="was built from ocr_cover, click_query, not from ocr_cover, photo"):
        update_index(uri, model, update, NONE)
    strange = pa.table({"item_id": [3, 4, 8], "mined_query": ["a", "b", "c"]})
    with pytest.raises(CropsError, match="lacks 2 of the 3 items that the expansion adds to, e.g. item_id 4"):
        build_index(uri, model, items, IndexConfig(), texts=Texts(("ocr_cover", "mined_query"), strange))
    counted = pa.table({"item_id": [11], "click_query": ["pumps"]})
    update_index(uri, model, update, np.array([9]), Texts(fields, counted))
    assert model.encoder.encoded[4:] == ["title 7", "pumps title 11"]
    kept = open_index(uri).items(np.array([3, 5, 11]))
    assert kept["click_query"].to_pylist() == [None, "red shoes|heels", "pumps"]
    found = open_retriever(f"bm25:{uri}").search(["heels", "pumps", "boots"], 1)[0]
    assert found[:, 0].tolist() == [5, 11, -1]


def test_generated_documents_are_never_indexed(tmp_path, items):
    generated = write_items(tmp_path / "synthetic_items.parquet", [-4, 2])
    with pytest.raises(CropsError, match="item_id -4 is negative: generated documents"):
        build_index(f"{tmp_path / 'index'}", word_model(), generated, IndexConfig())
    build_index(f"{tmp_path / 'index'}", word_model(), items, IndexConfig())
    with pytest.raises(CropsError, match="item_id -4 is negative: generated documents"):
        update_index(f"{tmp_path / 'index'}", word_model(), generated, NONE)


def test_an_update_takes_items_from_a_table(tmp_path, items):
    uri = f"{tmp_path / 'index'}"
    build_index(uri, word_model(), items, IndexConfig())
    more = write_items(tmp_path / "more.parquet", [5, 11])
    manifest = update_index(uri, word_model(), more, np.array([9]))
    assert (manifest.version, manifest.count) == ("000002", 4)
    ids, _ = open_retriever(uri, word_model()).search(["title 11", "title 9"], 4)
    assert ids[0, 0] == 11
    assert sorted(ids[1].tolist()) == [3, 5, 7, 11]
    assert update_index(uri, word_model(), None, np.array([11])).count == 3


def test_another_model_is_refused(tmp_path, items):
    uri = f"{tmp_path / 'index'}"
    build_index(uri, word_model("a"), items, IndexConfig())
    message = r"built with the model words \(aaaaaaaaaaaa\), and words is another one \(bbbbbbbbbbbb\)"
    with pytest.raises(CropsError, match=message):
        check_model(open_index(uri).manifest, word_model("b"))
    with pytest.raises(CropsError, match=message):
        open_retriever(uri, word_model("b"))
    with pytest.raises(CropsError, match=message):
        update_index(uri, word_model("b"), items, NONE)
    with pytest.raises(CropsError, match="needs the model"):
        open_retriever(uri)


def test_recall_is_measured_with_the_queries_named(tmp_path, items):
    queries = tmp_path / "queries.parquet"
    pq.write_table(pa.table({"query": ["Title 3", "title  3", "title 7", "", None]}), queries)
    model = word_model()
    manifest = build_index(f"{tmp_path / 'index'}", model, items, IndexConfig(), queries)
    assert manifest.recall.queries == 2
    assert manifest.recall.source == str(queries)
    assert sorted(model.encoder.encoded[4:]) == ["title 3", "title 7"]


def test_what_an_index_cannot_be_is_refused(tmp_path, items):
    for uri, config, message in (
        ("bm25:x", IndexConfig(), "an index is written to faiss:FOLDER or milvus"),
        (f"{tmp_path / 'index'}", IndexConfig(dims=17), "vectors of 16 numbers cannot be searched"),
        (f"{tmp_path / 'index'}", IndexConfig(kind="ivfpq", int8=True), "ivfpq has codes of its own"),
        (f"{tmp_path / 'index'}", IndexConfig(kind="ivfpq", dims=9), "ivfpq needs an even width, not 9"),
    ):
        with pytest.raises(CropsError, match=message):
            build_index(uri, word_model(), items, config)


def test_words_and_both_together(tmp_path):
    """ "title 70" is first by words and by vectors: 2/61. No word finds nothing; "title" finds all, alike."""
    items = write_items(tmp_path / "items.parquet", [90, 30, 70, 50])
    uri, model = f"{tmp_path / 'index'}", word_model()
    build_index(uri, model, items, IndexConfig())
    words = open_retriever(f"bm25:{uri}")
    assert words.search(["nothing", "title"], 4)[0].tolist() == [[-1] * 4, [30, 50, 70, 90]]
    ids, scores = open_retriever(f"hybrid:{uri}", model).search(["title 70"], 5)
    assert ids[0, 0] == 70
    assert scores[0, 0] == pytest.approx(2 / 61)
    assert sorted(ids[0].tolist()) == [-1, 30, 50, 70, 90]


@pytest.mark.parametrize("role", ["document", "query"])
def test_vectors_for_other_stores(tmp_path, role):
    out = tmp_path / "deep/vectors.parquet"
    texts, ids = [f"text {row}" for row in range(5)], np.arange(5) + 1
    assert write_vectors(word_model(), ids, texts, out, role=role, dims=8) == 8
    table = pq.read_table(out)
    assert table.column_names == ["item_id" if role == "document" else "query_id", "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 8)
    assert table.schema.metadata[b"crops.model_hash"] == b"a" * 64
    vectors = np.array(table["vector"].to_pylist(), dtype=np.float32)
    full = WordEncoder().encode(texts, batch_size=1, normalize_embeddings=True, show_progress_bar=False)
    assert vectors == pytest.approx(full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True))
    assert sorted(path.name for path in out.parent.iterdir()) == ["vectors.parquet"]
    with pytest.raises(CropsError, match="is a folder"):
        write_vectors(word_model(), ids, texts, tmp_path)


def test_queries_are_distinct_normalised_and_in_the_order_of_their_ids(tmp_path, write_logs):
    asked = ["Ficus", " ficus ", "water lily"]
    logs = write_logs(tmp_path / "logs", impressions=[{"query": query} for query in asked])
    ids, texts = load_queries(logs)
    assert sorted(texts) == ["ficus", "water lily"]
    assert ids.tolist() == sorted(query_id(text) for text in texts)
    (tmp_path / "notes.txt").write_text("moss\n")
    nothing = pa.array(["", None], pa.string())
    for name, columns in (("q", {"query": nothing}), ("numbers", {"query": [7]}), ("t", {"text": ["a"]})):
        pq.write_table(pa.table(columns), tmp_path / name)
    for name, message in (
        ("q", "not one query"),
        ("numbers", "column query is int64; write the texts"),
        ("notes.txt", "notes.txt is not readable as Parquet"),
        ("t", "no Parquet table with a column query"),
        ("empty", "no Parquet table with a column query"),
    ):
        with pytest.raises(CropsError, match=message):
            load_queries(tmp_path / name)


@pytest.fixture
def static_model(tmp_path):
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "title": 1, "7": 2, "3": 3}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.eye(4, 8, dtype=np.float32)
    encoder = SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights), Normalize()], device="cpu")
    encoder.save(str(tmp_path / "model"), create_model_card=False)
    return tmp_path / "model"


def test_a_model_folder_has_the_hash_of_all_its_weights(tmp_path, static_model):
    """Each tower's weights lie in a folder that only the Router names."""
    model = load_model(str(static_model))
    assert (model.hash, model.rendering) == (model_hash(static_model), PLAIN)
    with pytest.raises(CropsError, match="two_tower is an untrained encoder"):
        load_model("two_tower")
    from crops.encoders.two_tower import FEATURES, two_tower

    two_tower(8, 4096).save(str(tmp_path / "towers"), create_model_card=False)
    model = load_model(str(tmp_path / "towers"))
    assert model.rendering is FEATURES
    for tower in ("query_2_Dense", "document_2_Dense"):
        weights = tmp_path / "towers" / tower / "model.safetensors"
        before, content = model_hash(tmp_path / "towers"), weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert model_hash(tmp_path / "towers") != before


def test_the_commands_build_change_and_write(tmp_path, static_model, items, capsys):
    from crops import encode, index

    out = str(tmp_path / "index")
    assert index(str(static_model), items, out=out, kind="hnsw", dims=8).count == 4
    assert "recall@100 against exact search: 1.0000" in capsys.readouterr().err
    assert index(str(static_model), out=out, delete="3, 9").count == 2
    pq.write_table(pa.table({"item_id": [5]}), tmp_path / "gone.parquet")
    assert index(str(static_model), out=out, delete=str(tmp_path / "gone.parquet")).count == 1
    assert index(str(static_model), out=out, update=items).count == 4
    written = pq.read_table(encode(str(static_model), items, out=tmp_path / "v.parquet")).to_pydict()
    own = dict(zip(written["item_id"], written["source_id"], strict=True))
    assert own == {9: "A9", 3: "3", 7: "A7", 5: "A5"}  # an id that is the number itself is written, too
    for options, message in (
        ({"items": items, "delete": "3"}, "name the items of a new index, or what to --update"),
        ({}, "name the items of a new index"),
        ({"delete": "3,,5"}, "--delete 3,,5: give ids separated by commas"),
        ({"delete": "3,A7"}, "'A7' is not in .*; name items that are"),
        ({"delete": "none.parquet"}, "there is no such file"),
        ({"items": items, "kind": "hsnw"}, "'hsnw'"),
    ):
        with pytest.raises(CropsError, match=message):
            index(str(static_model), out=out, **options)


class Picky:
    """Breaks on texts of which its tokenizer makes nothing, as decoders do; knows no word but `moss`."""

    def encode(self, texts, *, batch_size, normalize_embeddings, show_progress_bar):
        assert all(text.strip() for text in texts)
        return np.array([[1.0, 0.0] if "moss" in text else [0.0, 0.0] for text in texts], dtype=np.float32)


def test_texts_without_a_token_have_zero_vectors_and_are_counted(tmp_path, capsys):
    texts = ["moss", "", "\ufeff", "fern", "moss pot"]
    assert encode_texts(Picky(), texts)[:, 0].tolist() == [1, 0, 0, 0, 1]
    assert encode_texts(Picky(), ["", " "]).tolist() == [[0, 0], [0, 0]]
    model = Model("picky", Picky(), PLAIN, "hash")
    write_vectors(model, np.arange(1, 6), texts, tmp_path / "vectors.parquet")
    assert "3 of 5 documents have no token for this model" in capsys.readouterr().err
    ExactRetriever(Picky(), [1, 2], ["moss", ""])
    assert "1 of 2 documents have no token for this model" in capsys.readouterr().err
    retriever = BM25Retriever([1, 2], ["moss pot", "fern"])
    Rankings(retriever, np.array([1, 2, 3]), ["moss", "lichen", "?"], 2)
    assert "2 of 3 queries found nothing with BM25: no known word" in capsys.readouterr().err
