import json

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import BertConfig, BertModel, BertTokenizerFast, Qwen2Config, Qwen2Model, Qwen2Tokenizer

from crops.encoders import load

WORDS = "the of cat dog sits runs red blue mat park ##s car house tree".split()


VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def save_tokenizer(folder):
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The folder of a one-layer BERT with a vocabulary of a few words, random weights."""
    folder = tmp_path_factory.mktemp("tiny_base")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=32, **SIZES)
    BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def byte_pairs(**options):
    """Return a tokenizer of bytes and their pairs, which as Qwen's puts no marks around a text."""
    pairs = Tokenizer(BPE())
    pairs.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    pairs.train_from_iterator([f" {word} {word}" for word in WORDS], trainer)
    learned = json.loads(pairs.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return Qwen2Tokenizer(vocab=learned["vocab"], merges=merges, **options)


def save_decoder(folder, **options):
    """Write a one-layer Qwen2 as the Hub has such models: half precision, no pooling."""
    torch.manual_seed(0)
    tokenizer = byte_pairs(**options)
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, **SIZES)
    Qwen2Model(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["left", "right"])
def tiny_qwen(request, tmp_path_factory):
    """The folder of a one-layer Qwen2 that pads on either side."""
    return save_decoder(tmp_path_factory.mktemp("tiny_qwen"), padding_side=request.param)


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory):
    """The folder of a one-layer Qwen2 encoder: pads on the left, pools the last token."""
    folder = save_decoder(tmp_path_factory.mktemp("tiny_decoder"), padding_side="left")
    modules = [Transformer(str(folder)), Pooling(8, pooling_mode="lasttoken")]
    SentenceTransformer(modules=modules).float().save(str(folder / "encoder"))
    return folder / "encoder"


@pytest.fixture
def hub(monkeypatch, tiny_base):
    """A stand-in for the Hub and the [demo] extra: the folder of a model by name."""
    models = {"minilm": tiny_base}
    found = load.local_folder
    monkeypatch.setattr(load, "local_folder", lambda name: models.get(name) or found(name))
    return models
