"""Heads are found and replaced in every torchvision family and in timm, by structure alone."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from toolkit.bundle import Architecture
from toolkit.errors import UsageError
from toolkit.models import build, find_head, replace_head, replace_head_by_label, stage_names
from toolkit.models.probe import probe

FAST = ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "vit_b_32", "convnext_tiny"]
FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
    "wide_resnet50_2",
]


def on_meta(key: str) -> nn.Module:
    """The model without memory; families that compute while they are built get real weights."""
    try:
        with torch.device("meta"):
            return build(Architecture(key))
    except UsageError:
        return build(Architecture(key))


def check_stages_and_head(net: nn.Module) -> None:
    modes = [module.training for module in net.modules()]
    stages = stage_names(net)
    owners = [sum(_holds(entry, name) for stage in stages for entry in stage) for name, _ in net.named_parameters()]
    assert set(owners) == {1}
    assert stages[-1] == [find_head(net)]
    assert 4 <= len(stages) <= 8
    replace_head(net, 7)
    trace = probe(net, ())
    assert trace is not None
    assert trace.output == (2, 7)
    assert [module.training for module in net.modules()] == modes


def _holds(entry: str, name: str) -> bool:
    return name == entry or name.startswith(f"{entry}.")


@pytest.mark.parametrize("name", FAST)
def test_a_head_is_replaced_and_stages_cover_all_parameters(name: str) -> None:
    check_stages_and_head(on_meta(f"torchvision/{name}"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_torchvision_family(name: str) -> None:
    check_stages_and_head(on_meta(f"torchvision/{name}"))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_timm_models(name: str) -> None:
    pytest.importorskip("timm")
    check_stages_and_head(on_meta(f"timm/{name}"))


def test_resnet_stages_are_its_layers() -> None:
    assert stage_names(on_meta("torchvision/resnet18")) == [
        ["conv1", "bn1"],
        ["layer1"],
        ["layer2"],
        ["layer3"],
        ["layer4"],
        ["fc"],
    ]


def test_equal_seeds_give_equal_heads_and_leave_the_global_generator_alone() -> None:
    nets = [build(Architecture("torchvision/squeezenet1_1")) for _ in range(3)]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        replace_head(net, 4, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [net.get_submodule(find_head(net)).weight for net in nets]
    assert torch.equal(weights[0], weights[1])  # pyright: ignore[reportArgumentType]
    assert not torch.equal(weights[0], weights[2])  # pyright: ignore[reportArgumentType]


def test_the_head_is_the_layer_as_wide_as_the_output_not_the_last_one_defined() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classify = nn.Linear(8, 3)
            self.embed = nn.Linear(12, 8)

        def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            return self.classify(self.embed(images_NCHW.flatten(1)))

    net = nn.Sequential(nn.Conv2d(3, 3, 4, stride=4), nn.AdaptiveAvgPool2d(2), Odd())
    assert find_head(net) == "2.classify"


def test_a_head_of_a_flat_network_keeps_its_type_and_mode() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10, bias=False)).double().eval()
    replace_head(net, 2)
    head = net[3]
    assert isinstance(head, nn.Linear)
    assert (head.bias, head.weight.dtype, head.training) == (None, torch.float64, False)
    assert net(torch.zeros(1, 1, 8, 8, dtype=torch.float64)).shape == (1, 2)


class TwoHeads(nn.Module):
    """The mean of two classifiers, as in distilled transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        features_ND = images_NCHW.flatten(1)
        return torch.stack([self.first(features_ND), self.second(features_ND)]).mean(0)


class NoHead(nn.Module):
    """Prototypes instead of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes_KD = nn.Parameter(torch.zeros(10, 64))

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return images_NCHW.flatten(1) @ self.prototypes_KD.T


@pytest.mark.parametrize("make", [NoHead, TwoHeads, lambda: nn.Linear(64, 10)])
def test_a_network_whose_head_cannot_be_replaced_is_refused_and_left_as_it_was(make: Callable[[], nn.Module]) -> None:
    net = make()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UsageError):
        replace_head(net, 4)
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_finding_a_head_changes_nothing() -> None:
    net = build(Architecture("torchvision/resnet18"))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_head(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(tensor.device.type == "cpu" for tensor in net.state_dict().values())
    assert not any(module._forward_hooks for module in net.modules())


def test_rows_of_surviving_labels_are_carried_over() -> None:
    net = build(Architecture("torchvision/squeezenet1_1", {"num_classes": 3}))
    old = net.get_submodule(find_head(net))
    assert isinstance(old, nn.Conv2d)
    carried = replace_head_by_label(net, ["cat", "dog", "cow"], ["ant", "cow", "cat", "bee"])
    new = net.get_submodule(find_head(net))
    assert isinstance(new, nn.Conv2d)
    assert carried == ("cow", "cat")
    assert torch.equal(new.weight[1], old.weight[2])
    assert torch.equal(new.weight[2], old.weight[0])
    assert new.bias is not None
    assert old.bias is not None
    assert torch.equal(new.bias[[1, 2]], old.bias[[2, 0]])
    assert new.weight.requires_grad
    assert new.weight.is_leaf
    with pytest.raises(UsageError, match="repeat"):
        replace_head_by_label(net, ["a", "a", "b", "c"], ["a"])
    with pytest.raises(UsageError, match="4 rows and 2 labels"):
        replace_head_by_label(net, ["a", "b"], ["a"])
