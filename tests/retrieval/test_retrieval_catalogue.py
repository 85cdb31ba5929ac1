import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError
from crops.retrieval import load_items
from crops.retrieval.catalogue import best_positions, positions_of, sorted_catalogue
from crops.text import Rendering

ITEMS = pa.table(
    {
        "item_id": pa.array([7, 3, 5], pa.int64()),
        "ocr_cover": ["seven", "three", None],
        "keyword": ["tag", "", "five tags"],
        "play_cnt": [1, 2, 3],
    }
)


def test_items_are_read_from_a_file_a_logs_folder_and_a_folder_of_parts(tmp_path):
    pq.write_table(ITEMS, tmp_path / "items.parquet")
    parts = tmp_path / "partitioned" / "items"
    parts.mkdir(parents=True)
    pq.write_table(ITEMS.slice(0, 1), parts / "a.parquet")
    pq.write_table(ITEMS.slice(1), parts / "b.parquet")

    for path in (tmp_path / "items.parquet", tmp_path, tmp_path / "partitioned", parts):
        ids, texts = load_items(path)
        assert ids.tolist() == [3, 5, 7]
        assert texts == ["three", "five tags", "seven tag"]


def test_only_the_kept_items_are_loaded(tmp_path):
    pq.write_table(ITEMS, tmp_path / "items.parquet")
    ids, texts = load_items(tmp_path, keep=np.array([7, 5, 7]))
    assert ids.tolist() == [5, 7]
    assert texts == ["five tags", "seven tag"]
    with pytest.raises(CropsError, match="item_id 4 is not in"):
        load_items(tmp_path, keep=np.array([3, 4]))


def test_a_folder_without_items_or_texts_is_refused(tmp_path):
    with pytest.raises(CropsError, match=r"no items\.parquet"):
        load_items(tmp_path)
    pq.write_table(ITEMS.select(["item_id", "play_cnt"]), tmp_path / "items.parquet")
    with pytest.raises(CropsError, match="at least one of ocr_cover"):
        load_items(tmp_path)


def test_a_null_id_is_refused(tmp_path):
    table = pa.table({"item_id": pa.array([1, None], pa.int64()), "ocr_cover": ["a", "b"]})
    pq.write_table(table, tmp_path / "items.parquet")
    with pytest.raises(CropsError, match="1 rows have no item_id"):
        load_items(tmp_path)


@pytest.mark.parametrize(
    ("ids", "texts", "message"),
    [
        ([], [], "the catalogue is empty"),
        ([1, 2], ["a"], "2 item ids came with 1 texts"),
        ([4, 2, 4], ["a", "b", "c"], "item_id 4 is in the catalogue more than once"),
        ([1, -9], ["a", "b"], "item_id -9 is negative: generated documents"),
    ],
)
def test_bad_catalogues_are_refused(ids, texts, message):
    with pytest.raises(CropsError, match=message):
        sorted_catalogue(ids, texts)


def test_best_positions_break_ties_by_position_across_the_cut():
    scores = np.array([1, 5, 3, 3, 3, 9], dtype=np.float32)
    assert best_positions(scores, 3).tolist() == [5, 1, 2]
    assert best_positions(scores, 4).tolist() == [5, 1, 2, 3]
    assert best_positions(scores, 99).tolist() == [5, 1, 2, 3, 4, 0]


def test_positions_keep_the_padding():
    ids = np.array([10, 20, 30])
    assert positions_of(ids, np.array([[30, -1], [10, 20]]), "here").tolist() == [[2, -1], [0, 1]]
    with pytest.raises(CropsError, match=r"item_id 99 is not in here \(1 unknown ids\)"):
        positions_of(ids, np.array([10, 99]), "here")


def test_a_rendering_decides_what_stands_for_a_document(tmp_path):
    """It sees the id and its own columns, those of them that the table has."""
    pq.write_table(ITEMS, tmp_path / "items.parquet")
    rendering = Rendering(("play_cnt", "author_id"), lambda row: repr(sorted(row.items())), str.upper)
    ids, texts = load_items(tmp_path, keep=np.array([3, 7]), rendering=rendering)
    assert ids.tolist() == [3, 7]
    assert texts == ["[('item_id', 3), ('play_cnt', 2)]", "[('item_id', 7), ('play_cnt', 1)]"]
    with pytest.raises(CropsError, match="needs item_id and at least one of author_id"):
        load_items(tmp_path, rendering=rendering._replace(columns=("author_id",)))
