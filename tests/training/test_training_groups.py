"""Groups on disk: of mined samples and of judgements, in bounded memory, and whole or not at all."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from by_hand import everything, stored
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.encoders.two_tower import FEATURES
from crops.errors import CropsError
from crops.labels import ALL_SOURCES, SEARCH_SOURCES, Source
from crops.text import PLAIN
from crops.training import Samples, from_judgements, pool, read_log, train
from crops.training import groups as store
from crops.training.groups import GroupSampler, GroupStore

S = Source
QUERIES, ITEMS = 50, 40


@pytest.fixture
def mined(write_mined):
    """50 queries of 1 to 9 documents; half of the items share their text with another; 3 queries are bare."""
    random = np.random.default_rng(0)
    kinds = [S.CLICKED, S.EXPOSED, S.FILTERED, S.FEED, S.REFORMULATION | S.EXPOSED]
    rows = []
    for query in range(QUERIES):
        items = random.choice(ITEMS, 1 + query % 9, replace=False)
        rows += [
            (query * 7 - 100, int(item) + 1, kinds[(query + i) % 5]) for i, item in enumerate(sorted(items))
        ]
    titles = {
        item + 1: f"d{item % 5}_{item % 4} d{item % 6}_{(item // 2) % 2}"
        if item % 2
        else f"d{item % 6}_{item % 4}"
        for item in range(ITEMS)
    }
    known = {query: (f"q{query % 6}_{query % 4} q{query % 5}_1", 1 + query % 30) for query, _, _ in rows}
    return write_mined(rows, titles, known | {5001 + i: (f"q1_{i}", 1) for i in range(3)})


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(store, "GROUPS_READ", 4)
    monkeypatch.setattr(store, "SHARD_ROW_GROUPS", 3)
    monkeypatch.setattr(store, "BATCH_ROWS", 7)


@pytest.mark.parametrize(("keep", "lowest"), [(~S(0), 1), (SEARCH_SOURCES, 1), (~S(0), 4), (S.FEED, 1)])
def test_shards_hold_what_one_row_group_would(mined, tmp_path, request, keep, lowest):
    whole = stored(Samples(mined, keep), tmp_path / "whole", lowest)
    found = everything(whole)
    request.getfixturevalue("small_parts")
    sharded = stored(Samples(mined, keep), tmp_path, lowest)
    assert everything(sharded) == found
    assert sharded.counts == whole.counts
    assert sharded.groups == sharded.row_groups.sum()
    assert sharded.row_searches.sum() == pytest.approx(whole.row_searches.sum())
    assert set(sharded.row_groups[:-1]) == {4} or len(sharded.row_groups) == 1
    assert len(list((tmp_path / "groups").glob("groups-*.parquet"))) == -(-len(sharded.row_groups) // 3)
    texts = [text for part in sharded.doc_texts() for text in part]
    assert len(texts) == len(set(texts)) < ITEMS  # equal texts are one
    if (keep, lowest) == (~S(0), 1):
        assert sharded.counts["undocumented"] == 3


def test_click_queries_of_unknown_days_are_refused(write_mined):
    samples = Samples(write_mined([(1, 1, S.CLICKED)], {1: "one"}), fields=("ocr_cover", "click_query"))
    with pytest.raises(CropsError, match="click_query may count the very days"):
        samples.rendering(PLAIN)
    assert samples.rendering(FEATURES) is FEATURES


def draws(source, config, steps):
    sampler = GroupSampler(source, config, 0)
    batches = [sampler.draw(step) for step in range(steps)]
    return [batch.query_id.tolist() for batch in batches], sampler


def test_a_pass_over_the_stream_takes_each_group_once(mined, tmp_path, small_parts):
    """Beta 0: all weigh the same. 50 groups in 13 parts, 16 in memory, batches of 4: 12 or 13 a pass."""
    source = stored(Samples(mined), tmp_path, 0, 0.0)
    batches, sampler = draws(source, TrainingConfig(batch_queries=4, buffer_groups=16, beta=0.0), 13)
    steps = sampler._lay_out(0, 0)
    end = steps[-1].first + steps[-1].batches
    assert end in (12, 13)
    assert len(steps) == 3
    drawn = Counter(query for batch in batches[:end] for query in batch)
    assert all(len(set(batch)) == 4 for batch in batches)
    assert set(drawn.values()) <= {1, 2}
    assert len(drawn) >= 46  # 4 x 12 draws of 50 groups


def test_searched_groups_come_as_the_root_of_their_searches(mined, tmp_path, small_parts):
    source = stored(Samples(mined), tmp_path, 0, 0.5)
    batches, sampler = draws(source, TrainingConfig(batch_queries=4, buffer_groups=16), 1500)
    drawn = Counter(query for batch in batches for query in batch)
    groups = source.read(np.arange(len(source.row_groups)))
    expected = groups.searches**0.5 / (groups.searches**0.5).sum() * 6000
    actual = np.array([drawn[query] for query in groups.query_id.tolist()])
    np.testing.assert_allclose(actual, expected, rtol=0.25)


def test_no_more_than_a_buffer_is_read_at_once(mined, tmp_path, small_parts, monkeypatch):
    sizes = []
    real = GroupStore.read
    monkeypatch.setattr(GroupStore, "read", lambda self, rows: sizes.append(len(rows)) or real(self, rows))
    source = stored(Samples(mined), tmp_path, 0, 0.5)
    _, sampler = draws(source, TrainingConfig(batch_queries=4, buffer_groups=8), 100)
    assert max(sizes) <= 3
    assert len(sizes) <= 60


def test_a_step_of_the_stream_depends_on_its_number_only(mined, tmp_path, small_parts):
    source = stored(Samples(mined), tmp_path, 0, 0.5)
    config = TrainingConfig(batch_queries=4, buffer_groups=16)
    batches, _ = draws(source, config, 40)
    fresh = GroupSampler(source, config, 0)
    for step in (37, 3, 20, 21, 21):
        assert fresh.draw(step).query_id.tolist() == batches[step]


def config_of(random_encoder, **changes):
    return TrainingConfig(init=str(random_encoder), batch_queries=8, steps=30, learning_rate=0.02, **changes)


def test_tokens_on_disk_train_alike(mined, random_encoder, tmp_path, monkeypatch):
    config = config_of(random_encoder)
    train(Samples(mined), tmp_path / "read", config, seed=0)
    monkeypatch.setattr(pool, "IN_MEMORY", 0)
    train(Samples(mined), tmp_path / "mapped", config, seed=0)
    read, mapped = read_log(tmp_path / "read"), read_log(tmp_path / "mapped")
    np.testing.assert_allclose(read.loss, mapped.loss, rtol=1e-5)


def test_what_is_stored_is_used_again_until_the_samples_change(mined, tmp_path):
    folder = tmp_path / "groups"
    before = stored(Samples(mined), tmp_path).content
    written = (folder / "index.json").stat().st_mtime_ns
    stored(Samples(mined), tmp_path)
    assert (folder / "index.json").stat().st_mtime_ns == written
    path = mined / "samples.parquet"
    path.touch()
    assert stored(Samples(mined), tmp_path).content == before
    assert (folder / "index.json").stat().st_mtime_ns != written
    assert stored(Samples(mined, SEARCH_SOURCES), tmp_path).content != before


def test_damaged_shards_tokens_and_samples_are_named(mined, random_encoder, tmp_path):
    source = stored(Samples(mined), tmp_path)
    shard = tmp_path / "groups" / "groups-00000.parquet"
    whole = shard.read_bytes()
    place = len(whole) // 3
    for content in (whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :], whole[:50], None):
        shard.write_bytes(content) if content else shard.unlink()
        with pytest.raises(
            CropsError, match=r"groups-00000.parquet is missing or damaged .*; remove .*groups"
        ):
            source.read(np.array([0]))
    shard.write_bytes(whole)
    encoder = SentenceTransformer(str(random_encoder), device="cpu")
    first, again = (pool.tokenise_pool(encoder, source, tmp_path / "tokens") for _ in range(2))
    assert len(first.sides[0].tokens) == len(again.sides[0].tokens)
    ids = tmp_path / "tokens" / "ids.bin"
    ids.write_bytes(ids.read_bytes()[:-4])
    with pytest.raises(CropsError, match=r"ids.bin is damaged"):
        pool.tokenise_pool(encoder, source, tmp_path / "tokens")
    path = mined / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
    with pytest.raises(CropsError, match=r"samples.parquet.*make .* again with `crops mine`"):
        stored(Samples(mined), tmp_path / "other")
    assert not (tmp_path / "other" / "groups" / "index.json").exists()


TITLES = {1: "one", 2: "two", 3: "three", 4: "four", -5: "generated"}
ROWS = [
    (20, 1, S.CLICKED),
    (20, 2, S.EXPOSED | S.REFORMULATION),
    (10, 3, S.FILTERED | S.FEED),
    (10, 1, S.EXPOSED),
    (30, -5, S.KNOWLEDGE),
    (30, 4, S.CLICKED | S.KNOWLEDGE | S.FEED),
]


def groups(data, folder):
    """{query text: [(document text, label, source), ...]}, in the order of the documents' ids"""
    found, _ = everything(stored(data, folder, 0))
    return {
        text: [(doc, label, source) for doc, _, label, source, _ in sorted(own, key=lambda row: row[1])]
        for (_, text), own in found.items()
    }


