"""Retrieval: exact search over embeddings, and BM25."""

from crops.retrieval.bm25 import BM25Retriever
from crops.retrieval.catalogue import load_items
from crops.retrieval.exact import Encoder, ExactRetriever, FlatIndex, encode_texts

__all__ = ["BM25Retriever", "Encoder", "ExactRetriever", "FlatIndex", "encode_texts", "load_items"]
