"""The sparse model: a two-tower MLP on hashed ids of queries and items.

A query or item becomes a text of features, `item:5f3a91c2 author:0be1a7d3 word:...`: a field and 32 bits of a
hash. The tokenizer keeps as many hex digits of a field as its table has rows for, so the size of the tables
is a property of the model, and the text fits every model. What is left is made of sentence-transformers'
own modules: an EmbeddingBag that averages the rows of a text, LayerNorm and two Dense layers per tower. Each
row belongs to one field, so the average does what concatenating fields before a first linear layer does.

The rows of ids (item, author, query) start at zero and only training moves them: an id that training never
saw adds nothing, unless its hash meets a trained one (probability: trained ids / rows of the table), and
the embedding comes from the other features. `hide_ids` drops ids in training so that these learn to do so.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.sentence_transformer.modules import LayerNorm, Normalize, StaticEmbedding
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor, nn

from crops.encoders.towers import ID_ROWS, input_modules
from crops.text import PLAIN, Rendering, normalise_query

COUNTERS = {
    "plays": "play_cnt",
    "likes": "like_cnt",
    "long_views": "long_view_cnt",
    "downloads": "download_cnt",
}
"""Fields of popularity with the columns they are read from."""
ID_FIELDS = ("item", "author", "query")
"""Fields whose rows start at zero, in tables of `TrainingConfig.id_table` rows."""
_KINDS = {"item": 1, "query": 1, **dict.fromkeys(COUNTERS, 1), "author": 2}
"""Fields that training hides, together where the number is the same."""
_WORD_DIGITS = 4
"""Hex digits of a word's hash that count: 65,536 rows."""
_SMALL_DIGITS = 2
"""Hex digits of categories and of popularity, which is no hash."""
_CATEGORY = "category"
_START_SCALE = 0.1
_HIDDEN = 4
"""Width of the hidden layer, in widths of the output."""
_WORD = re.compile(r"\w+")


def query_features(text: str) -> str:
    """Return the features of a query: the id of its normalised text and its words; nothing of its user."""
    text = normalise_query(text)
    return " ".join([_hashed("query", text), *(_hashed("word", word) for word in _WORD.findall(text))])


def item_features(item: Mapping[str, Any]) -> str:
    """Return the features of one row of `items`: ids of item and author, category, tags, popularity.

    Missing values and counts of zero leave no trace. The id of a generated item (negative) is left out, as
    such an item is never searched.

    Args:
        item: a row; only `item_id` and `FEATURES.columns` are read.
    """
    features = []
    item_id = item.get("item_id")
    if item_id is not None and int(item_id) >= 0:
        features.append(_hashed("item", str(item_id)))
    if item.get("author_id") is not None:
        features.append(_hashed("author", str(item["author_id"])))
    if item.get("category"):
        features.append(_hashed(_CATEGORY, normalise_query(item["category"])))
    features += [_hashed("word", tag) for tag in normalise_query(item.get("keyword") or "").split()]
    buckets = {field: popularity_bucket(int(item.get(column) or 0)) for field, column in COUNTERS.items()}
    features += [f"{field}:{bucket:02x}" for field, bucket in buckets.items() if bucket]
    return " ".join(features)


def popularity_bucket(count: int) -> int:
    """Return floor(log2(1 + count)): 0 for nothing, then one bucket per doubling; at most 63 for 64 bits."""
    return (max(count, 0) + 1).bit_length() - 1


FEATURES = Rendering(("author_id", "category", "keyword", *COUNTERS.values()), item_features, query_features)
"""What a two-tower encoder reads in place of texts."""


def _hashed(field: str, value: str) -> str:
    """Return a feature; the hash depends on the value alone, so words of queries and tags agree."""
    return f"{field}:{hashlib.sha256(value.encode()).hexdigest()[:8]}"


