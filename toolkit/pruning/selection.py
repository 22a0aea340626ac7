"""How many units each group keeps: the most important ones, in widths a processor likes, just under the budget.

Speed follows from widths, not from MACs: runtimes compute in blocks of 8 or 16 channels, so 97 channels cost what 104 do
and may run twice as slow as 96. Widths are therefore rounded *up* to the grid, which costs nothing, and what the budget
then still allows goes to the groups where it is worth most. Scores are compared across groups after division by each
group's mean, because criteria have another scale in every layer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.errors import UsageError
from toolkit.pruning.cost import MacProfile
from toolkit.pruning.groups import Group
from toolkit.pruning.surgery import tensor_owners

SMALLEST_SHARE = 0.1  # of a group's units always stay: a ranking across groups would otherwise close a layer altogether


@dataclass(frozen=True)
class Target:
    """How far to prune: `macs` is the share of the MACs to keep, or `ratio` the share of each group's channels to remove."""

    macs: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.macs is None) == (self.ratio is None):
            raise UsageError(
                "Give exactly one pruning target: target.macs=0.5 (share of the MACs kept), or target.ratio=0.3 "
                "target.macs=null (share of each group's channels removed)."
            )
        for name, value in (("macs", self.macs), ("ratio", self.ratio)):
            if value is not None and not 0 < value < 1:
                raise UsageError(f"target.{name} is {value}; it must lie strictly between 0 and 1.")


class NothingToPrune(UsageError):
    """The grid leaves nothing to remove: a mistake when it is so from the start, no matter in one of several steps."""


@dataclass(frozen=True)
class Whole:
    """The net before the first step, of which targets and smallest widths are shares: MACs, units by a group's places."""

    macs: float
    num_units: Mapping[tuple[tuple[str, int, int], ...], int]

    @classmethod
    def of(cls, groups: Sequence[Group], macs: float) -> "Whole":
        """The net as it is now."""
        return cls(macs, {group.places: group.num_units for group in groups})

    def smallest(self, group: Group) -> int:
        """The units that `group` keeps in any case."""
        return max(1, math.ceil(SMALLEST_SHARE * self.units(group)))

    def units(self, group: Group) -> int:
        """The units that `group` had."""
        return self.num_units.get(group.places, group.num_units)


class Costs:
    """The MACs of any choice of widths, by arithmetic: a layer's MACs are proportional to the size of its weight."""

    def __init__(self, net: nn.Module, groups: Sequence[Group], profile: MacProfile) -> None:
        owners = tensor_owners(net)
        shapes = {name: owners[name][0].shape for name in profile.by_tensor}
        self.total = profile.total
        self._fixed = profile.other
        self._layers: list[tuple[float, list[tuple[int, list[tuple[int, int]]]]]] = []
        cuts: dict[str, dict[int, list[tuple[int, int]]]] = {}
        for number, group in enumerate(groups):
            for member in group.members:
                width = int((member.units == 0).sum())
                cuts.setdefault(member.tensor, {}).setdefault(member.dim, []).append((number, width))
        for name, macs in profile.by_tensor.items():
            dims = [(shapes[name][dim], entries) for dim, entries in cuts.get(name, {}).items()]
            if dims:
                self._layers.append((macs / math.prod(size for size, _ in dims), dims))
            else:
                self._fixed += macs
        self._num_units = [group.num_units for group in groups]

    def macs(self, counts: Sequence[int]) -> float:
        """The MACs of one image when group g keeps `counts[g]` units."""
        removed = [have - keep for have, keep in zip(self._num_units, counts, strict=True)]
        total = self._fixed
        for each, dims in self._layers:
            total += each * math.prod(size - sum(removed[g] * width for g, width in entries) for size, entries in dims)
        return total


def choose(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    costs: Costs,
    *,
    target: Target,
    round_to: int,
    whole: Whole | None = None,
) -> list[Tensor]:
    """One boolean vector a group: the units that stay. `scores[g]` rates the units of group g, higher is more important.

    The target is a share of `whole`, by default of the net as it is. Raises `UsageError` when the target cannot be met, and
    its subclass `NothingToPrune` when it is met already or the grid leaves nothing to remove.
    """
    whole = whole or Whole.of(groups, costs.total)
    steps = [round_to // math.gcd(round_to, group.channels_per_unit) for group in groups]
    if target.ratio is not None:
        wanted = [math.ceil((1 - target.ratio) * whole.units(group) - 1e-9) for group in groups]
        counts = [_on_grid(n, group, step, whole) for n, group, step in zip(wanted, groups, steps, strict=True)]
    else:
        assert target.macs is not None
        counts = _under_budget(groups, scores, costs, budget=target.macs * whole.macs, steps=steps, whole=whole)
    if all(count == group.num_units for count, group in zip(counts, groups, strict=True)):
        widest = max((group.num_channels for group in groups), default=1)
        raise NothingToPrune(
            f"Nothing would be pruned: on a grid of {round_to} channels no layer (the widest has {widest}) loses any at this "
            "target. Choose a stronger target or a smaller round_to."
        )
    keeps = []
    for count, score in zip(counts, scores, strict=True):
        keep = torch.zeros(len(score), dtype=torch.bool)
        keep[torch.argsort(score, descending=True, stable=True)[:count]] = True
        keeps.append(keep)
    return keeps


def _on_grid(count: int, group: Group, step: int, whole: Whole) -> int:
    return min(math.ceil(max(count, whole.smallest(group)) / step) * step, group.num_units)


def _under_budget(
    groups: Sequence[Group], scores: Sequence[Tensor], costs: Costs, *, budget: float, steps: Sequence[int], whole: Whole
) -> list[int]:
    """The widths of the lowest threshold that keeps the budget, then grown greedily while it lasts."""
    relative = [(score / score.mean().clamp(min=1e-30)).sort(descending=True).values for score in scores]

    def at(threshold: float) -> list[int]:
        return [
            _on_grid(int((values > threshold).sum()), group, step, whole)
            for values, group, step in zip(relative, groups, steps, strict=True)
        ]

    levels = torch.cat([torch.tensor([-1.0]), *relative]).unique().tolist()
    low, high = 0, len(levels) - 1
    if costs.macs(at(levels[high])) > budget:
        least = costs.macs(at(levels[high])) / whole.macs
        raise UsageError(
            f"target.macs={budget / whole.macs:.3g} cannot be met: pruning can bring this model to {least:.1%} of its MACs at "
            "best. Choose a larger target, or protect fewer layers."
        )
    while low < high:
        middle = (low + high) // 2
        if costs.macs(at(levels[middle])) > budget:
            low = middle + 1
        else:
            high = middle
    return _grow(at(levels[low]), relative, groups, costs, budget=budget, steps=steps)


def _grow(
    counts: list[int], relative: Sequence[Tensor], groups: Sequence[Group], costs: Costs, *, budget: float, steps: Sequence[int]
) -> list[int]:
    """Widen one group at a time by one grid step, where the importance gained for each MAC is highest, within the budget."""
    while True:
        now = costs.macs(counts)
        best, best_worth = None, -1.0
        for g, group in enumerate(groups):
            wider = min(counts[g] + steps[g], group.num_units)
            if wider == counts[g]:
                continue
            extra = costs.macs([*counts[:g], wider, *counts[g + 1 :]]) - now
            worth = float(relative[g][counts[g] : wider].sum()) / max(extra, 1.0)
            if now + extra <= budget and worth > best_worth:
                best, best_worth = (g, wider), worth
        if best is None:
            return counts
        counts = [*counts[: best[0]], best[1], *counts[best[0] + 1 :]]
