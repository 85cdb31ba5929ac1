"""A process with a disk of its own, forked from the tests as torchrun would have started it."""

import os
import pickle

import torch
from accelerate.state import AcceleratorState, PartialState

from crops.errors import CropsError
from crops.training import SplitSamples, train
from crops.training.trainer import Journal

STOPPED_AFTER = 3


def run(data, config, disk, environment):
    """Train, stop after step 3 and resume; leave what was learned, and the buckets that were fetched."""
    os.environ |= environment
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    torch.set_num_threads(1)
    disk.mkdir()
    fetched, fetch, write = set(), SplitSamples.fetch, Journal.on_step_end

    def noted(self, number, *arguments):
        fetched.add(number)
        return fetch(self, number, *arguments)

    def stopping(self, args, state, control, **kwargs):
        write(self, args, state, control, **kwargs)
        if state.global_step == STOPPED_AFTER:
            raise CropsError("stopped")

    SplitSamples.fetch, Journal.on_step_end = noted, stopping
    try:
        train(data, disk / "model", config, seed=0)
    except CropsError as error:
        if str(error) != "stopped":
            raise
    Journal.on_step_end = write
    learned = train(data, disk / "model", config, seed=0)
    (disk / "learned").write_bytes(pickle.dumps(learned))
    (disk / "fetched").write_bytes(pickle.dumps(fetched))
