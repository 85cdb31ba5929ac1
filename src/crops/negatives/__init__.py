"""The published baselines, one file each: its sampler, its settings, what is kept of the paper, what differs.

Every module here with a `METHOD` is a baseline of that name. What they share (what a method is, what a miner
may look at, candidate lists) is in `base`; the trainer that they all go through is `crops.training.methods`.
To add one elsewhere: `METHODS["mine"] = Method(...)` (see examples/extending/baseline.py).
"""

from __future__ import annotations

import importlib
import pkgutil

from crops.negatives.base import Method

_MODULES = {
    info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)
}
BASELINES: dict[str, Method] = {
    name: module.METHOD for name, module in _MODULES.items() if hasattr(module, "METHOD")
}
__all__ = ["BASELINES"]