def two_tower(dim: int, id_table: int) -> SentenceTransformer:
    """Return an untrained two-tower encoder, the same on each call.

    Both towers start from the same weights for words and the same MLP: before any training, a query is near
    the items that carry its words as tags.

    Args:
        dim: width of the tables and of the output.
        id_table: rows of each table of ids: 4,096, 65,536 or 1,048,576 (a power of 16).
    """
    digits = len(f"{id_table - 1:x}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = torch.randn(16**_WORD_DIGITS, dim) * _START_SCALE
        small = dict.fromkeys((_CATEGORY, *COUNTERS), _SMALL_DIGITS)
        mlp = [
            LayerNorm(dim),
            Dense(dim, _HIDDEN * dim, activation_function=nn.ReLU()),
            Dense(_HIDDEN * dim, dim, activation_function=nn.Identity()),
        ]
        query = [_table(words, {"query": digits}), *mlp]
        document = [_table(words, {"item": digits, "author": digits, **small}), *copy.deepcopy(mlp)]
    router = Router.for_query_document(query, document)
    return SentenceTransformer(modules=[router, Normalize()], device="cpu")


def _table(words: Tensor, fields: Mapping[str, int]) -> StaticEmbedding:
    """Return the rows of one tower: those of words, then 16^digits for each further field."""
    digits = {"word": _WORD_DIGITS, **fields}
    names = [f"{field}:{row:0{n}x}" for field, n in digits.items() for row in range(16**n)]
    tokenizer = Tokenizer(WordLevel({name: row for row, name in enumerate(names)}))
    kept = "|".join(f"(?<![a-z_]){field}:[0-9a-f]{{{n}}}" for field, n in digits.items())
    tokenizer.pre_tokenizer = Split(Regex(kept), behavior="removed", invert=True)
    further = [
        torch.zeros(16**n, words.shape[1])
        if field in ID_FIELDS
        else torch.randn(16**n, words.shape[1]) * _START_SCALE
        for field, n in fields.items()
    ]
    return StaticEmbedding(tokenizer, torch.cat([words, *further]))


def rendering_of(encoder: SentenceTransformer) -> Rendering:
    """Return what the encoder reads: features if its tokenizer knows them, else plain text."""
    return FEATURES if all(_reads_features(module) for module in input_modules(encoder)) else PLAIN


def _reads_features(module: object) -> bool:
    tokenizer = module.tokenizer if isinstance(module, StaticEmbedding) else None
    return isinstance(tokenizer, Tokenizer) and tokenizer.token_to_id("word:0000") is not None


def hide_ids(encoder: SentenceTransformer, rate: float) -> None:
    """Make a two-tower encoder do without ids now and then while it trains.

    With the probability `rate` each, a text loses what only its past tells (the ids of item or query, with
    all popularity: a new item has neither) and the id of its author. A text without other features keeps
    them. The dropping is no part of the saved model.
    """
    for module in input_modules(encoder):
        kinds = torch.zeros(module.num_embeddings, dtype=torch.int64)
        for name, row in module.tokenizer.get_vocab().items():
            kinds[row] = _KINDS.get(name.split(":")[0], 0)
        setattr(module, ID_ROWS, kinds)
        module.register_forward_pre_hook(lambda module, inputs: (_drop_ids(module, inputs[0], rate),))


def _drop_ids(module: StaticEmbedding, features: dict[str, Any], rate: float) -> dict[str, Any]:
    if not module.training:
        return features
    ids, offsets = features["input_ids"], features["offsets"]
    kind = getattr(module, ID_ROWS).to(ids.device)[ids]
    bag = torch.bucketize(torch.arange(len(ids), device=ids.device), offsets, right=True) - 1
    content = torch.bincount(bag[kind == 0], minlength=len(offsets))
    hidden = torch.rand(len(offsets), len(set(_KINDS.values())), device=ids.device) < rate
    kept = (kind == 0) | ~hidden[bag, kind - 1] | (content[bag] == 0)
    sizes = torch.bincount(bag[kept], minlength=len(offsets))
    return {**features, "input_ids": ids[kept], "offsets": sizes.cumsum(0) - sizes}
