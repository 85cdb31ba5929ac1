"""Which platform wrote a world: results of different platforms must not be compared."""

from __future__ import annotations

import hashlib
import importlib.resources

NAME = "cpsqa-open-v1"
_READERS = {"observe.py", "realism.py", "version.py"}
"""Modules that read worlds and do not shape them."""


def platform_version() -> str:
    """Return the name and 12 hex digits of a hash over the topics and the code that shape worlds."""
    root = importlib.resources.files("crops.platform")
    files = [*root.iterdir(), *(root / "topics").iterdir()]
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda one: one.name):
        if file.name.endswith((".py", ".toml")) and file.name not in _READERS:
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return f"{NAME}+{digest.hexdigest()[:12]}"
