"""Removing channels gives what zeroing them gives: the property that catches wrong surgery, on real architectures."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from tests.pruning.nets import NETS, SLOW_NETS
from toolkit.errors import InputRefused, UsageError
from toolkit.pruning import (
    CRITERIA,
    Budget,
    PruneOptions,
    apply_plan,
    count_macs,
    find_groups,
    plan_pruning,
    prune_net,
    zero_removed,
)


def settle(net: nn.Module) -> nn.Module:
    """BatchNorms that change what passes through them, and no head of zeros, behind which nothing would show."""
    for parameter in net.parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                tensor.data.copy_(torch.rand(tensor.shape) + low)
    return net


def check_pruned_equals_masked(make: Callable[[], nn.Module], macs: float) -> None:
    torch.manual_seed(0)
    net = settle(make()).eval()
    px = 96 if isinstance(net, torchvision.models.Inception3) else 64
    images_NCHW = torch.randn(2, 3, px, px)
    plan = plan_pruning(net, images_NCHW[:1], criterion=CRITERIA["random"](), budget=Budget("macs", macs))
    pruned, masked = copy.deepcopy(net).double(), copy.deepcopy(net).double()
    apply_plan(pruned, plan)
    zero_removed(masked, plan)
    with torch.no_grad():
        expected, found = masked(images_NCHW.double()), pruned(images_NCHW.double())
    assert float(expected.abs().max()) > 0
    assert float((expected - found).abs().max()) <= 1e-9 * float(expected.abs().max())
    assert 0.8 * macs <= count_macs(pruned.float(), images_NCHW[:1]) / count_macs(net, images_NCHW[:1]) <= macs


@pytest.mark.parametrize("name", NETS)
def test_pruned_equals_masked(name: str) -> None:
    check_pruned_equals_masked(*NETS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_NETS)
def test_pruned_equals_masked_for_large_nets(name: str) -> None:
    check_pruned_equals_masked(*SLOW_NETS[name])


def test_every_coupling_of_one_net(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    groups = {group.name: group for group in find_groups(mixed(), example_NCHW)}
    assert {name: group.num_channels for name, group in groups.items()} == {
        "stem": 32,
        "expand": 64,
        "squeeze": 16,
        "left": 24,
        "right": 40,
        "hidden": 48,
    }
    where = {(member.tensor, member.dim) for member in groups["stem"].members}
    assert {("stem_norm.running_var", 0), ("project.weight", 0), ("project.bias", 0), ("right.weight", 1)} < where
    flattened = next(member for member in groups["right"].members if member.tensor == "hidden.weight")
    assert flattened.units.tolist() == [-1] * 24 * 16 + [unit for unit in range(40) for _ in range(16)]


@pytest.mark.parametrize("groups", [2, 8, 64])
@pytest.mark.parametrize("round_to", [1, 8])
def test_grouped_convolutions_stay_even(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, groups: int, round_to: int
) -> None:
    net = mixed(groups=groups)
    plan = plan_pruning(
        net, example_NCHW, criterion=CRITERIA["random"](), budget=Budget("macs", 0.5), options=PruneOptions(round_to=round_to)
    )
    masked = copy.deepcopy(net).eval()
    apply_plan(net, plan)
    zero_removed(masked, plan)
    conv = net.depthwise
    assert conv.weight.shape[0] < 64
    assert conv.in_channels == conv.groups * conv.weight.shape[1] == net.expand.out_channels
    assert conv.out_channels == conv.weight.shape[0] == net.project.in_channels
    assert conv.out_channels % max(round_to, 64 // groups if groups > 2 else 2) == 0
    assert torch.allclose(net.eval()(example_NCHW), masked(example_NCHW), atol=1e-4)


def test_frozen_batchnorm_is_pruned_with_its_layer(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed(norm=FrozenBatchNorm2d).eval()
    plan = plan_pruning(net, example_NCHW, criterion=CRITERIA["magnitude"](), budget=Budget("macs", 0.5))
    masked = copy.deepcopy(net)
    apply_plan(net, plan)
    zero_removed(masked, plan)
    assert net.depthwise_norm.running_var.shape == net.depthwise_norm.weight.shape == (net.expand.out_channels,)
    assert torch.allclose(net(example_NCHW), masked(example_NCHW), atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_a_frozen_net_prunes_and_stays_as_it_was(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: list[tuple[Tensor, Tensor]], grad: bool
) -> None:
    net = mixed().requires_grad_(False)
    net.head.requires_grad_(True)
    net.stem_norm.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    with torch.set_grad_enabled(grad):
        options = PruneOptions(steps=2)
        budget = Budget("macs", 0.5)
        prune_net(net, example_NCHW, criterion=CRITERIA["taylor"](), budget=budget, batches=batches, options=options)
        assert torch.is_grad_enabled() == grad
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert {name: p.requires_grad for name, p in net.named_parameters()} == flags
    assert all(p.grad is None for p in net.parameters())


def test_planning_leaves_the_net_and_the_random_numbers_alone(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: list[tuple[Tensor, Tensor]]
) -> None:
    net = mixed()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    plan_pruning(net, example_NCHW, criterion=CRITERIA["taylor"](), budget=Budget("macs", 0.5), batches=batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_reach_the_target_by_one_plan_of_the_whole(
    mixed: Callable[..., nn.Module], example_NCHW: Tensor, batches: list[tuple[Tensor, Tensor]], steps: int
) -> None:
    net, whole = mixed(), mixed()
    options = PruneOptions(steps=steps, round_to=4)
    plan = prune_net(
        net, example_NCHW, criterion=CRITERIA["magnitude"](), budget=Budget("macs", 0.4), batches=batches, options=options
    )
    share = count_macs(net, example_NCHW) / count_macs(whole, example_NCHW)
    assert 0.36 < share <= 0.4
    apply_plan(whole, plan)
    weights = dict(whole.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in net.named_parameters())


class Buffered(nn.Module):
    """Scales its channels by a buffer of its own, as some normalisations do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, stride=4)
        self.register_buffer("scale", torch.rand(1, 32, 1, 1) + 0.5)
        self.head = nn.Linear(32, 5)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(images_NCHW) * self.scale).mean((2, 3)))


