"""How many units each group keeps: the most important ones, in widths a processor likes, just under the budget.

Speed follows from widths, not from MACs: runtimes compute in blocks of 8 or 16 channels, so 97 channels cost what 104 do
and may run twice as slow as 96. Widths are therefore rounded *up* to the grid, which costs nothing, and what the budget
then still allows goes to the groups where it is worth most.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.errors import UsageError
from toolkit.pruning.costs import Blend, Costs
from toolkit.pruning.groups import Group
from toolkit.pruning.target import Budget

SMALLEST_SHARE = 0.1  # of a group's units always stay: a ranking across groups would otherwise close a layer altogether
WORDS = {"macs": "MACs", "params": "parameters", "latency": "predicted latency"}


class NothingToPrune(UsageError):
    """The grid leaves nothing to remove: a mistake when it is so from the start, no matter in one of several steps."""


@dataclass(frozen=True)
class Whole:
    """The net before the first step, of which targets and smallest widths are shares: cost, units by a group's places."""

    cost: float
    num_units: Mapping[tuple[tuple[str, int, int], ...], int]

    @classmethod
    def of(cls, groups: Sequence[Group], cost: float) -> "Whole":
        """The net as it is now."""
        return cls(cost, {group.places: group.num_units for group in groups})

    def smallest(self, group: Group) -> int:
        """The units that `group` keeps in any case."""
        return max(1, math.ceil(SMALLEST_SHARE * self.units(group)))

    def units(self, group: Group) -> int:
        """The units that `group` had."""
        return self.num_units.get(group.places, group.num_units)


def choose(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    costs: Costs | Blend,
    *,
    budget: Budget,
    round_to: int,
    whole: Whole | None = None,
) -> list[Tensor]:
    """One boolean vector a group: the units that stay.

    `scores[g]` rates the units of group g, higher is more important, on one scale for all groups (see `ranking`). The
    budget is a share of `whole`, by default of the net as it is, and `costs` are of its quantity. Raises `UsageError` when
    it cannot be met, and its subclass `NothingToPrune` when it is met already or the grid leaves nothing to remove.
    """
    whole = whole or Whole.of(groups, costs.total)
    steps = [round_to // math.gcd(round_to, group.channels_per_unit) for group in groups]
    if budget.quantity == "ratio":
        wanted = [math.ceil((1 - budget.share) * whole.units(group) - 1e-9) for group in groups]
        counts = [_on_grid(n, group, step, whole) for n, group, step in zip(wanted, groups, steps, strict=True)]
    else:
        counts = _under_budget(groups, scores, costs, budget=budget, steps=steps, whole=whole)
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
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    costs: Costs | Blend,
    *,
    budget: Budget,
    steps: Sequence[int],
    whole: Whole,
) -> list[int]:
    """The widths of the lowest threshold that keeps the budget, then grown greedily while it lasts."""
    ordered = [score.sort(descending=True).values for score in scores]
    limit = budget.share * whole.cost

    def at(threshold: float) -> list[int]:
        return [
            _on_grid(int((values > threshold).sum()), group, step, whole)
            for values, group, step in zip(ordered, groups, steps, strict=True)
        ]

    levels = torch.cat([torch.tensor([-1.0]), *ordered]).unique().tolist()
    low, high = 0, len(levels) - 1
    least = costs(at(levels[high]))
    if least > limit:
        raise UsageError(
            f"target.{budget.quantity}={budget.share:.3g} cannot be met: pruning can bring this model to "
            f"{least / whole.cost:.1%} of its {WORDS[budget.quantity]} at best. Choose a larger target, or protect fewer "
            "layers."
        )
    while low < high:
        middle = (low + high) // 2
        if costs(at(levels[middle])) > limit:
            low = middle + 1
        else:
            high = middle
    return _grow(at(levels[low]), ordered, groups, costs, limit=limit, steps=steps)


def _grow(
    counts: list[int],
    ordered: Sequence[Tensor],
    groups: Sequence[Group],
    costs: Costs | Blend,
    *,
    limit: float,
    steps: Sequence[int],
) -> list[int]:
    """Widen one group at a time by one grid step, where the importance gained for its cost is highest, within the limit."""
    now, counts = costs(counts), list(counts)
    while True:
        best, best_worth = None, -1.0
        for g, group in enumerate(groups):
            wider = min(counts[g] + steps[g], group.num_units)
            if wider == counts[g]:
                continue
            extra = costs.change(counts, g, wider)
            worth = float(ordered[g][counts[g] : wider].sum()) / max(extra, 1e-9 * costs.total)
            if now + extra <= limit and worth > best_worth:
                best, best_worth = (g, wider, extra), worth
        if best is None:
            return counts
        counts[best[0]] = best[1]
        now += best[2]
