"""Texts without a token for the chosen encoder are left out and counted; the training goes on."""

import json

import numpy as np
import pytest
from by_hand import everything, stored

from crops.config import TrainingConfig
from crops.errors import CropsError
from crops.labels import Source
from crops.training import Samples, train
from crops.training.model import Mining
from crops.training.samples import Catalogue, Wordless

S = Source
NOTHING = ("   ", "\u3000")


@pytest.fixture
def mined(write_mined):
    """Six queries: two without a token, one whose clicked document has none, three sound ones.

    Items 8 and 9 have no token; 9 is the only positive of query 6, 8 one of two documents of query 5.
    """
    queries = {
        1: ("q0_0 q0_1", 3),
        2: ("\u2003", 2),
        3: ("q1_0", 1),
        4: (" ", 1),
        5: ("q2_0 q2_1", 5),
        6: ("q3_0", 1),
    }
    rows = [(query, query, S.CLICKED) for query in (1, 2, 3, 4, 5)] + [
        (query, 7, S.EXPOSED) for query in queries
    ]
    rows += [(5, 8, S.EXPOSED), (6, 9, S.CLICKED)]
    titles = {item: f"d{item % 6}_{item % 4} d{item % 3}_0" for item in range(1, 8)}
    return write_mined(rows, titles | {8: "\u2003", 9: ""}, queries)


def test_groups_lose_their_query_or_all_documents(mined, tmp_path):
    without = Wordless(frozenset(("\u2003", " ")), frozenset(("\u2003", "")))
    left = stored(Samples(mined), tmp_path, 3, without=without)
    found, _ = everything(left)
    assert {query: len(docs) for (_, query), docs in found.items()} == {
        "q0_0 q0_1": 2,
        "q1_0": 2,
        "q2_0 q2_1": 2,
        "q3_0": 1,
    }
    assert (left.groups, left.counts["dropped"]) == (4, 0)
    # Opened again, not made again; other texts make other groups.
    content = left.content
    assert stored(Samples(mined), tmp_path, 3, without=without).content == content
    assert stored(Samples(mined), tmp_path, 3).groups == 6


def test_a_training_says_what_it_left_out(mined, tmp_path, capsys, tiny_transformer):
    config = TrainingConfig(encoder=str(tiny_transformer), steps=2, batch_queries=2, min_anchor_label=4)
    facts = train(Samples(mined), tmp_path / "model", config, seed=0)
    # Queries 2 and 4 have no token, and query 6 loses its only document of label 4.
    expected = {"queries": 2, "documents": 2, "groups": 3}
    assert facts["without_token"] == expected
    assert facts["groups"] == 3
    assert json.loads((tmp_path / "model/manifest.json").read_text())["without_token"] == expected
    said = " ".join(capsys.readouterr().err.split())
    assert "2 queries have no token for this encoder and are left out" in said
    assert "2 documents have no token for this encoder and are left out" in said
    assert facts["full_documents"] == 0


def test_a_training_says_how_many_documents_it_cuts(mined, tmp_path, capsys, tiny_transformer):
    """Items 1, 3, 5 and 7 are in a group with a token: two words and two marks each."""
    config = TrainingConfig(encoder=str(tiny_transformer), steps=2, batch_queries=2, max_tokens=4)
    facts = train(Samples(mined), tmp_path / "model", config, seed=0)
    said = " ".join(capsys.readouterr().err.split())
    assert facts["full_documents"] == 4
    assert "4 documents fill the 4 tokens that the encoder reads: what is longer is cut" in said


def test_an_encoder_of_n_grams_trains_and_counts_no_tokens(mined, tmp_path):
    config = TrainingConfig(encoder="ngrams", dim=8, id_table=4096, steps=2, batch_queries=2)
    assert "full_documents" not in train(Samples(mined), tmp_path / "model", config, seed=0)


def test_a_mined_catalogue_loses_them_too(mined, random_encoder, tmp_path):
    catalogue = Catalogue(np.arange(1, 10), [*(f"d{n % 6}_{n % 4}" for n in range(1, 8)), *NOTHING])
    config = TrainingConfig(encoder=str(random_encoder), steps=2, batch_queries=2)
    facts = train(
        Samples(mined), tmp_path / "model", config, seed=0, mining=Mining(catalogue, 12), fresh=True
    )
    assert facts["without_token"] == {"queries": 2, "documents": 4, "groups": 2}
    assert facts["budget"] == 12


def test_nothing_but_such_texts_is_too_little(write_mined, random_encoder, tmp_path):
    rows = [(query, query, S.CLICKED) for query in (1, 2, 3)]
    mined = write_mined(
        rows, {1: "d0_0", 2: "d1_0", 3: "d2_0"}, {1: ("q0_0", 1), 2: (" ", 1), 3: ("\u2003", 1)}
    )
    config = TrainingConfig(encoder=str(random_encoder), steps=2, batch_queries=2)
    with pytest.raises(CropsError, match=r"has 1 group\(s\).*2 queries and 0 documents have no token"):
        train(Samples(mined), tmp_path / "model", config, seed=0)
    assert not (tmp_path / "model").exists()
