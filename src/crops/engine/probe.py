"""What runs on a worker to see what it has: sent as it is, so that a worker without crops can run it.

Only what every Python has is used here, and pyarrow, without which Spark itself cannot run Python on batches.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pickle
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from crops.errors import DISTRIBUTION

PACKAGES = {"crops": DISTRIBUTION, "pyarrow": "pyarrow"}
"""Distributions by name."""


def seen(token: str, by: str = "driver") -> str:
    """Return the name of the file that shows a folder to be shared."""
    return f".seen-{token}-{by}"


def versions() -> dict[str, str | None]:
    """Return the versions on this machine, None for what is not installed, and a hash of crops' code."""
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    spec, digest = importlib.util.find_spec("crops"), hashlib.sha256()
    root = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else ""
    for folder, _, names in sorted(os.walk(root)):
        for name in sorted(name for name in names if name.endswith(".py")):
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(f"{os.path.relpath(folder, root)}/{name}".encode() + file.read())
    return {**found, "the code of crops": digest.hexdigest()[:12]}


def probe(batches: Iterable[pa.RecordBatch], expected: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """Yield one row of JSON: which executor this is, and the first thing in which it differs, if any."""
    for _ in batches:
        pass
    nonce = uuid.uuid4().hex
    fault = (
        _version_fault(expected["versions"])
        or _folder_fault(expected["token"], expected["folders"])
        or _file_fault(expected["sizes"])
        or _model_fault(expected["identities"], expected["models"])
        or _write_seen(expected["token"], expected["folders"], nonce)
    )
    time.sleep(0.1)  # so that one executor does not take all tasks
    # Python's parent is its executor's daemon; containers of one host name differ in their mounts.
    mounts = os.readlink("/proc/self/ns/mnt") if os.path.exists("/proc/self/ns/mnt") else ""
    executor = f"{socket.gethostname()} {os.getppid()} {mounts}"
    row = {"executor": executor, "worker": socket.gethostname(), "fault": fault, "nonce": nonce}
    yield pa.RecordBatch.from_pydict({"found": [json.dumps(row)]})


def _version_fault(wanted: dict[str, str | None]) -> str | None:
    for name, version in versions().items():
        if version is None:
            return (
                f"has no {name} in its Python ({sys.executable}); install {PACKAGES[name]} {wanted[name]} "
                "there, or set PYSPARK_PYTHON to a Python that has it"
            )
        if version != wanted[name]:
            return f"has {name} {version}, and the driver {wanted[name]}; install the same on all machines"
    return None


def _folder_fault(token: str, folders: list[str]) -> str | None:
    for folder in folders:
        if not os.path.exists(os.path.join(folder, seen(token))):
            return f"does not see what the driver wrote into {folder}; name a folder that all machines share"
    return None


def _file_fault(sizes: dict[str, int]) -> str | None:
    for path, size in sizes.items():
        if not os.path.exists(path):
            return f"does not see {path}; put the logs where all machines see them"
        if os.path.getsize(path) != size:
            return f"sees another {path} than the driver; put the logs where all machines see them"
    return None


def _model_fault(identities: bytes, wanted: list[str]) -> str | None:
    try:
        models = [identity() for identity in pickle.loads(identities)]
    except Exception as error:  # whatever a missing model comes up with
        return f"has no model of theta at the driver's path ({error}); put it there"
    if models != wanted:
        return "has another model of theta than the driver at the same path; put the same one there"
    return None


def _write_seen(token: str, folders: list[str], nonce: str) -> str | None:
    for folder in folders:
        try:
            with open(os.path.join(folder, seen(token, nonce)), "x"):
                pass
        except OSError as error:
            return f"cannot write into {folder} ({error.strerror}); let Spark's user write there"
    return None
