import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from by_hand import training_data
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, BertTokenizerFast

from crops.schema import ITEMS, QUERIES, SAMPLES, SYNTHETIC_ITEMS

TOPICS, WORDS = 6, 4


@pytest.fixture
def write_mined(tmp_path):
    """A factory of `crops mine` outputs from rows (query_id, item_id, sources) and items {id: title}."""

    def write(rows, items, queries=None, folder="mined"):
        target = tmp_path / folder
        target.mkdir()

        def table(definition, records):
            filled = [{name: record.get(name) for name in definition.names()} for record in records]
            pq.write_table(
                pa.Table.from_pylist(filled, definition.arrow()), target / f"{definition.name}.parquet"
            )

        table(
            SAMPLES,
            [
                {"query_id": query, "item_id": item, "label": 0, "sources": int(sources), "weight": 1.0}
                for query, item, sources in rows
            ],
        )
        queries = queries or {row[0]: (f"query {row[0]}", 1) for row in rows}
        table(
            QUERIES,
            [{"query_id": i, "query": text, "searches": n, "users": n} for i, (text, n) in queries.items()],
        )
        titled = [{"item_id": i, "ocr_cover": title} for i, title in items.items()]
        table(ITEMS, [row for row in titled if row["item_id"] > 0])
        table(SYNTHETIC_ITEMS, [row for row in titled if row["item_id"] < 0])
        return target

    return write


@pytest.fixture
def make_data():
    """A factory of TrainingData from groups [(label, source), ...] over documents of their own."""

    def make(groups, searches=None):
        rows = iter(range(sum(map(len, groups))))
        pairs = [[(next(rows), label, int(source)) for label, source in group] for group in groups]
        named = [(f"query {i}", group) for i, group in enumerate(pairs)]
        docs = [f"doc {i}" for i in range(sum(map(len, groups)))]
        ids = np.arange(len(docs)) + 1000
        return training_data(named, docs, ids=ids, query_ids=np.arange(len(groups)) + 100, searches=searches)

    return make


@pytest.fixture(scope="session")
def random_encoder(tmp_path_factory):
    """The folder of an untrained static encoder of searchers' words q<topic>_<n> and creators' words d..."""
    words = [f"{side}{topic}_{n}" for side in "qd" for topic in range(TOPICS) for n in range(WORDS)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = torch.randn(len(words) + 1, 16, generator=torch.Generator().manual_seed(0)) / 4
    folder = tmp_path_factory.mktemp("random_encoder") / "model"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights), Normalize()]).save(str(folder))
    return folder


@pytest.fixture(scope="session")
def toy():
    """Queries and documents of each topic share no word; word 0 of a topic's queries meets word 3 in none."""
    groups, docs = [], {}
    for topic in range(TOPICS):
        for first, second in [(0, 1), (1, 2), (2, 3)]:
            texts = [f"d{topic}_{n} d{topic}_{(n + 1) % WORDS}" for n in range(3)]
            other = f"d{(topic + 1) % TOPICS}_{first} d{(topic + 1) % TOPICS}_{second}"
            rows = [(docs.setdefault(text, len(docs)), 4, 0) for text in texts]
            groups.append(
                (f"q{topic}_{first} q{topic}_{second}", [*rows, (docs.setdefault(other, len(docs)), 1, 0)])
            )
    return training_data(groups, list(docs))


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory, random_encoder):
    """The folder of a one-layer BERT over the words of the toy."""
    folder = tmp_path_factory.mktemp("tiny_transformer")
    words = SentenceTransformer(str(random_encoder), device="cpu").tokenizer.get_vocab()
    vocabulary = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **sizes)
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dropout(tmp_path_factory, tiny_transformer):
    """The folder of the one-layer BERT, with much dropout."""
    folder = tmp_path_factory.mktemp("tiny_dropout") / "model"
    model = BertModel.from_pretrained(
        tiny_transformer, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3
    )
    model.save_pretrained(folder)
    BertTokenizerFast(str(tiny_transformer / "vocab.txt")).save_pretrained(folder)
    return folder
