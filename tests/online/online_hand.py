"""A small platform with cheap routes for the tests of experiments."""

import hashlib

import numpy as np

from crops.config import PlatformConfig
from crops.platform import build_platform
from crops.retrieval import BM25Retriever
from crops.simulation import Start

SESSIONS = 120


class Pick:
    """A route that brings items by a hash of the text: another `salt`, other items."""

    def __init__(self, salt, items):
        self.salt, self.items = salt, items

    def search(self, queries, k):
        seeds = [int(hashlib.sha256(f"{self.salt}{q}".encode()).hexdigest()[:8], 16) for q in queries]
        ids = [np.random.default_rng(seed).choice(self.items, k, replace=False) + 1 for seed in seeds]
        return np.array(ids, dtype=np.int64).reshape(len(queries), k), np.zeros((len(queries), k), np.float32)


def make_start(seed=0, first_day=0):
    """A tiny platform before its first day, with word search and one other route."""
    platform = build_platform(PlatformConfig(size="tiny"), seed)
    texts = platform.world.corpus.document_texts()
    routes = {"bm25": BM25Retriever(np.arange(1, len(texts) + 1), texts), "dense": Pick("old", len(texts))}
    return Start(platform, routes, first_day, SESSIONS)
