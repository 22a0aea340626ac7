"""Attention loses whole heads: the same answers as with those heads zeroed, from plan and weights alone, and in ONNX."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.nets import maxvit, swin, swin_v2, vit
from toolkit.backends import EagerRunner, OnnxRunner, write_onnx
from toolkit.bundle import Plan, Preprocessing
from toolkit.errors import InputRefused
from toolkit.models import Deployed
from toolkit.pruning import CRITERIA, Budget, Group, PruneOptions, apply_plan, count_macs, find_groups, prune_net, zero_removed
from toolkit.pruning.attention import free_heads, layout_of
from toolkit.pruning.removal import plan_of

NETS = [vit, swin, swin_v2, maxvit]
OPTIONS = PruneOptions(round_to=1)


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    net = build().eval()
    for parameter in net.parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1)
    return net


def images(px: int = 64) -> Tensor:
    return torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(1))


def heads(net: nn.Module) -> list[Group]:
    """The groups whose units are heads: they have rows in the packed projection."""
    found = find_groups(net, images()[:1])
    return [group for group in found if any("qkv" in m.tensor or "in_proj" in m.tensor for m in group.members)]


def without_first_head(net: nn.Module) -> Plan:
    groups = heads(net)
    return plan_of(net, groups, [torch.arange(group.num_units) > 0 for group in groups])


@pytest.mark.parametrize("build", NETS)
def test_each_attention_is_one_group_of_its_heads(build: Callable[[], nn.Module]) -> None:
    net = made(build)
    attentions = [module for module in net.modules() if layout_of(module) is not None]
    assert len(attentions) == len(heads(net)) > 0


SIZES = [(build, px) for build in NETS for px in ((64, 72) if build in (swin, swin_v2) else (64,))]


@pytest.mark.parametrize(("build", "px"), SIZES)
def test_the_other_forward_computes_the_same(build: Callable[[], nn.Module], px: int) -> None:
    net = made(build)
    twin = copy.deepcopy(net)
    for module in twin.modules():
        free_heads(module)
    assert type(twin) is type(net)
    with torch.no_grad():
        torch.testing.assert_close(twin(images(px)), net(images(px)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", NETS)
def test_a_net_without_heads_gives_what_it_gives_with_those_heads_zeroed(build: Callable[[], nn.Module]) -> None:
    net = made(build)
    plan = without_first_head(net)
    net.double()
    cut, masked = copy.deepcopy(net), copy.deepcopy(net)
    apply_plan(cut, plan)
    zero_removed(masked, plan)
    with torch.no_grad():
        found, expected, whole = cut(images().double()), masked(images().double()), net(images().double())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, whole)


@pytest.mark.parametrize("build", [vit, *(pytest.param(build, marks=pytest.mark.slow) for build in (swin, swin_v2, maxvit))])
def test_heads_come_back_from_plan_and_weights_and_in_onnx(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    net, again = made(build), made(build)
    plan = without_first_head(net)
    apply_plan(net, plan)
    apply_plan(again, plan)
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images()), net(images()))
    preprocessing = Preprocessing(size_px=(64, 64))
    path = tmp_path / "model.onnx"
    write_onnx(Deployed(again, preprocessing), path, preprocessing=preprocessing, labels=[str(k) for k in range(7)])
    pixels_NCHW = (images().abs() * 60).clamp(max=255).numpy()
    expected_NK = EagerRunner(Deployed(again, preprocessing))(pixels_NCHW)
    assert abs(OnnxRunner(path)(pixels_NCHW) - expected_NK).max() < 1e-4 * max(1.0, abs(expected_NK).max())


@pytest.mark.parametrize("build", NETS)
def test_pruning_goes_on_from_a_net_that_has_lost_heads(build: Callable[[], nn.Module]) -> None:
    net = made(build)
    whole = count_macs(net, images()[:1])
    for share in (0.8, 0.75):
        budget = Budget("macs", share * whole / count_macs(net, images()[:1]))
        prune_net(net, images()[:1], criterion=CRITERIA["magnitude"](), budget=budget, batches=[], options=OPTIONS)
    assert count_macs(net, images()[:1]) <= 0.75 * whole
    net.train()(images()).sum().backward()


def test_protected_attention_keeps_its_heads() -> None:
    net = made(vit)
    name = "encoder.layers.encoder_layer_0.self_attention"
    found = find_groups(net, images()[:1], protect=[name])
    assert not any(member.tensor.startswith(name) for group in found for member in group.members)


def test_attention_that_is_not_plain_stays_whole() -> None:
    assert layout_of(nn.MultiheadAttention(8, 2, batch_first=False)) is None
    assert layout_of(nn.MultiheadAttention(8, 2, batch_first=True, kdim=4, vdim=4)) is None
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    free_heads(attention)
    with pytest.raises(NotImplementedError, match="self-attention"):
        attention(torch.zeros(1, 3, 8), torch.zeros(1, 4, 8), torch.zeros(1, 4, 8), need_weights=False)


@pytest.mark.parametrize("count", [3, 2])
def test_a_number_of_heads_that_the_weights_do_not_hold_is_refused(count: int) -> None:
    net = made(vit)
    plan = without_first_head(net)
    name = "encoder.layers.encoder_layer_0.self_attention"
    attributes = {**plan.attributes, name: {"num_heads": count}}
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputRefused, match="heads"):
        apply_plan(net, replace(plan, attributes=attributes))
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