def test_groups_of_all_sources(write_mined, tmp_path):
    mined = write_mined(ROWS, TITLES, {10: ("ten", 9), 20: ("twenty", 4), 30: ("thirty", 1)})
    assert groups(Samples(mined), tmp_path) == {
        "ten": [("one", 3, S.EXPOSED), ("three", 4, S.FEED)],
        "twenty": [("one", 4, S.CLICKED), ("two", 5, S.REFORMULATION)],
        # Three sources earn label 4: the click speaks first, so that it is drawn as a click.
        "thirty": [("generated", 4, S.KNOWLEDGE), ("four", 4, S.CLICKED)],
    }
    _, searches = everything(stored(Samples(mined), tmp_path))
    assert searches == {(10, "ten"): 9, (20, "twenty"): 4, (30, "thirty"): 1}


def test_an_arm_labels_as_if_the_other_sources_had_not_spoken(write_mined, tmp_path):
    mined = write_mined(ROWS, TITLES)
    assert groups(Samples(mined, SEARCH_SOURCES), tmp_path) == {
        "query 10": [("one", 3, S.EXPOSED), ("three", 1, S.FILTERED)],
        "query 20": [("one", 4, S.CLICKED), ("two", 3, S.EXPOSED)],
        "query 30": [("four", 4, S.CLICKED)],
    }
    assert groups(Samples(mined, S.FEED), tmp_path) == {
        "query 10": [("three", 4, S.FEED)],
        "query 30": [("four", 4, S.FEED)],
    }


