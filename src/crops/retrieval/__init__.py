"""Retrieval: vector indexes behind one URI, exact search, BM25 and their fusion."""

from crops.retrieval.bm25 import BM25Retriever
from crops.retrieval.catalogue import Filter, load_item_rows, load_items, load_queries, own_ids
from crops.retrieval.dense import DenseRetriever, ExactRetriever, FlatIndex, FusedRetriever, fuse
from crops.retrieval.encoding import Encoder, Model, encode_texts, load_model, write_vectors
from crops.retrieval.index import IndexManifest, VectorIndex, check_model
from crops.retrieval.uri import build_index, current_version, open_index, open_retriever, update_index

__all__ = [
    "BM25Retriever",
    "DenseRetriever",
    "Encoder",
    "ExactRetriever",
    "Filter",
    "FlatIndex",
    "FusedRetriever",
    "IndexManifest",
    "Model",
    "VectorIndex",
    "build_index",
    "check_model",
    "current_version",
    "encode_texts",
    "fuse",
    "load_item_rows",
    "load_items",
    "load_model",
    "load_queries",
    "open_index",
    "open_retriever",
    "own_ids",
    "update_index",
    "write_vectors",
]
