"""The published baselines, one file each: its sampler, its settings, what is kept of the paper, what differs.

Every module here with a `METHOD` is a baseline of that name. What they share (candidate lists, what a miner
may look at, the index of a state of the encoder) is in `base`, what a method is in `method`; the trainer that
they all go through is `crops.training.methods`. To add one elsewhere: `METHODS["mine"] = Method(...)` (see
examples/extending/baseline.py).
"""

from __future__ import annotations

import importlib
import pkgutil

from crops.negatives.method import Method

_MODULES = {
    info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)
}

BASELINES: dict[str, Method] = {
    name: module.METHOD for name, module in _MODULES.items() if hasattr(module, "METHOD")
}

__all__ = ["BASELINES"]
