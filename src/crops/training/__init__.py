"""Learning from training groups: data, batches, and the trainer."""

from crops.training.data import TrainingData, from_judgements, load_samples
from crops.training.fit import LOG, train
from crops.training.sample import Batch, GroupSampler

__all__ = ["LOG", "Batch", "GroupSampler", "TrainingData", "from_judgements", "load_samples", "train"]
