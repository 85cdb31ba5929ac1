"""An LLM in this process: llama.cpp's own HTTP server (the `xllamacpp` package) over a GGUF file."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from crops.errors import CropsError, MissingExtraError

MODEL_NAME = "local"
"""The name under which the embedded server knows its model."""
CONTEXT_TOKENS = 2048
"""Per slot: the prompt takes about 550 tokens, an answer at most 260."""


@contextlib.contextmanager
def embedded_server(gguf: Path, sha256: str, *, slots: int = 4, threads: int = 1) -> Iterator[str]:
    """Start the server on a free port of 127.0.0.1 and yield its `base_url`.

    Args:
        gguf: the model file.
        sha256: the hash that its content must have.
        slots: answers written at the same time; they share each pass over the weights.
        threads: threads of the model; more than the free cores are much slower than one.

    Raises:
        MissingExtraError: `xllamacpp` is not installed.
        CropsError: the file is missing, is another one than expected, or does not load.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError("xllamacpp", "llm") from error
    check_model(gguf, sha256)
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.model_alias = {MODEL_NAME}
    params.n_parallel = slots
    params.n_ctx = slots * CONTEXT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.offline = True
    params.ui = False
    params.verbosity = 0
    # Each slot keeps the shared beginning of the prompts anyway; the server-wide cache would grow to 8 GB.
    params.cache_ram_mib = 0
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise CropsError(f"{gguf}: llama.cpp cannot load this model: {error}") from error
    try:
        yield f"{server.listening_address}/v1"
    finally:
        # The server stops when its last reference goes.
        del server


def check_model(gguf: Path, sha256: str) -> None:
    """Raise CropsError unless the file exists and has this SHA-256."""
    if not gguf.is_file():
        raise CropsError(f"{gguf}: no such model file; give the path of a GGUF file")
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise CropsError(
            f"{gguf}: SHA-256 is {found}, expected {sha256}; download the model again or correct the hash"
        )
