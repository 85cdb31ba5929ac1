"""Every vector index behaves alike: one set of tests over all kinds and both libraries."""

import importlib.util

import numpy as np
import pyarrow as pa
import pytest
from retrieval_hand import catalogue, publish, unit, word_model

from crops.config import IndexConfig
from crops.errors import CropsError, UnknownItemError
from crops.retrieval import Filter, FlatIndex, current_version, open_index
from crops.retrieval.catalogue import ITEM_SCHEMA, item_rows
from crops.serving.searcher import Job, Searcher

KINDS = ["exact", "exact int8", "hnsw", "hnsw int8", "ivf", "ivf int8", "ivfpq"]
STORES = [*(f"faiss {kind}" for kind in KINDS), "milvus exact", "milvus hnsw"]
COUNT, DIM = 400, 16
QUOTED = '" or item_id > 0 or "'
STRANGE = ["café", "動物", "🐆", "back\\slash", "it's", "two\nlines", "\x01\t{x}", "\\u00e9", QUOTED]
NO_MILVUS = importlib.util.find_spec("milvus_lite") is None

COLUMNS = {
    "ocr_cover": [f"title {row}" for row in range(COUNT)],
    "author_id": [row % 4 for row in range(COUNT)],
    "category": [
        None if row % 100 == 0 else 'odd "quoted"' if row % 20 == 1 else "even" for row in range(COUNT - 9)
    ]
    + STRANGE,
    "uploaded_at": [row * 1_000_000 for row in range(COUNT)],
    "source_id": [None if row == 1 else f"sku-{row}" for row in range(COUNT)],
}


def with_ties():
    """Vectors of which the last hundred repeat the first."""
    vectors = unit(COUNT, DIM)
    vectors[300:] = vectors[:100]
    return vectors


def make(store, folder, vectors=None, **config):
    library, kind, *codes = store.split()
    vectors = with_ties() if vectors is None else vectors
    config = {"kind": kind, "int8": bool(codes), **config}
    if library == "faiss":
        publish(folder / "index", vectors, columns=COLUMNS, **config)
        return f"faiss:{folder / 'index'}"
    if NO_MILVUS:
        pytest.skip("milvus-lite is not installed")
    from crops.retrieval.milvus import publish_milvus

    target = f"{folder / 'x.db'}"
    publish_milvus(target, catalogue(vectors, **COLUMNS), IndexConfig(**{"target_recall": 1.0, **config}))
    return f"milvus:{target}"


@pytest.fixture(scope="module", params=STORES)
def index(request, tmp_path_factory):
    opened = open_index(make(request.param, tmp_path_factory.mktemp("store")))
    yield opened
    opened.close()


def exact():
    return FlatIndex(np.arange(10, 10 * COUNT + 10, 10), with_ties())


def test_items_are_called_as_their_source_calls_them(index):
    assert index.shown(np.array([30, 10, 20])) == ["sku-2", "sku-0", "20"]


def test_results_equal_exact_search_with_ties_by_id(index):
    """Queries are documents that are there twice, so each list begins with a tie: the smaller id is first."""
    queries = with_ties()[:30]
    ids, scores = index.search(queries, 20)
    expected_ids, expected_scores = exact().nearest(queries, 20)
    assert ids.tolist() == expected_ids.tolist()
    assert scores == pytest.approx(expected_scores, abs=2e-6)
    assert (ids[:, 0] < ids[:, 1]).all()
    assert scores[:, 0] == pytest.approx(scores[:, 1])
    assert index.manifest.recall.at_100 == 1
    # short lists are padded, no queries give no rows, and a query without a vector finds nothing
    ids, scores = index.search(unit(2, DIM, 1), COUNT + 3)
    assert (ids[:, :COUNT] > 0).all()
    assert (ids[:, COUNT:] == -1).all()
    assert np.isneginf(scores[:, COUNT:]).all()
    assert index.search(np.empty((0, DIM), np.float32), 3)[0].shape == (0, 3)
    queries = unit(3, DIM, 1)
    queries[1] = 0  # of a text of which an encoder knows no token
    for where in (None, Filter(author_id=1)):
        ids, scores = index.search(queries, 5, where)
        assert (ids[1] == -1).all()
        assert np.isneginf(scores[1]).all()
        assert ids[[0, 2]].tolist() == index.search(queries[[0, 2]], 5, where)[0].tolist()


