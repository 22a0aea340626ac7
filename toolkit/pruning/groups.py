"""Dependency groups as data: the channels that may be removed, and where each of them lies in which tensor.

A unit is the smallest thing that can be removed: one channel with everything it is coupled to, or one group of a grouped
convolution. Units that lie in the same tensors form a group, among whose units the criterion chooses. Where to find a
unit is an index map, so ranking, costing, masking and cutting are all indexing.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from toolkit.errors import UsageError, unknown_name
from toolkit.pruning.attention import layout_of
from toolkit.pruning.coupling import couple
from toolkit.pruning.labels import Labels
from toolkit.pruning.surgery import tensor_owners

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Member:
    """Where a group's units lie in one dimension of a tensor: `units[i]` is the unit of index i, -1 for another's.

    `consumes` tells a weight's input dimension from dimensions that make or scale the channel.
    """

    tensor: str
    dim: int
    units: Tensor
    consumes: bool


@dataclass(frozen=True, eq=False)
class Group:
    """Units to choose among. `channels_per_unit` is their width in the layer that makes them; `name` is that layer."""

    name: str
    num_units: int
    channels_per_unit: int
    members: tuple[Member, ...]

    @property
    def num_channels(self) -> int:
        """The width of the layer the group is named after, as far as the group reaches."""
        return self.num_units * self.channels_per_unit

    @property
    def places(self) -> tuple[tuple[str, int, int], ...]:
        """Tensor, dimension and width of a unit at each member: no two groups of a net share them, and pruning keeps them."""
        return tuple((member.tensor, member.dim, int((member.units == 0).sum())) for member in self.members)


def find_groups(net: nn.Module, example_NCHW: Tensor, *, protect: Sequence[str] = ()) -> list[Group]:
    """The dependency groups of `net`, in the order its layers stand in; what `net` returns is never in one.

    `example_NCHW` is one normalised image at the resolution in use. `protect` names modules whose outputs keep their
    width (with all they contain). Frozen parameters, modes and `no_grad` make no difference. Raises `UsageError` for a
    module that `net` does not have.
    """
    labels = couple(net, example_NCHW)
    _protect(net, labels, protect)
    groups = _with_heads(net, _groups(net, labels), protect)
    _tell_whole(net, groups, labels)
    return groups


def _with_heads(net: nn.Module, groups: Sequence[Group], protect: Sequence[str]) -> list[Group]:
    """`groups` with those of the attention heads, whose softmax no rule follows, in the order the layers stand in."""
    owners = tensor_owners(net)
    taken = {(member.tensor, member.dim) for group in groups for member in group.members}
    heads = []
    for path, module in net.named_modules():
        layout, prefix = layout_of(module), f"{path}." if path else ""
        if layout is None or any(f"{path}.".startswith(f"{name}.") for name in protect):
            continue
        num_heads = getattr(module, layout.count)
        of_head = [(f"{prefix}{name}", 0, 3, False) for name in layout.packed]
        of_head += [(f"{prefix}{name}", dim, 1, False) for name, dim in layout.by_head] + [
            (f"{prefix}{layout.merged}", 1, 1, True)
        ]
        places = [place for place in of_head if place[0] in owners]  # a bias may be missing
        if any(place[:2] in taken for place in places):
            continue
        members = [
            Member(name, dim, torch.arange(num_heads).repeat_interleave(size // parts // num_heads).repeat(parts), consumes)
            for name, dim, parts, consumes in places
            for size in [owners[name][0].shape[dim]]
        ]
        heads.append(
            Group(members[0].tensor.removesuffix(".weight"), num_heads, len(members[0].units) // num_heads, tuple(members))
        )
    order = {name: number for number, name in enumerate(owners)}
    return sorted([*groups, *heads], key=lambda group: order.get(group.name, order.get(f"{group.name}.weight", 0)))


def _tell_whole(net: nn.Module, groups: Sequence[Group], labels: Labels) -> None:
    """Name the layers whose output channels are in no group, with what can be said of why."""
    cut = {member.tensor for group in groups for member in group.members if not member.consumes}
    whole = [name.removesuffix(".weight") for name, p in net.named_parameters() if p.ndim > 1 and name not in cut]
    if whole:
        logger.info(
            "These layers keep all their channels: %s%s. They are part of the output, protected or tied, or their channels "
            "go where no rule follows them (%s).",
            ", ".join(whole[:6]),
            f" and {len(whole) - 6} more" if len(whole) > 6 else "",
            ", ".join(sorted(labels.stopped_at)) or "nowhere",
        )


def _protect(net: nn.Module, labels: Labels, protect: Sequence[str]) -> None:
    modules = dict(net.named_modules())
    for name in protect:
        if name not in modules or not name:
            raise unknown_name("module to protect", name, [m for m in modules if m])
        tensors = [(f"{name}.{key}", p) for key, p in modules[name].named_parameters() if p.ndim > 0]
        if not tensors:
            raise UsageError(f"protect: module '{name}' has no parameters, so it has no width of its own to keep.")
        for tensor_name, parameter in tensors:
            if (tensor_name, 0) in labels.offsets:
                labels.freeze(labels.numbers(tensor_name, 0, parameter.shape[0]))


def _groups(net: nn.Module, labels: Labels) -> list[Group]:
    """Read the classes of coupled labels off the graph of edges and sort them into groups by the tensors they lie in."""
    slots = list(labels.offsets)
    owners = tensor_owners(net)
    sizes = [owners[name][0].shape[dim] for name, dim in slots]
    edges = np.concatenate([np.zeros((1, 2), dtype=np.int64), *labels.edges])
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(labels.num_labels,) * 2)
    class_of_label = connected_components(graph, directed=False)[1]
    slot_of_label = np.concatenate([[-1], np.repeat(np.arange(len(slots)), sizes)])
    classes: dict[int, dict[int, list[int]]] = {}
    coupled = np.unique(edges)
    for label in coupled[class_of_label[coupled] != class_of_label[0]]:
        slot = int(slot_of_label[label])
        units = classes.setdefault(int(class_of_label[label]), {}).setdefault(slot, [])
        units.append(int(label) - labels.offsets[slots[slot]])
    by_signature: dict[tuple[tuple[int, int], ...], list[dict[int, list[int]]]] = {}
    for places in classes.values():
        signature = tuple((slot, len(indices)) for slot, indices in places.items())
        by_signature.setdefault(signature, []).append(places)
    consumers = {index for index, slot in enumerate(slots) if slot in labels.consumers}
    groups: list[tuple[int, Group]] = []
    for signature, units in by_signature.items():
        makers = [(slot, width) for slot, width in signature if slot not in consumers and owners[slots[slot][0]][0].ndim > 1]
        if makers and consumers & {slot for slot, _ in signature}:
            groups.append((min(makers)[0], _group(slots, sizes, min(makers), units, consumers)))
    return [group for _, group in sorted(groups, key=lambda pair: pair[0])]


def _group(
    slots: list[tuple[str, int]],
    sizes: list[int],
    maker: tuple[int, int],
    units: list[dict[int, list[int]]],
    consumers: set[int],
) -> Group:
    first, width = maker
    units = sorted(units, key=lambda places: places[first])
    members = []
    for slot in units[0]:
        unit_C = torch.full((sizes[slot],), -1, dtype=torch.int64)
        for number, places in enumerate(units):
            unit_C[places[slot]] = number
        name, dim = slots[slot]
        members.append(Member(tensor=name, dim=dim, units=unit_C, consumes=slot in consumers))
    return Group(slots[first][0].removesuffix(".weight"), len(units), width, tuple(members))
