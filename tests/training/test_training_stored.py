"""Groups that stream from disk: the same as in memory, in bounded memory, and whole or not at all."""

from collections import Counter

import numpy as np
import pytest

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.labels import SEARCH_SOURCES, Source
from crops.text import PLAIN
from crops.training import Samples, load_samples, read_log, samples, train
from crops.training import texts as pool
from crops.training.groups import MemoryGroups
from crops.training.sampler import GroupSampler
from crops.training.samples import StoredGroups, store_samples

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
    monkeypatch.setattr(samples, "PART_GROUPS", 4)
    monkeypatch.setattr(samples, "SHARD_PARTS", 3)
    monkeypatch.setattr(samples, "BATCH_ROWS", 7)


def everything(source):
    """{query text: sorted [(document text, id, label, source, weight)]} and the searches."""
    texts = [text for part in (*source.query_texts(), *source.doc_texts()) for text in part]
    groups = source.read(np.arange(len(source.part_groups)))
    found, searches = {}, {}
    for row in range(len(groups)):
        pairs = slice(groups.offsets[row], groups.offsets[row + 1])
        key = int(groups.query_id[row]), texts[groups.query_text[row]]
        searches[key] = groups.searches[row]
        columns = (groups.doc_id, groups.label, groups.source, groups.weight)
        docs = [texts[text] for text in groups.doc_text[pairs]]
        found[key] = sorted(zip(docs, *(column[pairs].tolist() for column in columns), strict=True))
    return found, searches


