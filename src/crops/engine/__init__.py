"""The data engine: accepted logs in, graded training samples out."""

from crops.engine.job import mine
from crops.engine.reformulation import reformulation_positives

__all__ = ["mine", "reformulation_positives"]