@pytest.mark.parametrize(("where", "rows"), [
    (Filter(author_id=1), [row for row in range(COUNT) if row % 4 == 1]),
    (Filter(category='odd "quoted"'), [row for row in range(COUNT) if row % 20 == 1]),
    *((Filter(category=text), [COUNT - 9 + row]) for row, text in enumerate(STRANGE)),
    (Filter(category="even", uploaded_before=100_000_000), [r for r in range(1, 100) if r % 20 != 1]),
    (Filter(uploaded_since=395_000_000), [395, 396, 397, 398, 399]),
    (Filter(item_ids=np.array([40, 4000, 77]), author_id=3), [3, 399]),
    (Filter(author_id=9), []),
])  # fmt: skip
def test_filters_leave_the_exact_results_of_the_rest(index, where, rows):
    """Shares of 25, 5, 24, 1, 0.5 and 0 %: both ways of filtering are used."""
    queries = unit(5, DIM, 2)
    ids, scores = index.search(queries, 10, where)
    if not rows:
        assert (ids == -1).all()
        return
    rest = FlatIndex(np.array(rows) * 10 + 10, with_ties()[rows])
    expected_ids, expected_scores = rest.nearest(queries, 10)
    assert ids.tolist() == expected_ids.tolist()
    finite = np.isfinite(expected_scores)
    assert scores[finite] == pytest.approx(expected_scores[finite], abs=2e-6)


def test_vectors_and_rows_of_items_come_in_the_order_asked(index):
    wanted = np.array([2010, 20, 10])
    assert index.vectors(wanted) == pytest.approx(with_ties()[[200, 1, 0]], abs=1e-6)
    rows = index.items(wanted)
    assert rows.schema.names == ITEM_SCHEMA.names
    assert rows["ocr_cover"].to_pylist() == ["title 200", "title 1", "title 0"]
    assert rows["category"].to_pylist() == [None, 'odd "quoted"', None]
    assert index.known(np.array([15, 20, -1, 10, -(2**63)])).tolist() == [False, True, False, True, False]
    for method in (index.vectors, index.items):
        for unknown in (15, -1, -(2**63)):  # -1 pads result lists
            with pytest.raises(UnknownItemError, match=f"item_id {unknown} is not in"):
                method(np.array([10, unknown]))


def test_searches_at_once_each_get_their_own_filter(index, monkeypatch):
    """Filters of more than 1,000 ids, which numpy prints abbreviated, in one batch of a server."""
    monkeypatch.setattr(index, "close", lambda: None)  # the searcher's end is not the index's here
    searcher = Searcher("name", index, word_model(dim=DIM))
    every, padding = np.arange(10, 10 * COUNT + 10, 10), np.arange(10**6, 10**6 + 1000)
    left_out = every[100:300:25]
    jobs = [
        Job(COUNT, "q", where=Filter(np.concatenate([every[every != item], padding])), texts=False)
        for item in left_out
    ]
    for job, item, found in zip(jobs, left_out, searcher.answer(jobs), strict=True):
        assert set(every) - set(found.ids) == {item}
        assert found == searcher.answer([job])[0]


