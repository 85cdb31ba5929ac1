import hashlib
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from crops.config import TrainingConfig
from crops.encoders import (
    encode,
    load_encoder,
    only_used_tokens,
    rendering_for,
    rendering_of,
    save_encoder,
    tokenise,
)
from crops.encoders.towers import ID_ROWS, input_module
from crops.encoders.two_tower import FEATURES, item_features, popularity_bucket, query_features, two_tower
from crops.errors import CropsError
from crops.losses import h_infonce
from crops.text import PLAIN

ITEM = {"item_id": 7, "author_id": 3, "category": "Pets", "keyword": "cat Toys", "play_cnt": 6, "like_cnt": 0}


def digest(value):
    return hashlib.sha256(value.encode()).hexdigest()[:8]


def make(**options):
    return load_encoder(TrainingConfig(encoder="two_tower", dim=8, id_table=4096, **options))


@pytest.fixture(scope="module")
def encoder():
    return two_tower(8, 4096)


def tokens(encoder, role, text):
    return input_module(encoder, role).tokenizer.encode(text).tokens


def test_features_of_an_item_by_hand():
    assert item_features(ITEM).split() == [
        f"item:{digest('7')}",
        f"author:{digest('3')}",
        f"category:{digest('pets')}",
        f"word:{digest('cat')}",
        f"word:{digest('toys')}",
        "plays:02",  # log2(1 + 6) = 2.8; no like, no feature
    ]
    # missing values and generated ids leave no trace
    nothing = {"item_id": -5, "author_id": None, "keyword": "a", "play_cnt": None}
    assert item_features(nothing) == f"word:{digest('a')}"
    # popularity doubles from bucket to bucket
    buckets = {0: 0, 1: 1, 2: 1, 3: 2, 6: 2, 7: 3, 1023: 10, 2**63 - 1: 63, -1: 0}
    assert {count: popularity_bucket(count) for count in buckets} == buckets


def test_a_query_has_its_words_and_its_id_and_nothing_of_the_user():
    """The id is that of the normalised text: case and spaces do not make another query."""
    assert query_features("  Red CAT,  red!") == " ".join(
        [f"query:{digest('red cat, red!')}", *(f"word:{digest(word)}" for word in ("red", "cat", "red"))]
    )
    assert query_features("Red cat") == query_features("red  CAT")


@pytest.mark.parametrize(("rows", "digits"), [(4096, 3), (65536, 4)])
def test_the_tokenizer_keeps_as_many_digits_as_the_table_has_rows(rows, digits):
    document = tokens(two_tower(8, rows), "document", item_features(ITEM))
    assert document[:4] == [f"item:{digest('7')[:digits]}", f"author:{digest('3')[:digits]}",
                            f"category:{digest('pets')[:2]}", f"word:{digest('cat')[:4]}"]  # fmt: skip
    assert document[-1] == "plays:02"


def test_each_tower_knows_its_own_fields(encoder):
    assert tokens(encoder, "query", item_features(ITEM)) == [f"word:{digest(w)[:4]}" for w in ("cat", "toys")]
    assert tokens(encoder, "document", query_features("cat")) == [f"word:{digest('cat')[:4]}"]
    assert tokens(encoder, "document", "no features: at all") == []


def test_before_training_a_query_is_near_the_items_with_its_words(encoder):
    items = [item_features({"keyword": word}) for word in ("cat toys", "bike repair", "ficus water")]
    found = encoder.encode_query([query_features(q) for q in ("cat", "bike", "water")])
    assert (found @ encoder.encode_document(items).T).argmax(axis=1).tolist() == [0, 1, 2]


def test_an_id_without_training_adds_nothing(encoder):
    """Its row is zero: the average shrinks by n / (n + 1), which LayerNorm undoes."""
    unknown = {name: value for name, value in ITEM.items() if name not in ("item_id", "author_id")}
    with_ids, without = encoder.encode_document([item_features(ITEM), item_features(unknown)])
    assert with_ids @ without > 0.9999
    words = " ".join(query_features("red cat").split()[1:])
    assert np.dot(*encoder.encode_query([query_features("red cat"), words])) > 0.9999
    for ours, theirs in zip(encoder.parameters(), two_tower(8, 4096).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)  # the same encoder each time


def bags(module, features):
    """What the table is asked for, once ids are hidden: the features of each text."""
    asked = []
    handle = module.embedding.register_forward_pre_hook(lambda _, inputs: asked.extend(inputs))
    module(dict(features))
    handle.remove()
    names = [module.tokenizer.id_to_token(i) for i in asked[0].tolist()]
    starts = asked[1].tolist()
    return [names[a:b] for a, b in zip(starts, [*starts[1:], len(names)], strict=True)]


@pytest.fixture
def module():
    return input_module(make(id_dropout=0.5), "document")


def test_what_only_the_past_tells_is_hidden_together_in_training_only(module):
    items = [item_features(ITEM), item_features({**ITEM, "item_id": 8})] * 200
    features = module.preprocess(items)
    full = [module.tokenizer.encode(text).tokens for text in items]
    module.eval()
    assert bags(module, features) == full
    module.train()
    torch.manual_seed(0)
    hidden = [{name.split(":")[0] for name in bag} for bag in bags(module, features)]
    assert all({"category", "word"} <= fields for fields in hidden)
    assert all(("item" in fields) == ("plays" in fields) for fields in hidden)
    for fields in ({"item"}, {"author"}, {"item", "author"}):
        kept, expected = sum(fields <= one for one in hidden), 400 * 0.5 ** len(fields)
        # 400 coins: a standard deviation is 10 or less.
        assert abs(kept - expected) < 45
    # ids that are all there is stay
    only = [item_features({"item_id": i, "author_id": 1}) for i in range(50)]
    assert all(len(bag) == 2 for bag in bags(module, module.preprocess(only)))


