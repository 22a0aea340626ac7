"""Sums over the processes of a data-parallel fit; with one process, nothing happens."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from toolkit.errors import ToolkitError

T = TypeVar("T")


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def place() -> dict[str, int]:
    """`rank` and `world_size`, by name."""
    return {"rank": rank(), "world_size": world_size()}


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
def copy_from_first(net: nn.Module, device: torch.device) -> None:
    """Give every process the parameters and buffers of process 0, by way of `device`."""
    if world_size() > 1:
        for tensor in _tensors(net):
            sent = tensor.to(device)
            dist.broadcast(sent, src=0)
            tensor.copy_(sent)


def largest(*numbers: int) -> list[int]:
    """Each number's largest value over the processes: asked among the hosts, so that no device has to be waited for."""
    if world_size() == 1:
        return list(numbers)
    found = torch.tensor(numbers)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=_hosts())
    return found.tolist()


@functools.cache
def _hosts() -> Any:
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def decided_by_first(decide: Callable[[], T]) -> T:
    """What `decide` returns, or raises of our own errors, in process 0; the others do not call it."""
    if world_size() == 1:
        return decide()
    said: list[object] = [None, None]
    if rank() == 0:
        try:
            said[0] = decide()
        except ToolkitError as error:
            said[1] = error
    dist.broadcast_object_list(said, src=0)
    if isinstance(said[1], ToolkitError):
        raise said[1]
    return said[0]  # pyright: ignore[reportReturnType]


def gathered(value: object) -> list[object]:
    """The `value` of every process, by rank."""
    values: list[object] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def _tensors(net: nn.Module) -> Iterable[Tensor]:
    yield from (parameter.detach() for parameter in net.parameters())
    yield from net.buffers()
