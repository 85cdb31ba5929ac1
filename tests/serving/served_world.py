"""A small world to serve: eight items, six searchers, two models that hash words."""

import hashlib
import json

import numpy as np

from crops.config import EngineConfig, IndexConfig, ServingConfig
from crops.engine import mine
from crops.logs import open_logs
from crops.retrieval import Model, build_index
from crops.serving import service as service_module
from crops.text import PLAIN

HOSTILE = "<script>alert('title')</script> & \"quotes\""
ITEMS = {
    1: ("jaguar parked at dusk", "a red car", "cars"),
    2: ("jaguar in the reeds", "a spotted cat hunts", "animals"),
    3: ("spotted cat asleep", "panthera onca", "animals"),
    4: (HOSTILE, "jaguar <b>bold</b>", "cars"),
    5: ("red car polish", "shine for cars", "cars"),
    6: ("how to water a ficus", "plants need light", None),
    7: ("קטע על יגואר", "חתול גדול", "animals"),
    8: ("🐆 run", "fast cat", "animals"),
}
DIM = 64
GENERATED = {"query": "jaguar", "ocr_cover": "written about a spotted cat", "model": "Test-LM 1B"}
SECRET = "my private address"
NOON = 1_767_614_400_000_000


class WordEncoder:
    """The sum of a fixed random vector for each word; `seed` makes another model."""

    def __init__(self, seed):
        self.seed = seed
        self.delay = 0.0

    def encode(self, texts, *, batch_size, normalize_embeddings, show_progress_bar):
        vectors = np.stack([self._vector(text) for text in texts])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def _vector(self, text):
        total = np.zeros(DIM, dtype=np.float32)
        for word in text.split():
            digest = hashlib.sha256(f"{self.seed} {word}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            total += rng.standard_normal(DIM).astype(np.float32)
        return total


MODELS = {name: Model(name, WordEncoder(name), PLAIN, f"hash-of-{name}") for name in ("old", "new")}


def fake_load_model(name):
    return MODELS[name]


def searches():
    """Users 1 to 6 search "jaguar"; 1 to 4 click item 1; 1 to 4 reword it to "spotted cat" and consume 3.

    User 9 alone searches the secret, and alone consumes item 5 after "jaguar" as "red car".
    """
    rows = []
    for user in range(1, 7):
        rows += [
            {"user_id": user, "search_id": user, "query": "Jaguar", "item_id": 1, "clicked": user <= 4},
            {"user_id": user, "search_id": user, "query": "Jaguar", "item_id": 6, "stage": "filtered"},
        ]
        if user <= 4:
            later = {"user_id": user, "search_id": 10 + user, "query": "spotted cat", "item_id": 3}
            rows.append({**later, "clicked": True, "searched_at": NOON + 30_000_000})
    own = {"user_id": 9, "clicked": True}
    rows += [
        {**own, "search_id": 30, "query": SECRET, "item_id": 2},
        {**own, "search_id": 31, "query": "jaguar", "item_id": 8, "clicked": False},
        {**own, "search_id": 32, "query": "red car", "item_id": 5, "searched_at": NOON + 20_000_000},
    ]
    return rows


def build_world(folder, write_logs):
    """Write logs, mined samples (k = 3) and two indexes, `old` and `new`."""
    items = [
        {"item_id": item, "ocr_cover": title, "photo_caption": text, "category": category}
        for item, (title, text, category) in ITEMS.items()
    ]
    feed = [
        {"user_id": user, "item_id": 2, "watched_at": NOON + 60_000_000, "liked": True}
        for user in range(1, 4)
    ]
    logs = write_logs(folder / "logs", items, searches(), feed)
    generated = folder / "generated.jsonl"
    generated.write_text(json.dumps(GENERATED) + "\n")
    config = EngineConfig(k=3, knowledge={"min_users": 1})
    mine(open_logs(logs), folder / "samples", config, relevance=None, similarity=None, generated=generated)
    for name, model in MODELS.items():
        build_index(f"faiss:{folder / name}", model, logs, IndexConfig())
    return folder


def patient(**config):
    """Settings with which a busy machine fails no test."""
    return ServingConfig(**{"max_wait_s": 30, "timeout_s": 60, **config})


def open_world(world, **config):
    """Return the service over both indexes."""
    indexes = {"baseline": (str(world / "old"), "old model"), "index": (str(world / "new"), "new model")}
    return service_module.open_service(indexes, patient(**config), world / "samples")
