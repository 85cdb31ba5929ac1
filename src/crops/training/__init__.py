"""Learning from training groups: data, batches, and the trainer."""

from crops.training.buckets import SplitSamples, is_split, split
from crops.training.fit import train
from crops.training.runs import (
    EVALUATIONS,
    LOG,
    TrainingLog,
    is_first_process,
    read_evaluations,
    read_log,
    settles,
)
from crops.training.samples import Samples, TrainingData, from_judgements
from crops.training.trainer import Evaluation

__all__ = [
    "EVALUATIONS",
    "LOG",
    "Evaluation",
    "Samples",
    "SplitSamples",
    "TrainingData",
    "TrainingLog",
    "from_judgements",
    "is_first_process",
    "is_split",
    "read_evaluations",
    "read_log",
    "settles",
    "split",
    "train",
]
