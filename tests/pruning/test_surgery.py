"""A plan is data from anyone: it cuts exactly what it says, or nothing."""

import pytest
import torch
from torch import Tensor, nn

from toolkit.bundle import Plan
from toolkit.errors import InputRefused
from toolkit.pruning import apply_plan, compose_plans


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def keep(*indices: int) -> Plan:
    return Plan(
        kept={
            **{
                name: {"0": indices} for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
            },
            "3.weight": {"1": indices},
        },
        attributes={
            "0": {"out_channels": len(indices)},
            "1": {"num_features": len(indices)},
            "3": {"in_channels": len(indices)},
        },
    )


def test_it_cuts_the_tensors_and_sets_the_attributes() -> None:
    net, whole = two_layers(), two_layers()
    apply_plan(net, keep(1, 4, 6))
    assert torch.equal(net[0].weight, whole[0].weight[[1, 4, 6]])
    assert torch.equal(net[3].weight, whole[3].weight[:, [1, 4, 6]])
    assert net[1].running_var.shape == (3,)
    assert (net[0].out_channels, net[1].num_features, net[3].in_channels) == (3, 3, 3)
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 4, 6, 6)


def test_frozen_flags_and_modes_stay_and_gradients_go() -> None:
    net = two_layers()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    apply_plan(net, keep(0, 2))
    assert not net[0].weight.requires_grad
    assert net[0].bias.requires_grad
    assert [m.training for m in net] == [True, False, True, True]
    assert all(p.grad is None for name, p in net.named_parameters() if name != "3.bias")
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.is_contiguous() for p in net.parameters())


def test_it_works_under_no_grad_and_leaves_leaves() -> None:
    net = two_layers()
    with torch.no_grad():
        apply_plan(net, keep(0, 2))
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert net[0].weight.grad is not None


def test_an_optimizer_made_afterwards_trains_every_parameter() -> None:
    net = two_layers()
    apply_plan(net, keep(0, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in net.parameters()}
    before = [p.clone() for p in net.parameters()]
    (net(torch.randn(4, 3, 8, 8)) ** 2).sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        (Plan(kept={"9.weight": {"0": (0,)}}), "9.weight"),
        (Plan(kept={"0.weight": {"0": (0, 8)}}), "0..7"),
        (Plan(kept={"0.weight": {"0": (2, 1)}}), "ascending"),
        (Plan(kept={"0.weight": {"0": (-1, 1)}}), "ascending"),
        (Plan(kept={"0.weight": {"0": ()}}), "ascending"),
        (Plan(kept={"0.weight": {"4": (0,)}}), "dimension 4"),
        (Plan(kept={"0.weight": {"-1": (0,)}}), "dimension -1"),
        (Plan(attributes={"9": {"groups": 1}}), "module '9'"),
        (Plan(attributes={"0": {"forward": 1}}), "forward"),
        (Plan(attributes={"0": {"out_channels": "8"}}), "out_channels"),
        (Plan(attributes={"0": {"out_channels": -8}}), "out_channels"),
        (Plan(attributes={"0": {"_parameters": 3}}), "_parameters"),
        (Plan(attributes={"0": {"training": 0}}), "training"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_changes_nothing(plan: Plan, named: str) -> None:
    net, whole = two_layers(), two_layers()
    valid = keep(0, 1)
    both = Plan(kept={**valid.kept, **plan.kept}, attributes={**valid.attributes, **plan.attributes})
    with pytest.raises(InputRefused, match=named):
        apply_plan(net, both)
    for (name, tensor), expected in zip(net.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name
    assert net[0].out_channels == 8


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6, bias=False)
        self.b = nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_tied_weights_stay_tied_or_the_plan_is_refused() -> None:
    net = Tied()
    cut = {"0": (0, 1), "1": (0, 1)}
    apply_plan(net, Plan(kept={"a.weight": cut, "b.weight": cut}))
    assert net.a.weight is net.b.weight
    assert net.a.weight.shape == (2, 2)
    with pytest.raises(InputRefused, match="tied"):
        apply_plan(Tied(), Plan(kept={"a.weight": cut}))


def test_composed_plans_do_what_the_two_do_in_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        first = sorted(torch.randperm(8, generator=generator)[:5].tolist())
        second = sorted(torch.randperm(5, generator=generator)[:3].tolist())
        in_turn, at_once = two_layers(), two_layers()
        apply_plan(in_turn, keep(*first))
        apply_plan(in_turn, keep(*second))
        apply_plan(at_once, compose_plans(keep(*first), keep(*second)))
        for a, b in zip(in_turn.state_dict().values(), at_once.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert at_once[0].out_channels == 3


def test_composing_with_the_empty_plan_changes_nothing() -> None:
    assert compose_plans(Plan(), keep(0, 3)) == keep(0, 3)
    assert compose_plans(keep(0, 3), Plan()) == keep(0, 3)


def test_a_second_plan_must_fit_the_first() -> None:
    with pytest.raises(InputRefused, match="index 7"):
        compose_plans(keep(0, 3), keep(0, 7))
