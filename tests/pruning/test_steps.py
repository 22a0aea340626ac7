"""Several steps end where one step ends: each aims at a share of the net as it was before the first."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from toolkit.errors import UsageError
from toolkit.pruning import CRITERIA, Budget, PruneOptions, count_macs, prune_net
from toolkit.pruning.criteria import Batch

Batches = list[tuple[Tensor, Tensor]]


def widths(net: nn.Module) -> dict[str, int]:
    return {name: len(p) for name, p in net.named_parameters()}


def pruned(
    net: nn.Module, example_NCHW: Tensor, budget: Budget, *, steps: int, batches: Batches | None = None, round_to: int = 8
) -> nn.Module:
    options = PruneOptions(steps=steps, round_to=round_to)
    criterion = CRITERIA["magnitude"]()
    prune_net(net, example_NCHW, criterion=criterion, budget=budget, batches=batches or [], options=options)
    return net


@pytest.mark.parametrize("steps", [3, 8])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.9])
def test_a_ratio_ends_in_the_same_widths_in_any_number_of_steps(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: Batches, ratio: float, steps: int
) -> None:
    once, often = (
        pruned(mixed(), example_NCHW, Budget("ratio", ratio), steps=k, batches=batches, round_to=4) for k in (1, steps)
    )
    assert widths(often) == widths(once) != widths(mixed())


def test_steps_that_the_grid_leaves_nothing_to_do_are_skipped(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="toolkit.pruning"):
        net = pruned(mixed(), example_NCHW, Budget("ratio", 0.125), steps=4, batches=batches)
    assert widths(net)["expand.weight"] == 56
    assert [record.getMessage().count("skipped") for record in caplog.records if " of 4" in record.getMessage()] == [1, 1, 1, 0]


def test_a_resnet_by_ratio_keeps_the_same_macs_in_four_steps() -> None:
    example_NCHW = torch.randn(2, 3, 32, 32)
    nets = []
    for steps in (1, 4):
        torch.manual_seed(0)
        net = resnet18(num_classes=4).eval()
        nets.append(
            pruned(net, example_NCHW, Budget("ratio", 0.3), steps=steps, batches=[(example_NCHW, torch.tensor([0, 1]))])
        )
    assert count_macs(nets[0], example_NCHW) == count_macs(nets[1], example_NCHW)
    assert widths(nets[0]) == widths(nets[1])


@pytest.mark.parametrize("round_to", [8, 16])
def test_macs_that_one_step_overshoots_do_not_make_the_next_aim_exceed_the_whole(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: Batches, round_to: int
) -> None:
    whole = count_macs(mixed(), example_NCHW)
    share = {}
    for steps in (1, 16):
        net = pruned(mixed(), example_NCHW, Budget("macs", 0.6), steps=steps, batches=batches, round_to=round_to)
        share[steps] = count_macs(net, example_NCHW) / whole
    assert max(share.values()) <= 0.6
    assert min(share.values()) > 0.6 - 0.2 * round_to / 16


def test_layers_stay_above_a_tenth_of_what_they_were_not_of_what_is_left(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: Batches
) -> None:
    net = pruned(mixed(), example_NCHW, Budget("ratio", 0.99), steps=4, batches=batches, round_to=1)
    assert widths(net)["expand.weight"] == 7  # of 64


@pytest.mark.parametrize("steps", [1, 3])
def test_nothing_pruned_in_any_step_is_an_error(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: Batches, steps: int
) -> None:
    with pytest.raises(UsageError, match="Nothing would be pruned"):
        pruned(mixed(), example_NCHW, Budget("ratio", 0.1), steps=steps, batches=batches, round_to=64)


@pytest.mark.parametrize("steps", [1, 3])
def test_an_unreachable_budget_names_what_the_whole_net_can_reach(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: Batches, steps: int
) -> None:
    with pytest.raises(UsageError, match=r"target\.macs=0\.001 cannot be met.* to 3\.6% of"):
        pruned(mixed(), example_NCHW, Budget("macs", 0.001), steps=steps, batches=batches, round_to=1)


def test_narrow_layers_that_are_down_to_one_channel_end_the_steps() -> None:
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3))  # noqa: E731
    example_NCHW = torch.randn(1, 3, 8, 8)
    batches: list[Batch] = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))]
    net = pruned(make(), example_NCHW, Budget("ratio", 0.9), steps=4, batches=batches, round_to=1)
    assert net.get_submodule("0").weight.shape[0] == 1  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