@pytest.mark.parametrize(("keep", "lowest"), [(~S(0), 1), (SEARCH_SOURCES, 1), (~S(0), 4), (S.FEED, 1)])
def test_stored_groups_are_those_in_memory(mined, tmp_path, small_parts, keep, lowest):
    on_disk = store_samples(Samples(mined, keep), tmp_path / "groups", PLAIN, lowest, 0.5)
    in_memory = MemoryGroups(load_samples(mined, keep), lowest, 0.5)
    assert everything(on_disk) == everything(in_memory)
    assert on_disk.groups == in_memory.groups == on_disk.part_groups.sum()
    assert on_disk.dropped == in_memory.dropped
    assert on_disk.one_label == in_memory.one_label
    assert on_disk.part_searches.sum() == pytest.approx(in_memory.part_searches.sum())
    assert set(on_disk.part_groups[:-1]) == {4} or len(on_disk.part_groups) == 1
    assert len(list((tmp_path / "groups").glob("groups-*.parquet"))) == -(-len(on_disk.part_groups) // 3)


def test_queries_without_a_document_are_counted(mined, tmp_path):
    assert store_samples(Samples(mined), tmp_path / "groups", PLAIN, 1, 0.5).undocumented == 3


def test_equal_document_texts_are_one(mined, tmp_path):
    source = store_samples(Samples(mined), tmp_path / "groups", PLAIN, 1, 0.5)
    texts = [text for part in source.doc_texts() for text in part]
    assert len(texts) == len(set(texts)) < ITEMS


def draws(source, config, steps):
    sampler = GroupSampler(source, config, 0)
    batches = [sampler.draw(step) for step in range(steps)]
    return [batch.groups.query_id[batch.group].tolist() for batch in batches], sampler


def test_a_pass_over_the_stream_takes_each_group_once(mined, tmp_path, small_parts):
    """Beta 0: all weigh the same. 50 groups in 13 parts, 16 in memory, batches of 4: 12 or 13 a pass."""
    source = store_samples(Samples(mined), tmp_path / "groups", PLAIN, 0, 0.0)
    batches, sampler = draws(source, TrainingConfig(batch_queries=4, buffer_groups=16, beta=0.0), 13)
    steps = sampler._plan(0, 0)
    end = steps[-1].first + steps[-1].batches
    assert end in (12, 13)
    assert len(steps) == 3
    drawn = Counter(query for batch in batches[:end] for query in batch)
    assert all(len(set(batch)) == 4 for batch in batches)
    assert set(drawn.values()) <= {1, 2}
    assert len(drawn) >= 46  # 4 x 12 draws of 50 groups


def test_passes_differ_and_groups_meet_others(mined, tmp_path, small_parts):
    source = store_samples(Samples(mined), tmp_path / "groups", PLAIN, 0, 0.5)
    batches, _ = draws(source, TrainingConfig(batch_queries=4, buffer_groups=16), 600)
    first = source.read(np.array([0])).query_id[0]
    met = {query for batch in batches if first in batch for query in batch}
    assert len(met) > 40


def test_searched_groups_come_as_the_root_of_their_searches(mined, tmp_path, small_parts):
    source = store_samples(Samples(mined), tmp_path / "groups", PLAIN, 0, 0.5)
    batches, sampler = draws(source, TrainingConfig(batch_queries=4, buffer_groups=16), 1500)
    drawn = Counter(query for batch in batches for query in batch)
    groups = source.read(np.arange(len(source.part_groups)))
    expected = groups.searches**0.5 / (groups.searches**0.5).sum() * 6000
    actual = np.array([drawn[query] for query in groups.query_id.tolist()])
    np.testing.assert_allclose(actual, expected, rtol=0.25)


def test_no_more_than_a_buffer_is_read_at_once(mined, tmp_path, small_parts, monkeypatch):
    sizes = []
    real = StoredGroups.read
    monkeypatch.setattr(
        StoredGroups, "read", lambda self, parts: sizes.append(len(parts)) or real(self, parts)
    )
    source = store_samples(Samples(mined), tmp_path / "groups", PLAIN, 0, 0.5)
    _, sampler = draws(source, TrainingConfig(batch_queries=4, buffer_groups=8), 100)
    assert max(sizes) <= 3
    assert len(sizes) <= 60


def test_a_step_of_the_stream_depends_on_its_number_only(mined, tmp_path, small_parts):
    source = store_samples(Samples(mined), tmp_path / "groups", PLAIN, 0, 0.5)
    config = TrainingConfig(batch_queries=4, buffer_groups=16)
    batches, _ = draws(source, config, 40)
    fresh = GroupSampler(source, config, 0)
    for step in (37, 3, 20, 21, 21):
        batch = fresh.draw(step)
        assert batch.groups.query_id[batch.group].tolist() == batches[step]


def config_of(random_encoder, **changes):
    return TrainingConfig(init=str(random_encoder), batch_queries=8, steps=30, learning_rate=0.02, **changes)


def test_training_from_disk_equals_training_from_memory(mined, random_encoder, tmp_path):
    """All groups fit one buffer, so the batches are the same."""
    config = config_of(random_encoder)
    train(Samples(mined), tmp_path / "disk", config, seed=0)
    train(load_samples(mined), tmp_path / "memory", config, seed=0)
    disk, memory = read_log(tmp_path / "disk"), read_log(tmp_path / "memory")
    np.testing.assert_allclose(disk.loss, memory.loss, rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir() if "mined" not in path.name) == ["disk", "memory"]


def test_tokens_on_disk_train_alike(mined, random_encoder, tmp_path, monkeypatch):
    config = config_of(random_encoder)
    train(Samples(mined), tmp_path / "read", config, seed=0)
    monkeypatch.setattr(pool, "IN_MEMORY", 0)
    train(Samples(mined), tmp_path / "mapped", config, seed=0)
    read, mapped = read_log(tmp_path / "read"), read_log(tmp_path / "mapped")
    np.testing.assert_allclose(read.loss, mapped.loss, rtol=1e-5)


def test_what_is_stored_is_used_again_until_the_samples_change(mined, tmp_path):
    folder = tmp_path / "groups"
    before = store_samples(Samples(mined), folder, PLAIN, 1, 0.5).fingerprint()
    written = (folder / "index.json").stat().st_mtime_ns
    store_samples(Samples(mined), folder, PLAIN, 1, 0.5)
    assert (folder / "index.json").stat().st_mtime_ns == written
    path = mined / "samples.parquet"
    path.touch()
    assert store_samples(Samples(mined), folder, PLAIN, 1, 0.5).fingerprint() == before
    assert (folder / "index.json").stat().st_mtime_ns != written
    assert store_samples(Samples(mined, SEARCH_SOURCES), folder, PLAIN, 1, 0.5).fingerprint() != before


def test_a_damaged_shard_is_named(mined, tmp_path):
    folder = tmp_path / "groups"
    source = store_samples(Samples(mined), folder, PLAIN, 1, 0.5)
    shard = folder / "groups-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(bytes(content))
    with pytest.raises(CropsError, match=r"groups-00000.parquet is missing or damaged .*; remove .*groups"):
        source.read(np.array([0]))
    shard.write_bytes(bytes(content[:50]))
    with pytest.raises(CropsError, match="groups-00000.parquet is missing or damaged"):
        source.read(np.array([0]))
    shard.unlink()
    with pytest.raises(CropsError, match="groups-00000.parquet is missing or damaged"):
        source.read(np.array([0]))


def test_damaged_samples_are_named(mined, tmp_path):
    path = mined / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
    with pytest.raises(CropsError, match=r"samples.parquet.*make .* again with `crops mine`"):
        store_samples(Samples(mined), tmp_path / "groups", PLAIN, 1, 0.5)
    assert not (tmp_path / "groups" / "index.json").exists()


def test_damaged_tokens_are_named(mined, random_encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(random_encoder), device="cpu")
    source = MemoryGroups(load_samples(mined), 1, 0.5)
    whole = pool.tokenise_pool(encoder, source, tmp_path / "tokens")
    assert len(pool.tokenise_pool(encoder, source, tmp_path / "tokens").sides[0].tokens) == len(
        whole.sides[0].tokens
    )
    ids = tmp_path / "tokens" / "ids.bin"
    ids.write_bytes(ids.read_bytes()[:-4])
    with pytest.raises(CropsError, match=r"ids.bin is damaged"):
        pool.tokenise_pool(encoder, source, tmp_path / "tokens")
