"""One process of the tests with two, forked from the tests as torchrun would have started it."""

import os
import tempfile
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import reduce
from by_hand import stored
from torch.nn.parallel import DistributedDataParallel

from crops.encoders import load_encoder
from crops.training import train
from crops.training.groups import GroupSampler
from crops.training.model import GroupLoss, Share, Steps, objective
from crops.training.pool import tokenise_pool
from crops.training.runs import joined, processes


def gradients(data, config):
    """The loss of the first step, the gradient of each parameter, and the anchors of this process."""
    encoder = load_encoder(config).double()
    with tempfile.TemporaryDirectory() as folder:
        source = stored(data, Path(folder), objective(config).lowest_anchor, config.beta)
        pool = tokenise_pool(encoder, source, Path(folder))
        sampler = GroupSampler(source, config, 0)
        inputs = Steps(sampler, pool, 1, objective(config), Share(*processes()))[0]
    model = GroupLoss(encoder, pool, config).double()
    several = processes()[1] > 1
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if several else model
    loss = wrapped(**inputs)
    loss.backward()
    own = inputs["query_index"] >= 0
    return {
        "loss": reduce(loss.detach(), "mean"),
        "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "anchors": int((own & (inputs["grades"] >= objective(config).lowest_anchor)).sum()),
        "encoded": int(inputs["encoded_here"].sum()),
    }


def run(data, configs, out, environment):
    """Leave the gradients of the first step of each configuration, and train with the first."""
    os.environ |= environment
    for state in (AcceleratorState, PartialState):
        state._reset_state()
    torch.set_num_threads(1)
    joined()
    rank, _ = processes()
    torch.save([gradients(data, config) for config in configs], out / f"rank{rank}.pt")
    train(data, out / "model", configs[0], seed=0)
