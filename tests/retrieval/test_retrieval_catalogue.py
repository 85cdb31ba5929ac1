import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops.errors import CropsError, UnknownItemError
from crops.retrieval import load_item_rows, load_items
from crops.retrieval.catalogue import best_positions, padded_positions_of, positions_of, sorted_catalogue
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


@pytest.mark.parametrize(("column", "values", "told"), [
    ("item_id", pa.array(["a1", "a2", "a3"]),
     "column item_id is string, expected BIGINT.*crops.ids.number_of"),
    ("item_id", pa.array([1.0, 2.0, 3.0]), "column item_id is double, expected BIGINT.*lose digits"),
    ("item_id", pa.array([1, 2, 2**64 - 1], pa.uint64()), "column item_id is uint64, expected BIGINT"),
    ("item_id", pa.array([1, None, 3]), "1 rows have no item_id"),
    ("Item_Id", pa.array([1, 2, 3]), "column item_id is missing .*Did you mean 'Item_Id'"),
    ("ocr_cover", pa.array([["a"], ["b"], None]), r"column ocr_cover is list<.*>, expected VARCHAR"),
    ("ocr_cover", pa.array([b"a", b"b", None]), "column ocr_cover is binary, expected VARCHAR"),
])  # fmt: skip
def test_ids_and_texts_of_another_type_are_named(tmp_path, column, values, told):
    table = ITEMS.drop_columns([column.lower()]).append_column(column, values)
    pq.write_table(table, tmp_path / "items.parquet")
    for read in (load_items, load_item_rows):
        with pytest.raises(CropsError, match=rf"(?s)items\.parquet.*{told}"):
            read(tmp_path / "items.parquet")


def test_narrow_ids_foreign_columns_and_folders_like_partitions_read(tmp_path):
    folder = tmp_path / "category=moss"
    folder.mkdir()
    table = ITEMS.set_column(0, "item_id", pa.array([7, 3, 5], pa.int16()))
    table = table.append_column("ITEM_ID", pa.array(["a", "b", "c"]))
    pq.write_table(table.append_column("_row", pa.array([1, 2, 3])), folder / "items.parquet")
    assert load_items(folder)[0].tolist() == [3, 5, 7]
    assert load_item_rows(folder)["category"].to_pylist() == [None, None, None]


def test_a_folder_without_items_or_texts_is_refused(tmp_path):
    with pytest.raises(CropsError, match=r"no items\.parquet"):
        load_items(tmp_path)
    pq.write_table(ITEMS.select(["item_id", "play_cnt"]), tmp_path / "items.parquet")
    with pytest.raises(CropsError, match="at least one of ocr_cover"):
        load_items(tmp_path)
    (tmp_path / "items.parquet").write_text("item_id,ocr_cover\n1,moss\n")
    with pytest.raises(CropsError, match="is not readable as Parquet"):
        load_items(tmp_path)
    table = ITEMS.drop_columns(["play_cnt"]).append_column("play_cnt", pa.array([1.0, 2.5, np.nan]))
    pq.write_table(table, tmp_path / "items.parquet")
    with pytest.raises(CropsError, match="column play_cnt: .*run `crops check` first"):
        load_item_rows(tmp_path)


@pytest.mark.parametrize(("ids", "texts", "message"), [
    ([], [], "the catalogue is empty"),
    ([1, 2], ["a"], "2 item ids came with 1 texts"),
    ([4, 2, 4], ["a", "b", "c"], "item_id 4 is in the catalogue more than once"),
    ([1, -9], ["a", "b"], "item_id -9 is negative: generated documents"),
])  # fmt: skip
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
    assert padded_positions_of(ids, np.array([[30, -1], [10, 20]]), "here").tolist() == [[2, -1], [0, 1]]
    with pytest.raises(UnknownItemError, match="item_id -1 is not in here"):
        positions_of(ids, np.array([10, -1]), "here")
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
