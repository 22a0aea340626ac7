"""The cost of any choice of widths, without building the net: a sum over layers of a function of the weight's shape.

MACs and parameters are products of widths. Milliseconds are read from a surface over the widths of each layer, which another
package measures (see `latency`).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from toolkit.pruning.cost import profile_macs
from toolkit.pruning.groups import Group
from toolkit.pruning.surgery import tensor_owners

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Term:
    """What one tensor costs: `of` its shape after the cut; `cuts[dim]` lists the groups in a dimension, with unit widths."""

    shape: Shape
    cuts: Mapping[int, Sequence[tuple[int, int]]]
    of: Callable[[Shape], float]

    def cost(self, removed: Sequence[int]) -> float:
        shape = list(self.shape)
        for dim, entries in self.cuts.items():
            for group, width in entries:
                shape[dim] -= removed[group] * width
        return self.of(tuple(shape))


class Costs:
    """The cost of keeping `counts[g]` units of group g, and `total`, the cost of the net as it is."""

    def __init__(
        self, net: nn.Module, groups: Sequence[Group], of_tensor: Mapping[str, Callable[[Shape], float]], *, fixed: float = 0.0
    ) -> None:
        """`of_tensor` gives the cost of a parameter by its shape; `fixed` is what no width changes."""
        owners = tensor_owners(net)
        cuts: dict[str, dict[int, list[tuple[int, int]]]] = {}
        for number, group in enumerate(groups):
            for member in group.members:
                width = int((member.units == 0).sum())
                cuts.setdefault(member.tensor, {}).setdefault(member.dim, []).append((number, width))
        self._num_units = [group.num_units for group in groups]
        self._terms = [
            _Term(tuple(owners[name][0].shape), cuts.get(name, {}), functools.cache(of)) for name, of in of_tensor.items()
        ]
        self._touched: list[list[_Term]] = [[] for _ in groups]
        for term in self._terms:
            for number in {group for entries in term.cuts.values() for group, _ in entries}:
                self._touched[number].append(term)
        self._fixed = fixed
        self.total = self([group.num_units for group in groups])

    def __call__(self, counts: Sequence[int]) -> float:
        """The cost when group g keeps `counts[g]` units."""
        removed = self._removed(counts)
        return self._fixed + sum(term.cost(removed) for term in self._terms)

    def change(self, counts: Sequence[int], group: int, count: int) -> float:
        """What the cost rises by when the group numbered `group` keeps `count` units instead of `counts[group]`."""
        before = self._removed(counts)
        after = list(before)
        after[group] = self._num_units[group] - count
        return sum(term.cost(after) - term.cost(before) for term in self._touched[group])

    def _removed(self, counts: Sequence[int]) -> list[int]:
        return [have - keep for have, keep in zip(self._num_units, counts, strict=True)]


class Blend:
    """The mean of costs, each as a share of what the whole net costs (given beside it); `total` is that of the net as it is."""

    def __init__(self, *parts: tuple[Costs, float]) -> None:
        self._parts = parts
        self.total = sum(costs.total / whole for costs, whole in parts) / len(parts)

    def __call__(self, counts: Sequence[int]) -> float:
        """The cost when group g keeps `counts[g]` units."""
        return sum(costs(counts) / whole for costs, whole in self._parts) / len(self._parts)

    def change(self, counts: Sequence[int], group: int, count: int) -> float:
        """What the cost rises by when the group numbered `group` keeps `count` units instead of `counts[group]`."""
        return sum(costs.change(counts, group, count) / whole for costs, whole in self._parts) / len(self._parts)


CostsOf = Callable[[nn.Module, Sequence[Group], Tensor], Costs | Blend]


def mac_costs(net: nn.Module, groups: Sequence[Group], example_NCHW: Tensor) -> Costs:
    """The MACs of one image of `example_NCHW`; a layer's are proportional to the size of its weight."""
    profile = profile_macs(net, example_NCHW)
    owners = tensor_owners(net)
    of_tensor = {
        name: functools.partial(_proportional, macs / owners[name][0].numel()) for name, macs in profile.by_tensor.items()
    }
    return Costs(net, groups, of_tensor, fixed=profile.other)


def parameter_costs(net: nn.Module, groups: Sequence[Group], example_NCHW: Tensor) -> Costs:
    """The number of parameter values, tied ones once."""
    return Costs(net, groups, {name: functools.partial(_proportional, 1.0) for name, _ in net.named_parameters()})


def _proportional(each: float, shape: Shape) -> float:
    return each * math.prod(shape)
