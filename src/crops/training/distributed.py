"""What several processes exchange in a step; without them, nothing happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

ON_CPU = not torch.accelerator.is_available()


def join_processes() -> None:
    """Meet the other processes, if torchrun started this one."""
    PartialState(cpu=ON_CPU)


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let the first process do the block before the others: what it has written, they read."""
    with PartialState(cpu=ON_CPU).main_process_first():
        yield


def wait_for_all() -> None:
    """Return once every process has come here."""
    PartialState(cpu=ON_CPU).wait_for_everyone()


def processes() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first_process() -> bool:
    """Return whether this process writes the outputs."""
    return processes()[0] == 0


class _Gather(torch.autograd.Function):
    """Rows of all processes in one matrix; the gradient of a row is summed over the processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, here: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(here)
        whole = rows.new_zeros(len(here), rows.shape[1])
        whole[here] = rows
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (here,) = ctx.saved_tensors
        summed = upstream.contiguous().clone()
        dist.all_reduce(summed)
        return summed[here], None


def gather(rows: Tensor, here: Tensor) -> Tensor:
    """Return the rows of all processes, [U, d].

    Args:
        rows: [number of true in `here`, d] this process's rows.
        here: [U] which rows of the result they are; every row is some process's.
    """
    if processes()[1] == 1:
        return rows
    whole: Tensor = _Gather.apply(rows, here)  # type: ignore[no-untyped-call]
    return whole


def average(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes."""
    world = processes()[1]
    if world > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world
    return value


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; one that no process has stays absent."""
    world = processes()[1]
    if world == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    present = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=trained[0].device)
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    for parameter in (p for p, exists in zip(trained, present.tolist(), strict=True) if exists):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= world
