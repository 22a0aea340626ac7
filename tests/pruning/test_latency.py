"""Latency by arithmetic: the layers' real sizes, a surface that is exact where it was timed, and a search that corrects it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit.bundle import Plan
from toolkit.errors import UsageError
from toolkit.pruning import CRITERIA, Budget, PruneOptions, apply_plan, count_macs, find_groups, plan_pruning, prune_net
from toolkit.pruning.latency import LatencyModel
from toolkit.pruning.layers import LayerOp, layer_calls
from toolkit.pruning.search import search_accuracy, search_latency
from toolkit.pruning.selection import NothingToPrune


def proportional_ms(op: LayerOp) -> float:
    """A machine on which a millisecond does a million multiply-accumulates of a layer."""
    area = op.kernel[0] * op.kernel[1] if op.kernel else 1
    return op.out_elements * (op.in_channels // op.groups) * area / 1e6


def test_layers_are_seen_with_the_sizes_they_run_at(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    ops = {call.tensor: call.op for call in layer_calls(mixed(), example_NCHW)}
    assert ops["stem.weight"] == LayerOp("conv", 3, 32, (32, 32), (3, 3), (2, 2), (1, 1), (1, 1))
    assert (ops["depthwise.weight"].groups, ops["depthwise.weight"].size) == (64, (16, 16))
    assert ops["squeeze.weight"].size == (1, 1)
    assert ops["hidden.weight"] == LayerOp("linear", 64 * 16, 48, (1,))
    assert ops["left.weight"].out_elements == 24 * 4 * 4
    assert len(ops) == 10


def test_a_layer_by_its_widths_keeps_its_groups_even() -> None:
    depthwise = LayerOp("conv", 64, 64, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), groups=64)
    assert depthwise.with_widths(24, 1) == LayerOp("conv", 24, 24, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), groups=24)
    few = LayerOp("conv", 64, 64, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), groups=2)
    assert few.with_widths(48, 16) == LayerOp("conv", 32, 48, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), groups=2)


def test_the_prediction_is_the_whole_nets_time_and_follows_the_layers(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor
) -> None:
    net = mixed()
    layers_ms = sum(proportional_ms(call.op) for call in layer_calls(net, example_NCHW))
    model = LatencyModel.fit(net, example_NCHW, op_ms=proportional_ms, whole_ms=1.5 * layers_ms, grid=8)
    assert model.costs(net, find_groups(net, example_NCHW), example_NCHW).total == pytest.approx(1.5 * layers_ms)
    plan = plan_pruning(net, example_NCHW, criterion=CRITERIA["random"](), budget=Budget("ratio", 0.5))
    apply_plan(net, plan)
    exact = LatencyModel(proportional_ms, 8, 1.0, model.rest_ms)
    assert model.costs(net, [], example_NCHW).total == pytest.approx(exact.costs(net, [], example_NCHW).total)
    after_ms = sum(proportional_ms(call.op) for call in layer_calls(net, example_NCHW))
    assert model.costs(net, [], example_NCHW).total > after_ms  # activations still cost something


def test_layers_that_take_longer_alone_are_scaled(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed()
    layers_ms = sum(proportional_ms(call.op) for call in layer_calls(net, example_NCHW))
    model = LatencyModel.fit(net, example_NCHW, op_ms=proportional_ms, whole_ms=0.8 * layers_ms, grid=8)
    assert (model.scale, model.rest_ms) == (pytest.approx(0.8), 0.0)


@pytest.mark.parametrize(
    ("scale", "value_ms", "fixed_ms"),
    [(0.8, 2e-5, 0.7), (1.0, 0.0, 1.0), (0.6, 0.0, 0.4), (1.0, 3e-5, 0.0), (1.0, 0.0, 0.0), (0.0, 3e-5, 0.2)],
)
def test_narrower_nets_tell_what_goes_with_layers_with_values_and_with_nothing(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, scale: float, value_ms: float, fixed_ms: float
) -> None:
    def true_ms(net: nn.Module) -> float:
        ops = [call.op for call in layer_calls(net, example_NCHW)]
        return fixed_ms + sum(scale * proportional_ms(op) + value_ms * op.out_elements for op in ops)

    def narrowed(removed: float) -> nn.Module:
        net, budget = mixed(), Budget("ratio", removed)
        apply_plan(net, plan_pruning(net, example_NCHW, criterion=CRITERIA["random"](), budget=budget))
        return net

    net, narrower = mixed(), [(twin, true_ms(twin)) for twin in (narrowed(0.5), narrowed(0.9))]
    settings: Any = {"op_ms": proportional_ms, "whole_ms": true_ms(net), "grid": 1}
    model = LatencyModel.fit(net, example_NCHW, **settings, narrower=narrower)
    assert (model.scale, model.rest_ms, model.fixed_ms) == pytest.approx((scale, value_ms, fixed_ms), abs=1e-6)
    for twin in (net, narrowed(0.3), narrowed(0.7)):
        assert model.costs(twin, [], example_NCHW).total == pytest.approx(true_ms(twin))
    mad = LatencyModel.fit(net, example_NCHW, **settings, narrower=[(twin, 2 * true_ms(net)) for twin, _ in narrower])
    assert mad == LatencyModel.fit(net, example_NCHW, **settings)  # slower than the whole: noise, not a model


def test_few_widths_are_timed_and_all_on_the_grid(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net, asked = mixed(), set()

    def op_ms(op: LayerOp) -> float:
        asked.add(op)
        return proportional_ms(op)

    model = LatencyModel.fit(net, example_NCHW, op_ms=op_ms, whole_ms=1.0, grid=8)
    prune_net(
        net,
        example_NCHW,
        criterion=CRITERIA["magnitude"](),
        budget=Budget("latency", 0.5),
        batches=[],
        options=PruneOptions(round_to=8),
        costs=model.costs,
    )
    assert len(asked) <= 10 * 25
    fixed = {3, 5, 16 * 64}
    assert all(width % 8 == 0 or width in fixed for op in asked for width in (op.in_channels, op.out_channels))


def test_a_blend_counts_in_shares_of_the_whole_net_in_every_step(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed()
    model = LatencyModel.fit(net, example_NCHW, op_ms=proportional_ms, whole_ms=1.0, grid=8)
    steered, whole_ms, whole_macs = model.steered_costs(net, example_NCHW), 1.0, count_macs(net, example_NCHW)
    groups = find_groups(net, example_NCHW)
    costs = steered(net, groups, example_NCHW)
    counts = [group.num_units for group in groups]
    assert costs.total == pytest.approx(1.0) == costs(counts)
    narrower = [max(1, counts[0] // 2), *counts[1:]]
    assert costs(narrower) == pytest.approx(1 + costs.change(counts, 0, narrower[0]))
    apply_plan(net, plan_pruning(net, example_NCHW, criterion=CRITERIA["random"](), budget=Budget("ratio", 0.5)))
    shares = (model.costs(net, [], example_NCHW).total / whole_ms, count_macs(net, example_NCHW) / whole_macs)
    assert steered(net, [], example_NCHW).total == pytest.approx(sum(shares) / 2)


def test_the_budget_is_corrected_by_the_prediction_before_anything_is_exported() -> None:
    def square(net: Any) -> float:
        return net.share**2

    plan, tried = search_latency(nn.Identity(), share=0.5, prune=planned, predict=square, measure=square)
    assert [one.plan for one in tried] == [plan]
    assert abs(tried[0].measured / 0.5 - 1) <= 0.05


def planned(net: nn.Module, budget: Budget) -> Plan:
    """Stands for pruning: the plan and the net keep the share aimed at."""
    net.share = budget.share  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return Plan(kept={"w": {"0": (round(1000 * budget.share),)}})


@pytest.mark.parametrize("wanted", [0.3, 0.6, 0.8])
def test_a_prediction_that_is_off_is_corrected_within_three_exports(wanted: float) -> None:
    measured = lambda net: 0.15 + 0.85 * net.share**1.4  # noqa: E731
    plan, tried = search_latency(nn.Identity(), share=wanted, prune=planned, predict=lambda net: net.share, measure=measured)
    chosen = next(one for one in tried if one.plan == plan)
    assert abs(chosen.measured / wanted - 1) <= 0.05
    assert len(tried) <= 3
    assert tried[0].aim == wanted


def test_a_fixed_part_that_no_prediction_knows_costs_one_export_more() -> None:
    measured = lambda net: 0.33 + 0.67 * net.share  # noqa: E731
    _, tried = search_latency(nn.Identity(), share=0.6, prune=planned, predict=lambda net: net.share, measure=measured)
    assert [one.measured for one in tried] == pytest.approx([0.732, 0.6])


@pytest.mark.parametrize(("timings", "further"), [((0.53, 0.55, 0.49), -1), ((0.46, 0.44, 0.49), 1)])
def test_timings_out_of_order_do_not_end_the_search(timings: tuple[float, ...], further: int) -> None:
    noisy = iter(timings)
    _, tried = search_latency(
        nn.Identity(), share=0.49, prune=planned, predict=lambda net: net.share, measure=lambda net: next(noisy)
    )
    assert [one.measured for one in tried] == list(timings)
    aims = [further * one.aim for one in tried]
    assert aims == sorted(aims)


def test_the_nearest_under_the_target_is_kept_where_the_grid_jumps() -> None:
    measured = lambda net: 0.4 if net.share < 0.5 else 0.8  # noqa: E731
    plan, tried = search_latency(nn.Identity(), share=0.5, prune=planned, predict=lambda net: net.share, measure=measured)
    assert next(one for one in tried if one.plan == plan).measured == 0.4


def test_accuracy_is_searched_to_the_last_share_that_holds() -> None:
    score = lambda net: 0.9 - max(0.0, 0.37 - net.share)  # noqa: E731
    plan, tried = search_accuracy(nn.Identity(), drop=0.01, prune=planned, score=score, baseline=0.9)
    kept = plan.kept["w"]["0"][0] / 1000
    assert 0.36 <= kept <= 0.36 + 2**-5
    assert len(tried) == 6
    with pytest.raises(UsageError, match="allows no pruning"):
        search_accuracy(nn.Identity(), drop=0.01, prune=planned, score=lambda net: 0.5, baseline=0.9)


def test_shares_the_grid_cannot_reach_bound_the_search() -> None:
    def coarse(net: nn.Module, budget: Budget) -> Plan:
        if budget.share > 0.7:
            raise NothingToPrune("nothing")
        if budget.share < 0.3:
            raise UsageError("out of reach")
        return planned(net, budget)

    plan, tried = search_accuracy(nn.Identity(), drop=0.5, prune=coarse, score=lambda net: 0.9, baseline=0.9)
    assert 0.3 <= plan.kept["w"]["0"][0] / 1000 <= 0.33
    assert all(0.3 <= one["macs"] <= 0.7 for one in tried)


def test_parameters_are_a_budget_too(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed()
    before = sum(p.numel() for p in net.parameters())
    pruned = copy.deepcopy(net)
    prune_net(
        pruned,
        example_NCHW,
        criterion=CRITERIA["magnitude"](),
        budget=Budget("params", 0.4),
        batches=[],
        options=PruneOptions(round_to=4),
    )
    assert 0.36 < sum(p.numel() for p in pruned.parameters()) / before <= 0.4
    assert torch.isfinite(pruned.eval()(example_NCHW)).all()