def test_a_buffer_as_wide_as_a_layer_is_pruned_with_it(example_NCHW: Tensor) -> None:
    torch.manual_seed(0)
    net = Buffered().eval()
    plan = plan_pruning(net, example_NCHW, criterion=CRITERIA["magnitude"](), budget=Budget("ratio", 0.5))
    masked = copy.deepcopy(net)
    apply_plan(net, plan)
    zero_removed(masked, plan)
    assert net.scale.shape == (1, 16, 1, 1)
    assert torch.allclose(net(example_NCHW), masked(example_NCHW), atol=1e-5)


def test_no_layer_is_closed_in_one_step(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed()
    options = PruneOptions(round_to=1)
    apply_plan(
        net, plan_pruning(net, example_NCHW, criterion=CRITERIA["magnitude"](), budget=Budget("ratio", 0.99), options=options)
    )
    assert net.expand.out_channels == 7  # a tenth of 64


def test_protected_layers_and_the_head_keep_their_width(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    net = mixed()
    protect = ["stem", "right"]
    plan = plan_pruning(
        net, example_NCHW, criterion=CRITERIA["random"](), budget=Budget("ratio", 0.5), options=PruneOptions(protect=protect)
    )
    apply_plan(net, plan)
    assert (net.stem.out_channels, net.project.out_channels, net.right.out_channels, net.head.out_features) == (32, 32, 40, 5)
    assert net.left.out_channels < 24


def test_an_unknown_layer_to_protect_is_an_error_with_a_hint(mixed: Callable[..., nn.Module], example_NCHW: Tensor) -> None:
    with pytest.raises(UsageError, match="Did you mean stem"):
        find_groups(mixed(), example_NCHW, protect=["stm"])


def test_a_net_that_cannot_be_pruned_is_an_error(example_NCHW: Tensor) -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    with pytest.raises(InputRefused, match="Nothing in this Sequential can be pruned"):
        plan_pruning(net, example_NCHW, criterion=CRITERIA["magnitude"](), budget=Budget("macs", 0.5))


def test_branches_for_training_fit_the_pruned_net() -> None:
    torch.manual_seed(0)
    net = torchvision.models.GoogLeNet(num_classes=4, init_weights=False, aux_logits=True)
    images_NCHW = torch.randn(2, 3, 64, 64)
    plan = plan_pruning(net, images_NCHW[:1], criterion=CRITERIA["random"](), budget=Budget("macs", 0.6))
    apply_plan(net, plan)
    outputs = net.train()(images_NCHW)
    assert [output.shape for output in outputs] == [(2, 4)] * 3
