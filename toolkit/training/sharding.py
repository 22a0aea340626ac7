"""A net in shards: each process keeps a part of every parameter and is given a whole block while it computes (FSDP2).

A net too large for one device together with its gradients and moments trains so. The learner sees the same modules and names;
what must be whole (a checkpoint, the best weights at the end) is gathered, and a gathering is a message in which every process
takes part at the same step. Buffers are small and stay whole.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from toolkit.errors import UsageError
from toolkit.training import processes

LEAST_BLOCK = 100_000
"""Parameters below which a module is not worth a message of its own and is gathered with the net's other small ones."""
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def shard(net: nn.Module, head: nn.Module, *, device_type: str) -> None:
    """Keep this process's part of `net`'s parameters alone, on `device_type`; blocks and the `head` are gathered one by one.

    The processes must have met. Gradients arrive as sums over the processes. Raises `UsageError` for a scalar parameter and for
    one that two modules share.
    """
    names = [name for name, _ in net.named_parameters(remove_duplicate=False)]
    once = dict(net.named_parameters())
    unfit = [name for name in names if name not in once or once[name].dim() == 0]
    if unfit:
        raise UsageError(
            f"strategy=fsdp cannot split '{unfit[0]}', which is a scalar or belongs to two modules; use trainer=ddp"
        )
    mesh = init_device_mesh(device_type, (processes.world_size(),))
    for part in (*blocks(net, head), head, net):
        whole: Any = fully_shard(part, mesh=mesh)
        whole.set_gradient_divide_factor(1.0)
        whole.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def is_sharded(net: nn.Module) -> bool:
    """Whether the processes hold parts of `net`."""
    return any(isinstance(parameter, DTensor) for parameter in net.parameters())


def blocks(net: nn.Module, head: nn.Module) -> Iterator[nn.Module]:
    """The modules of `net` that are gathered on their own: large ones in containers, without what holds the `head`."""
    for child in net.children():
        if child is head or _num_parameters(child) < LEAST_BLOCK:
            continue
        holds_head = any(module is head for module in child.modules())
        in_containers = sum(_num_parameters(inner) for inner in child.children() if isinstance(inner, CONTAINERS))
        repeats = not isinstance(net, CONTAINERS) and 2 * in_containers > _num_parameters(child)
        if isinstance(child, CONTAINERS) or holds_head or repeats:
            yield from blocks(child, head)
        else:
            yield child


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's parts, as plain tensors that share their memory; plain tensors as they are."""
    with torch.no_grad():
        return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def gathered(state: Any) -> Any:
    """`state` (nested plain values and tensors) with every sharded tensor whole, on the CPU; all processes call it together."""

    def whole(part: DTensor) -> Tensor:
        with torch.no_grad():
            return part.full_tensor().cpu()

    return tree_map_only(DTensor, whole, state)


def parted(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process holds `whole`, placed as `like` is; as it is where `like` is plain."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    placed = whole.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def parted_weights(weights: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Whole weights, by name, as the sharded `net` holds its own."""
    live = net.state_dict()
    return {name: parted(tensor, live[name]) for name, tensor in weights.items()}


def parted_moments(state: Mapping[str, Any], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state dict with whole moments, as `optimiser` holds its own."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]

    def fitted(moments: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        return {name: parted(value, like) if value.shape == like.shape else value for name, value in moments.items()}

    moments = {index: fitted(values, parameters[index]) for index, values in state["state"].items()}
    return {**state, "state": moments}
