import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizerFast, Qwen2Config, Qwen2Model

WORDS = [
    "the",
    "of",
    "cat",
    "dog",
    "sits",
    "runs",
    "red",
    "blue",
    "mat",
    "park",
    "##s",
    "car",
    "house",
    "tree",
]


VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def save_tokenizer(folder, **options):
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(str(folder / "vocab.txt"), **options).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The folder of a one-layer BERT with a vocabulary of a few words, random weights."""
    folder = tmp_path_factory.mktemp("tiny_base")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory):
    """The folder of a one-layer Qwen2 encoder: pads on the left, pools the last token."""
    folder = tmp_path_factory.mktemp("tiny_decoder")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
    )
    Qwen2Model(config).save_pretrained(folder)
    save_tokenizer(folder, padding_side="left")
    modules = [Transformer(str(folder)), Pooling(8, pooling_mode="lasttoken")]
    SentenceTransformer(modules=modules).save(str(folder / "encoder"))
    return folder / "encoder"
