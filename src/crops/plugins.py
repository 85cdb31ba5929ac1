"""What a user brings in a file of their own: a loss, an importer, a baseline."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from crops.errors import CropsError


def load_object(reference: str) -> Any:  # noqa: ANN401 (whatever has that name)
    """Return what "module:name" or "file.py:name" names.

    Raises:
        CropsError: it cannot be loaded.
    """
    where, _, name = reference.rpartition(":")
    try:
        if not where.endswith(".py"):
            return getattr(importlib.import_module(where), name)
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)
    except Exception as error:  # whatever a file of the user's raises
        raise CropsError(f"{reference} cannot be loaded: {type(error).__name__}: {error}") from error
