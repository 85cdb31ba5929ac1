"""The JSONL files of a generation run: the cache of documents and the quarantine of refusals.

One JSON object per line, flushed per line: a kill loses at most the line being written, and a torn last line
is cut off before the next one is appended.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from crops.errors import CropsError
from crops.llm.prompt import Request

Row = dict[str, Any]
T = TypeVar("T")


def quarantine_path(cache: Path) -> Path:
    """Return the quarantine file that belongs to a cache."""
    return cache.with_name(f"{cache.stem}.quarantine.jsonl")


def request_key(model: str, prompt_version: str, request: Request) -> str:
    """Return the SHA-256 that names one document: model, prompt, query, exemplar and seed decide it."""
    exemplar = [request.exemplar.item_id, dict(request.exemplar.texts)]
    parts = [model, prompt_version, request.query, exemplar, request.seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file; a torn last line (no line end) is left out, a missing file is empty.

    Raises:
        CropsError: a whole line is not a JSON object.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CropsError(f"{path}: line {number} is no JSON ({error}); remove this line") from error
            if not isinstance(row, dict):
                raise CropsError(f"{path}: line {number} is no JSON object; remove this line")
            yield row


def admit(
    keyed: Mapping[str, T],
    done: Container[str],
    why_not: Callable[[T], str | None],
    quarantine: IO[bytes],
    counts: Counter[str],
    *,
    retry_refused: bool,
) -> dict[str, T]:
    """Return the requests to send; count the others, and file those that must not be sent.

    Args:
        keyed: requests by key.
        done: keys that are answered already.
        why_not: the reason why a request must not be sent, or None.
        quarantine: the open quarantine file.
        counts: gets `cached`, `quarantined_before` and `refused:<reason>`.
        retry_refused: send again what the model answered unusably before.
    """
    refused = {row.get("key"): row.get("final") for row in read_rows(Path(quarantine.name))}
    todo: dict[str, T] = {}
    for key, request in keyed.items():
        if key in done:
            counts["cached"] += 1
        elif reason := why_not(request):
            counts[f"refused:{reason}"] += 1
            if key not in refused:
                append_row(quarantine, {"key": key, "reason": reason, "final": False})
        elif refused.get(key) and not retry_refused:
            counts["quarantined_before"] += 1
        else:
            todo[key] = request
    return todo


def open_append(path: Path) -> IO[bytes]:
    """Open a JSONL file for appending, its torn last line cut off; it is locked until it is closed.

    Raises:
        CropsError: another process is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise CropsError(f"{path}: another run is writing this file; wait for it or name another") from error
    file.seek(0)
    whole = sum(len(line) for line in file if line.endswith(b"\n"))
    file.truncate(whole)
    return file


def append_row(file: IO[bytes], row: Row) -> None:
    """Append one row and hand it to the operating system."""
    # A lone surrogate cannot be UTF-8: written as \udXXX it is still JSON.
    file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
    file.flush()
