"""Sums over the processes of a data-parallel fit; with one process, nothing happens."""

import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def suffix() -> str:
    """What keeps the file names of several processes apart; empty with one."""
    return f"_rank{rank()}" if world_size() > 1 else ""


def is_first() -> bool:
    """Whether this process speaks for all: the launcher's variables tell before the processes have met."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


@torch.no_grad()
def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in one message."""
    if world_size() == 1 or not tensors:
        return
    flat = _flatten_dense_tensors(tensors)
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, _unflatten_dense_tensors(flat, tensors), strict=True):
        tensor.copy_(total)


@torch.no_grad()
def average_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    sum_in_place(tensors)
    for tensor in tensors:
        tensor.div_(world_size())


@torch.no_grad()
def copy_from_first(net: nn.Module) -> None:
    """Give every process the parameters and buffers of process 0."""
    if world_size() > 1:
        for tensor in _tensors(net):
            dist.broadcast(tensor, src=0)


def _tensors(net: nn.Module) -> Iterable[Tensor]:
    yield from (parameter.detach() for parameter in net.parameters())
    yield from net.buffers()
