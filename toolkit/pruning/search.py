"""Targets that only a measurement can decide: a latency, and a loss of accuracy. Both prune copies, measure, and correct.

A predicted latency is not a latency. The first candidate is pruned to the prediction, exported and timed; the next aims
where the timings so far say that the target lies. Four are enough where the clock is any good, and the nearest counts.
"""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from toolkit.bundle import Plan
from toolkit.errors import UsageError
from toolkit.pruning.selection import NothingToPrune
from toolkit.pruning.target import Budget

MOST_EXPORTS = 4
CLOSE = 0.05
MOST_PREDICTIONS, NEAR = 4, 0.02
HALVINGS = 6
SMALLEST_AIM, LEAST_RISE = 0.02, 0.2

Prune = Callable[[nn.Module, Budget], Plan]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finalist:
    """A candidate that was built: the share it aimed at and the share it has, of latency (predicted, then measured)."""

    plan: Plan
    aim: float
    predicted: float
    measured: float


def search_latency(
    net: nn.Module,
    *,
    share: float,
    prune: Prune,
    predict: Callable[[nn.Module], float],
    measure: Callable[[nn.Module], float],
) -> tuple[Plan, list[Finalist]]:
    """The plan whose measured latency is nearest to `share` (0..1) of the latency of `net`, and all that were built for it.

    `prune` prunes a copy of `net` in place; `predict` and `measure` return its share of the latency of `net`. Up to 5% above
    or below counts as met. Raises what `prune` raises for the first aim.
    """
    tried: list[Finalist] = []
    aim = share
    while len(tried) < MOST_EXPORTS:
        try:
            twin, plan, predicted = _predicted_at(net, aim, prune, predict)
        except UsageError:
            if not tried:
                raise
            break
        if any(plan == earlier.plan for earlier in tried):
            break
        found = Finalist(plan, aim, predicted, measure(twin))
        tried.append(found)
        logger.info(
            "latency %.1f%% wanted: predicted %.1f%%, measured %.1f%%",
            *(100 * s for s in (share, found.predicted, found.measured)),
        )
        if abs(found.measured / share - 1) <= CLOSE:
            break
        aim = _next_aim(tried, share)
    kept = [one for one in tried if one.measured <= (1 + CLOSE) * share] or tried
    return min(kept, key=lambda one: abs(math.log(one.measured / share))).plan, tried


def _predicted_at(
    net: nn.Module, aim: float, prune: Prune, predict: Callable[[nn.Module], float]
) -> tuple[nn.Module, Plan, float]:
    """A copy of `net` pruned to a predicted share near `aim`, its plan and that share.

    What a search solves on need not be the prediction itself, so the budget is corrected by it, which exports nothing.
    """
    share, best, below, above = aim, None, (0.0, 0.0), (1.0, 1.0)
    for _ in range(MOST_PREDICTIONS):
        twin = copy.deepcopy(net)
        try:
            plan = prune(twin, Budget("latency", min(max(share, SMALLEST_AIM), 0.99)))
        except UsageError:
            if best is None:
                raise
            break
        found = (twin, plan, predict(twin))
        if best is None or abs(math.log(found[2] / aim)) < abs(math.log(best[2] / aim)):
            best = found
        if abs(found[2] / aim - 1) <= NEAR:
            break
        below, above = ((share, found[2]), above) if found[2] < aim else (below, (share, found[2]))
        share = below[0] + (above[0] - below[0]) * (aim - below[1]) / (above[1] - below[1])
    assert best is not None
    return best


def _next_aim(tried: Sequence[Finalist], share: float) -> float:
    """Where the line through the timings next to `share` reaches it. The net as it is, which takes all of its time, is one."""
    points = [(1.0, 1.0), *((one.predicted, one.measured) for one in tried)]
    below = max((point for point in points if point[1] < share), default=None)
    if below is not None:  # timings out of order are noise: the widest net that was fast enough counts
        above = min((point for point in points if point[1] >= share and point[0] > below[0]), default=points[0])
        aim = below[0] + (share - below[1]) * (above[0] - below[0]) / (above[1] - below[1])
        return min(max(aim, SMALLEST_AIM), 0.99)
    last = min(points)
    rise = (1 - last[1]) / max(1 - last[0], 1e-9)
    return max(last[0] - (last[1] - share) / max(rise, LEAST_RISE), last[0] / 2, SMALLEST_AIM)


def search_accuracy(
    net: nn.Module, *, drop: float, prune: Prune, score: Callable[[nn.Module], float], baseline: float
) -> tuple[Plan, list[dict[str, float]]]:
    """The plan that keeps the smallest share of the MACs at which `score` falls from `baseline` by at most `drop`.

    `prune` prunes a copy of `net` in place; `score` re-estimates its BatchNorm and gives its accuracy (0..1), before any
    recovery. The share is found by halving the interval six times, which takes for granted that less capacity is never
    better. Raises `UsageError` when no share below the whole holds.
    """
    low, high, best = 0.0, 1.0, None
    tried: list[dict[str, float]] = []
    for _ in range(HALVINGS):
        aim = (low + high) / 2
        twin = copy.deepcopy(net)
        try:
            plan = prune(twin, Budget("macs", aim))
        except NothingToPrune:
            high = aim
            continue
        except UsageError:  # out of reach
            low = aim
            continue
        fall = baseline - score(twin)
        tried.append({"macs": aim, "drop": fall})
        logger.info("%.1f%% of the MACs: accuracy falls by %.4f after BatchNorm re-estimation", 100 * aim, fall)
        if fall <= drop:
            high, best = aim, plan
        else:
            low = aim
    if best is None:
        smallest = min((one["drop"] for one in tried), default=math.inf)
        raise UsageError(
            f"target.accuracy_drop={drop:g} allows no pruning: the least that was pruned already costs {smallest:.3g} before "
            "recovery. Allow more, or choose target.macs and let recovery win it back."
        )
    return best, tried
