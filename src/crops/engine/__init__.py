"""The data engine: accepted logs in, graded training samples out."""

from crops.engine.mine import mine
from crops.engine.reformulation import reformulation_positives
from crops.engine.scoring import CachedScorer

__all__ = ["CachedScorer", "mine", "reformulation_positives"]
