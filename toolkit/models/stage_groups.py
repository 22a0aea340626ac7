"""Stages: a network's parameters in groups from the input to the output, for gradual unfreezing and learning rates by depth.

The groups are read from the structure. Containers that hold more than half of the layers are opened until the network lies
in a row of parts; a new group starts where a part lowers the resolution (a stride), as published architectures are drawn.
Where that gives too few groups, as in transformers, the row is divided evenly. Parts are taken in definition order, which
is the order of execution in every torchvision and timm family.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from toolkit.models.heads import find_head

NUM_EVEN = 4
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)


@dataclass(frozen=True)
class Part:
    """A module or parameter in the row: its name, how many layers with parameters it holds, whether it lowers resolution."""

    name: str
    num_layers: int
    downsamples: bool


def stage_names(net: nn.Module) -> list[list[str]]:
    """The names of modules (or single parameters) in each stage, input first; the last group is the head alone.

    A parameter belongs to the group that lists its own name or a module that holds it; every parameter belongs to exactly
    one. Raises `UsageError` where there is no head.
    """
    head = find_head(net)
    parts = list(_opened(net, "", _count(net), head))
    groups = _split_at_strides(parts)
    if len(groups) < NUM_EVEN - 1:
        groups = _split_evenly(parts)
    names = [[part.name for part in group if part.num_layers] for group in groups]
    return [*(_compressed(net, group, head) for group in names if group), [head]]


def _opened(net: nn.Module, prefix: str, total: int, head: str) -> Iterator[Part]:
    """The row of parts under the module `prefix`: containers of more than half the layers, or of the head, are opened."""
    module = net.get_submodule(prefix)
    lead = f"{prefix}." if prefix else ""
    for name, _ in module.named_parameters(recurse=False):
        yield Part(lead + name, 1, False)
    for child, submodule in module.named_children():
        name = lead + child
        if name == head:
            continue
        num_layers = _count(submodule)
        opens = head.startswith(f"{name}.") or 2 * num_layers > total
        if opens and any(True for _ in submodule.children()):
            yield from _opened(net, name, total, head)
        else:
            yield Part(name, num_layers, any(_strides(m) for m in submodule.modules()))


def _count(module: nn.Module) -> int:
    return sum(1 for m in module.modules() if any(True for _ in m.parameters(recurse=False)))


def _strides(module: nn.Module) -> bool:
    if not isinstance(module, (nn.Conv2d, *POOLS)):
        return False
    stride = module.stride
    return max(stride) > 1 if isinstance(stride, tuple) else stride > 1


def _split_at_strides(parts: list[Part]) -> list[list[Part]]:
    groups: list[list[Part]] = [[]]
    for part in parts:
        if part.downsamples and sum(p.num_layers for p in groups[-1]) > 0:
            groups.append([])
        groups[-1].append(part)
    return _without_small(groups)


def _without_small(groups: list[list[Part]]) -> list[list[Part]]:
    """Join groups without a layer, such as trailing pools, to the one before."""
    kept: list[list[Part]] = []
    for group in groups:
        if kept and not sum(part.num_layers for part in group):
            kept[-1].extend(group)
        else:
            kept.append(group)
    return kept


def _split_evenly(parts: list[Part]) -> list[list[Part]]:
    """At most `NUM_EVEN` runs of parts with about equally many layers each."""
    total = sum(part.num_layers for part in parts)
    if not total:
        return []
    groups: list[list[Part]] = [[] for _ in range(NUM_EVEN)]
    seen = 0
    for part in parts:
        middle = seen + part.num_layers / 2
        groups[min(NUM_EVEN - 1, int(NUM_EVEN * middle / total))].append(part)
        seen += part.num_layers
    return [group for group in groups if group]


def _compressed(net: nn.Module, group: list[str], head: str) -> list[str]:
    """The group with all children of one module replaced by that module."""
    parents = list(dict.fromkeys(name.rpartition(".")[0] for name in group))
    for parent in sorted(filter(None, parents), key=len, reverse=True):
        holds = {name for name, _ in net.get_submodule(parent).named_parameters(prefix=parent)}
        inside = [name for name in group if name.startswith(f"{parent}.")]
        covered = {p for p in holds if any(p == name or p.startswith(f"{name}.") for name in inside)}
        if covered == holds and not head.startswith(f"{parent}."):
            first = group.index(inside[0])
            group = [name for name in group if name not in inside]
            group.insert(first, parent)
    return group