@pytest.mark.parametrize("store", ["faiss exact", "faiss hnsw int8", "faiss ivfpq", "milvus hnsw"])
def test_an_update_replaces_adds_and_deletes(store, tmp_path):
    uri = make(store, tmp_path)
    index, version = open_index(uri), current_version(uri)
    east = np.eye(DIM, dtype=np.float32)[:2]
    items = pa.table({"item_id": [30, 5], "ocr_cover": ["replaced", "added"], "author_id": [7, 7]})
    published = index.update(items, east, np.array([10, 20]))
    index.close()
    assert published == current_version(uri) != version
    index = open_index(uri)
    assert index.manifest.count == COUNT - 1
    ids, scores = index.search(east, 3)
    assert ids[:, 0].tolist() == [30, 5]
    assert scores[:, 0] == pytest.approx([1, 1])
    known = np.concatenate([[5, 30], np.arange(40, 10 * COUNT + 10, 10)])
    vectors = np.concatenate([east[::-1], with_ties()[3:]])
    queries = unit(10, DIM, 3)
    assert index.search(queries, 20)[0].tolist() == FlatIndex(known, vectors).nearest(queries, 20)[0].tolist()
    assert index.search(east, 3, Filter(author_id=7))[0].tolist() == [[30, 5, -1], [5, 30, -1]]
    assert index.search(queries, 5, Filter(item_ids=np.array([10, 20])))[0].max() == -1
    assert index.items(np.array([30]))["ocr_cover"].to_pylist() == ["replaced"]
    assert index.vectors(np.array([5])) == pytest.approx(east[1:])
    index.update(item_rows(items.slice(0, 0)), east[:0], np.array([5]))
    index.close()
    index = open_index(uri)
    assert index.manifest.count == COUNT - 2
    with pytest.raises(CropsError, match="item_id 5 is not in"):
        index.vectors(np.array([5]))
    index.close()


