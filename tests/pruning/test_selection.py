"""Targets are checked, budgets are kept closely, widths lie on the grid."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit.errors import UsageError
from toolkit.pruning import CRITERIA, Budget, PruneOptions, Target, apply_plan, count_macs, find_groups, plan_pruning
from toolkit.pruning.costs import mac_costs
from toolkit.pruning.ranking import comparable
from toolkit.pruning.selection import choose


@pytest.mark.parametrize(
    "values",
    [
        {"macs": 0.5, "ratio": 0.5},
        {"macs": 0.0},
        {"macs": 1.0},
        {"ratio": 1.5},
        {"ratio": -1},
        {"latency_ms": 0},
        {"latency": 1.2},
        {"batch": 0},
        {"device": "tensorrt"},
    ],
)
def test_a_target_is_one_share_between_nothing_and_all(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="target"):
        Target(**values)


@pytest.mark.parametrize("macs", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_the_result_is_nearest_under_the_budget(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, macs: float, round_to: int
) -> None:
    net = mixed()
    groups = find_groups(net, example_NCHW)
    costs = mac_costs(net, groups, example_NCHW)
    scores = [torch.rand(g.num_units, generator=torch.Generator().manual_seed(g.num_units)) for g in groups]
    counts = [int(keep.sum()) for keep in choose(groups, scores, costs, budget=Budget("macs", macs), round_to=round_to)]
    limit = macs * costs.total
    assert costs(counts) <= limit
    for g, group in enumerate(groups):
        assert counts[g] % round_to == 0 or counts[g] == group.num_units
        assert counts[g] >= min(round_to, group.num_units)
        wider = [min(c + round_to, group.num_units) if i == g else c for i, c in enumerate(counts)]
        assert counts[g] == group.num_units or costs(wider) > limit


def test_the_most_important_units_stay(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed()
    groups = find_groups(net, example_NCHW)
    costs = mac_costs(net, groups, example_NCHW)
    scores = [torch.arange(g.num_units, dtype=torch.float64) for g in groups]
    for keep in choose(groups, scores, costs, budget=Budget("macs", 0.5), round_to=8):
        assert keep.tolist() == sorted(keep.tolist())


def test_predicted_macs_are_the_pruned_nets_macs(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed()
    groups = find_groups(net, example_NCHW)
    costs = mac_costs(net, groups, example_NCHW)
    scores = [torch.arange(g.num_units, dtype=torch.float64) for g in groups]
    counts = [
        int(keep.sum())
        for keep in choose(groups, comparable(net, groups, scores, "global"), costs, budget=Budget("macs", 0.4), round_to=4)
    ]
    plan = plan_pruning(
        net, example_NCHW, criterion=Fixed(scores), budget=Budget("macs", 0.4), options=PruneOptions(round_to=4)
    )
    apply_plan(net, plan)
    assert count_macs(net, example_NCHW) == round(costs(counts))


class Fixed:
    """A criterion that gives scores made before."""

    def __init__(self, scores: list[Tensor]) -> None:
        self.scores = scores

    def __call__(self, net: nn.Module, groups: object, **_: object) -> list[Tensor]:
        return self.scores


def test_a_ratio_removes_that_share_of_each_group_rounded_up_to_the_grid(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor
) -> None:
    net = mixed()
    plan = plan_pruning(net, example_NCHW, criterion=CRITERIA["magnitude"](), budget=Budget("ratio", 0.3))
    apply_plan(net, plan)
    assert net.expand.out_channels == 48  # 0.7 of 64 is 44.8
    assert net.left.out_channels == 24  # 0.7 of 24 is 16.8
    assert net.depthwise.groups == 48


def test_a_grid_too_coarse_for_the_net_is_an_error(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    with pytest.raises(UsageError, match="Nothing would be pruned"):
        plan_pruning(
            mixed(),
            example_NCHW,
            criterion=CRITERIA["magnitude"](),
            budget=Budget("ratio", 0.1),
            options=PruneOptions(round_to=64),
        )


def test_a_target_out_of_reach_says_what_can_be_reached(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    with pytest.raises(UsageError, match=r"cannot be met.*at best"):
        plan_pruning(mixed(), example_NCHW, criterion=CRITERIA["magnitude"](), budget=Budget("macs", 0.001))
