from collections import Counter

import numpy as np
import pytest
from by_hand import stored, with_column

from crops.config import TrainingConfig
from crops.labels import Source
from crops.training.groups import GroupSampler

S = Source
POPULAR = [(5, S.REFORMULATION)] * 2 + [(4, S.CLICKED)] * 3 + [(4, S.FEED)] * 9 + [(1, S.FILTERED)] * 7


@pytest.fixture
def sampler_of(tmp_path):
    """A function from data, settings and seed to a sampler of all its groups."""

    def made(data, config, seed):
        return GroupSampler(stored(data, tmp_path, 0, config.beta), config, seed)

    return made


def drawn(data, batch, row=0):
    """How many documents of each (label, source) were drawn for a row of the batch; ids count from 1000."""
    pairs = data.pairs.take(batch.doc_id[batch.query_index == row] - 1000).to_pylist()
    return Counter((pair["label"], S(pair["source"])) for pair in pairs)


def test_caps_per_label_and_source(make_data, sampler_of):
    """2 + 3 + 9 + 7 documents, at most 4 of each (label, source): 2 + 3 + 4 + 4."""
    data = make_data([POPULAR, [(4, S.CLICKED)]])
    batch = sampler_of(data, TrainingConfig(docs_per_source=4), seed=0).draw(0)
    assert batch.query_id.tolist() == [100, 101]  # fewer groups than a batch are all drawn
    capped = {(5, S.REFORMULATION): 2, (4, S.CLICKED): 3, (4, S.FEED): 4, (1, S.FILTERED): 4}
    assert drawn(data, batch) == capped
    assert drawn(data, batch, row=1) == {(4, S.CLICKED): 1}
    batch = sampler_of(data, TrainingConfig(docs_per_source=1), seed=0).draw(0)
    # 14 positives of group 0, three strata of them drawn once: 11 are known; the 6 filtered left out are not
    assert batch.known_index.tolist() == [0] * 11
    assert not set(batch.known_id) & set(batch.doc_id)
    assert (data.pairs["label"].to_numpy()[batch.known_id - 1000] >= 4).all()


def test_the_cap_per_query_takes_one_of_each_in_turn(make_data, sampler_of):
    """6 of them: the first turn gives 1 + 1 + 1 + 1, the second two more of different strata."""
    data = make_data([POPULAR, [(4, S.CLICKED)]])
    config = TrainingConfig(docs_per_source=4, docs_per_query=6)
    sampler = sampler_of(data, config, seed=0)
    for step in range(20):
        counts = drawn(data, sampler.draw(step))
        assert sorted(counts.values()) == [1, 1, 2, 2]
    sampler = sampler_of(data, TrainingConfig(docs_per_query=2), seed=1)
    second = Counter()
    for step in range(60):
        counts = drawn(data, sampler.draw(step))
        assert counts.pop((5, S.REFORMULATION)) == 1  # the best label is never capped away
        second.update(counts)
    assert set(second) == {(4, S.CLICKED), (4, S.FEED), (1, S.FILTERED)}  # the other place goes to any


@pytest.mark.parametrize(("beta", "share"), [(0.0, 1 / 2), (0.5, 2 / 3), (1.0, 4 / 5)])
def test_groups_are_drawn_with_the_root_of_their_searches(make_data, sampler_of, beta, share):
    """Of two groups searched 4 and 1 times one is drawn: weights 4^beta : 1."""
    data = make_data([[(4, S.CLICKED)]] * 2, searches=[4.0, 1.0])
    one = TrainingConfig(beta=beta).model_copy(update={"batch_queries": 1})
    sampler = sampler_of(data, one, seed=0)
    assert np.mean([sampler.draw(step).query_id[0] == 100 for step in range(2000)]) == pytest.approx(
        share, abs=0.04
    )


def test_a_heavier_pair_is_drawn_more_often(make_data, sampler_of):
    data = with_column(make_data([[(4, S.CLICKED)] * 2, [(4, S.CLICKED)]]), "weight", [3.0, 1.0, 1.0])
    sampler = sampler_of(data, TrainingConfig(docs_per_source=1), seed=0)
    heavy = sum(1000 in sampler.draw(step).doc_id for step in range(2000))
    assert heavy / 2000 == pytest.approx(3 / 4, abs=0.04)


def test_a_batch_holds_a_group_once_and_its_rows_fit(make_data, sampler_of):
    data = make_data([[(4, S.CLICKED), (3, S.EXPOSED)]] * 50, searches=list(range(1, 51)))
    batch = sampler_of(data, TrainingConfig(batch_queries=20), seed=0).draw(5)
    assert len(set(batch.query_id)) == len(batch.query_id) == 20
    query_of_pair = data.pairs["query_id"].to_numpy()[batch.doc_id - 1000]
    np.testing.assert_array_equal(query_of_pair, batch.query_id[batch.query_index])


def test_a_step_depends_on_seed_and_number_only(make_data, sampler_of):
    data = make_data([POPULAR] * 9)
    config = TrainingConfig(batch_queries=4)
    sampler = sampler_of(data, config, seed=3)
    late = sampler.draw(7)
    sampler.draw(1)
    again = sampler_of(data, config, seed=3).draw(7)
    np.testing.assert_array_equal(late.doc_id, again.doc_id)
    assert late.doc_id.tolist() != sampler.draw(8).doc_id.tolist()
    assert late.doc_id.tolist() != sampler_of(data, config, seed=4).draw(7).doc_id.tolist()