def test_bad_searches_and_updates_are_refused(index):
    for vectors, k, message in (
        (unit(1, DIM), 0, "k = 0"),
        (unit(1, 8), 3, "vectors of 8 numbers cannot be searched in an index of 16"),
        (unit(1, DIM + 1), 3, "vectors of 17 numbers cannot be searched in an index of 16"),
        (np.full((1, DIM), np.nan, np.float32), 3, "a query vector holds NaN"),
    ):
        with pytest.raises(CropsError, match=message):
            index.search(vectors, k)
    for ids, vectors, deleted, message in (
        ([-3], unit(1, DIM), [], "item_id -3 is negative: generated documents"),
        ([3, 3], unit(2, DIM), [], "item_id 3 is named more than once"),
        ([10], unit(1, DIM), [10], "item_id 10 is named more than once"),
        ([3], unit(1, 8), [], r"vectors of shape \(1, 8\)"),
        ([3], np.full((1, DIM), np.inf, np.float32), [], "NaN or infinity"),
        ([3], unit(1, DIM), [11], "item_id 11 is not in"),
        ([3], unit(1, DIM), [-1], "item_id -1 is not in"),
        ([], unit(0, DIM), range(10, 10 * COUNT + 10, 10), "an index cannot be empty"),
    ):
        table, deleted = pa.table({"item_id": pa.array(ids, pa.int64())}), np.array(deleted, dtype=np.int64)
        with pytest.raises(CropsError, match=message):
            index.update(table, vectors, deleted)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_filter_that_is_not_scanned_does_not_cost_recall(tmp_path, kind):
    """12 % of 3,000 items: the effort that finds the best of all items would find too few of these."""
    vectors = unit(3000, DIM)
    authors = [row % 25 // 3 for row in range(3000)]
    publish(tmp_path, vectors, kind=kind, target_recall=0.9, columns={"author_id": authors})
    index, queries = open_index(f"{tmp_path}"), unit(20, DIM, 5)
    allowed = np.flatnonzero(np.array(authors) == 0)
    assert len(allowed) == 360
    best, _ = FlatIndex(10 * allowed + 10, vectors[allowed]).nearest(queries, 30)
    found, _ = index.search(queries, 30, Filter(author_id=0))
    share = np.mean([len(np.intersect1d(a, b)) / 30 for a, b in zip(best, found, strict=True)])
    assert share >= 0.99


@pytest.mark.parametrize("store", ["faiss exact", "faiss hnsw int8", "milvus exact"])
def test_the_first_numbers_serve_alone_and_full_queries_are_cut(store, tmp_path):
    """At 8 of 16 numbers the index finds what exact search in the cut, renormalised vectors finds."""
    vectors = unit(COUNT, DIM)
    cut = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    index = open_index(make(store, tmp_path, vectors, dims=8))
    queries = unit(6, DIM, 4)
    expected = FlatIndex(np.arange(10, 10 * COUNT + 10, 10), cut).nearest(queries[:, :8], 10)[0]
    assert index.search(queries, 10)[0].tolist() == expected.tolist()
    assert (index.manifest.dim, index.manifest.model_dim) == (8, DIM)
    assert index.manifest.recall.at_100 == 1
    # oracle in numpy: the share of the true hundred that the first hundred of 8 numbers hold
    best = np.argsort(-vectors[:50] @ vectors.T, axis=1)[:, :100]
    found = np.argsort(-cut[:50] @ cut.T, axis=1)[:, :100]
    share = np.mean([len(np.intersect1d(a, b)) / 100 for a, b in zip(best, found, strict=True)])
    assert index.manifest.recall.full_width == pytest.approx(share, abs=1e-3)
    assert share < 0.9
    index.close()


@pytest.mark.skipif(NO_MILVUS, reason="milvus-lite is not installed")
def test_a_milvus_build_moves_the_alias_and_keeps_the_collection_before(tmp_path):
    from pymilvus import MilvusClient

    from crops.retrieval.milvus import publish_milvus

    target = str(tmp_path / "x.db")
    for count in (30, 40, 50):
        publish_milvus(f"{target}#mine", catalogue(unit(count, DIM)), IndexConfig())
    assert current_version(f"milvus:{target}#mine") == "mine_000003"
    client = MilvusClient(target)
    assert sorted(client.list_collections()) == ["mine_000002", "mine_000003"]
    client.close()
    with pytest.raises(CropsError, match="holds no index crops"):
        open_index(f"milvus:{target}")
    with pytest.raises(CropsError, match="there is no index"):
        open_index(f"milvus:{tmp_path / 'none.db'}")
    with pytest.raises(CropsError, match="no index of kind exact with int8"):
        publish_milvus(target, catalogue(unit(30, DIM)), IndexConfig(int8=True))
    index = open_index(f"milvus:{target}#mine")
    with pytest.raises(CropsError, match="at most 16,384"):
        index.search(unit(1, DIM), 20_000)
    index.close()


@pytest.mark.skipif(NO_MILVUS, reason="milvus-lite is not installed")
def test_what_milvus_refuses_is_told_with_its_address_and_logs_nothing_that_was_asked(
    tmp_path, caplog, capfd
):
    """The collection is dropped behind the back of an open index."""
    from pymilvus import MilvusClient

    index = open_index(make("milvus exact", tmp_path))
    client = MilvusClient(str(tmp_path / "x.db"))
    client.drop_alias("crops")
    client.drop_collection("crops_000001")
    for ask in (lambda: index.search(unit(1, DIM), 3, Filter(category="my secret")),
                lambda: index.search(unit(1, DIM), 3), lambda: index.vectors(np.array([10]))):  # fmt: skip
        with pytest.raises(CropsError, match=r"x\.db: Milvus says: .*crops_000001"):
            ask()
    client.close()
    index.close()
    assert "my secret" not in caplog.text + "".join(capfd.readouterr())


def test_without_pymilvus_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    (tmp_path / "x.db").touch()
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(CropsError, match=r"pip install 'crops-retrieval\[milvus\]'"):
        open_index(f"milvus:{tmp_path / 'x.db'}")