def test_other_labels_may_be_given_and_a_fold_held_out(write_mined, tmp_path):
    mined = write_mined(ROWS, TITLES)
    labels = {S.CLICKED: 2, S.REFORMULATION: 2, S.EXPOSED: 1}
    assert groups(Samples(mined, labels=labels), tmp_path) == {
        "query 10": [("one", 1, S.EXPOSED)],
        "query 20": [("one", 2, S.CLICKED), ("two", 2, S.REFORMULATION)],
        "query 30": [("four", 2, S.CLICKED)],
    }
    negative = write_mined([(-13, 1, S.CLICKED), (7, 1, S.CLICKED), (3, 1, S.CLICKED)], TITLES, folder="b")
    held_out = stored(Samples(negative, held_out=7), tmp_path)
    assert everything(held_out)[0].keys() == {(3, "query 3")}  # -13 leaves 7 as well
    assert held_out.counts["undocumented"] == 0


def test_faults_of_a_mined_folder_are_named(write_mined, tmp_path):
    def refused(mined, keep=ALL_SOURCES):
        stored(Samples(mined, keep), tmp_path / "refused")

    with pytest.raises(
        CropsError, match=r"samples.parquet is missing; name an output folder of `crops mine`"
    ):
        refused(tmp_path)
    with pytest.raises(CropsError, match="item 4 has a label but no text \\(1 such\\)"):
        refused(write_mined(ROWS, {i: t for i, t in TITLES.items() if i != 4}, folder="a"))
    with pytest.raises(CropsError, match="query 20 has a label but no text"):
        refused(write_mined(ROWS, TITLES, {10: ("ten", 1), 30: ("thirty", 1)}, folder="b"))
    mined = write_mined(ROWS[:1], TITLES, folder="c")
    with pytest.raises(CropsError, match="no sample comes from the sources"):
        refused(mined, S.FEED)
    path = mined / "samples.parquet"
    pq.write_table(pq.read_table(path).drop_columns("sources"), path)
    with pytest.raises(CropsError, match="samples.parquet has no column sources"):
        refused(mined)


DOCS = pa.table(
    {"doc_id": ["a", "b", "c", "z"], "title": ["A", "B", None, "Z"], "text": ["aa", "", "cc", "zz"]}
)
JUDGED = pa.table({"query_id": [7, 8, 9], "text": ["seven", "eight", "nine"]})


def qrels(rows):
    return pa.table(dict(zip(["query_id", "doc_id", "grade"], zip(*rows, strict=True), strict=True)))


def test_judgements_become_groups(tmp_path):
    data = from_judgements(DOCS, JUDGED, qrels([(9, "c", 0), (7, "a", 3), (9, "b", 2)]))
    source = stored(data, tmp_path, 0)
    found = {
        text: sorted((doc, label, bit) for doc, _, label, bit, _ in own)
        for (_, text), own in everything(source)[0].items()
    }
    assert found == {"seven": [("A aa", 3, 0)], "nine": [("B", 2, 0), ("cc", 0, 0)]}
    assert (source.groups, source.counts["undocumented"], data.groups) == (2, 0, 2)
    assert [text for texts in source.doc_texts() for text in texts].count("Z zz") == 0


@pytest.mark.parametrize(("docs", "rows", "message"), [
    (DOCS, [(7, "q", 1)], "has a label but no text"),
    (DOCS, [(1, "a", 1)], "qrels: query 1 has a label but no text"),
    (DOCS, [(7, "a", -1)], "negative grade"),
    (DOCS.drop_columns(["title", "text"]), [(7, "a", 1)], "docs has no column text; it has doc_id"),
])  # fmt: skip
def test_faults_of_judgements_are_named(docs, rows, message):
    with pytest.raises(CropsError, match=message):
        from_judgements(docs, JUDGED, qrels(rows))
