"""The published baselines, a row of `BASELINES` each, and in `base` what they share.

The trainer that they all go through is `crops.training.methods`. To add one elsewhere: `METHODS["mine"] =
Method(...)` (see examples/extending/baseline.py).
"""

from crops.negatives.baselines import BASELINES

__all__ = ["BASELINES"]