def test_hiding_follows_the_rows_when_the_table_shrinks():
    encoder = make(id_dropout=0.9)
    texts = [item_features(ITEM)] * 2
    document = tokenise(encoder, texts)
    whole = getattr(input_module(encoder, "document"), ID_ROWS)
    with only_used_tokens(encoder, document) as few:
        rows = getattr(input_module(encoder, "document"), ID_ROWS)
        # In the order of the table: two words, item, author, category, plays.
        assert rows.tolist() == [0, 0, 1, 2, 0, 1]
        encode(encoder.train(), few, np.array([0, 1])).sum().backward()
    assert getattr(input_module(encoder, "document"), ID_ROWS) is whole


def world(groups=8, each=6):
    """Items of a group share tag and category; one of its queries clicks the even ones, the other the odd."""
    items = [
        {"item_id": g * each + i + 1, "author_id": 1, "category": f"c{g}", "keyword": f"tag{g} fyp"}
        for g in range(groups)
        for i in range(each)
    ]
    queries = [f"ask{g} {side}" for g in range(groups) for side in ("left", "right")]
    return items, queries


def learn(encoder, items, queries, cold, steps=120):
    """Each query's items: clicked (4) on its side of its group, shown (2) on the other; none of the cold."""
    sides, group = len(queries), np.arange(len(items)) // 6
    query_tokens = tokenise(encoder, [query_features(q) for q in queries], "query")
    item_tokens = tokenise(encoder, [item_features(i) for i in items])
    rows = [(q, i, 4 if i % 2 == q % 2 else 2) for q in range(sides) for i in np.flatnonzero(group == q // 2)]
    rows = [row for row in rows if row[1] not in cold]
    index, doc, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
    with only_used_tokens(encoder, query_tokens, "query") as q, only_used_tokens(encoder, item_tokens) as d:
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
        encoder.train()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = h_infonce(
                encode(encoder, q, np.arange(sides), "query"),
                encode(encoder, d, doc.numpy()),
                index,
                labels,
                temperature=torch.tensor(0.1),
                query_id=torch.arange(sides),
                doc_id=doc,
            )
            loss.backward()
            optimizer.step()
    return loss.item()


def test_it_learns_ids_and_finds_cold_items_by_their_content(tmp_path):
    items, queries = world()
    cold = {g * 6 + i for g in range(8) for i in (4, 5)}
    torch.manual_seed(0)
    encoder = make(id_dropout=0.3)
    learn(encoder, items, queries, cold)
    scores = (
        encoder.encode_query([query_features(q) for q in queries])
        @ encoder.encode_document([item_features(i) for i in items]).T
    )
    group, asked = np.arange(len(items)) // 6, np.arange(len(queries)) // 2
    # By content: all 6 items of the group, the two cold among them, before any other. By chance 1 in 10^7.
    best = np.argsort(-scores, axis=1)[:, :6]
    assert (group[best] == asked[:, None]).all()
    # By id: of the items alike in content, those of its own side first.
    warm = [i for i in range(len(items)) if i not in cold]
    first = np.array(warm)[np.argsort(-scores[:, warm], axis=1)[:, :2]]
    assert (first % 2 == np.arange(len(queries))[:, None] % 2).all()
    save_encoder(encoder, tmp_path / "model")
    check_plain(tmp_path / "model", encoder)


def check_plain(folder, encoder):
    """The folder names only modules of sentence-transformers, so it loads where crops is not installed."""
    types = json.loads((folder / "router_config.json").read_text())["types"].values()
    listed = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    assert all(name.startswith("sentence_transformers.") for name in (*types, *listed))
    plain = SentenceTransformer(str(folder), device="cpu")
    queries, items = [query_features("ask1 left")], [item_features(ITEM)]
    np.testing.assert_array_equal(plain.encode_query(queries), encoder.encode_query(queries))
    np.testing.assert_array_equal(plain.encode_document(items), encoder.encode_document(items))
    config = TrainingConfig(init=str(folder), encoder="two_tower")
    assert rendering_of(plain) is FEATURES
    assert rendering_for(config) is FEATURES
    again = load_encoder(config)
    assert getattr(input_module(again, "query"), ID_ROWS).count_nonzero() == 4096
    np.testing.assert_array_equal(again.encode_query(queries), plain.encode_query(queries))


def test_what_is_for_texts_only_is_refused(tiny_base):
    for options, named in (
        ({"towers": "shared"}, "towers = shared"),
        ({"query_prompt": "q: "}, "query_prompt"),
        ({"lora_rank": 4, "doc_prompt": "d: "}, "doc_prompt, lora_rank"),
    ):
        with pytest.raises(CropsError, match=f"{named}: not for a two_tower encoder"):
            make(**options)
    # what an encoder reads is known before it is loaded
    assert rendering_for(TrainingConfig(encoder="two_tower")) is FEATURES
    assert rendering_for(TrainingConfig()) is rendering_for(TrainingConfig(encoder=str(tiny_base))) is PLAIN
