"""A frozen beginning is run once where the images stay as they are, and the weights are those of the long way, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from toolkit.training import FitOptions, Phase, Schedule, TrainerSpec

LONG_WAY = TrainerSpec(accelerator="cpu", cache_features=False)
OPTIONS = FitOptions(batch_size=16, ema_decay=0.9, class_weights="balanced")
LAST_STAGE = Schedule("last", (Phase(0, 1, 3e-3, augment=False), Phase(1, 3, 2e-3, augment=False)))


def vit() -> nn.Module:
    net = torchvision.models.VisionTransformer(16, 4, 3, 2, 16, 32, dropout=0.1, num_classes=3)
    nn.init.normal_(net.heads[0].weight, std=0.02)
    return net


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 8, [2, 2], [2, 2], [4, 4], stochastic_depth_prob=0.5, num_classes=3)


def mobilenet() -> nn.Module:
    blocks = [[1, 8, 1, 2], [4, 16, 2, 2], [4, 24, 1, 2]]
    return torchvision.models.MobileNetV2(num_classes=3, inverted_residual_setting=blocks)


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(4, (2, 2), 8, num_classes=3)


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3),
    "mobilenet": mobilenet,
    "densenet": densenet,
    "swin": swin,
    "vit": vit,
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def images_through(layer: nn.Module) -> list[int]:
    sizes: list[int] = []
    layer.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    return sizes


def identical(one: nn.Module, other: nn.Module) -> bool:
    found = other.state_dict()
    return all(torch.equal(tensor, found[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("freeze_batchnorm", [False, True])
def test_the_short_way_gives_the_weights_of_the_long_way(
    name: str, freeze_batchnorm: bool, toy: Any, run: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    short, long, before = (made(NETS[name]) for _ in range(3))
    options = replace(OPTIONS, freeze_batchnorm=freeze_batchnorm)
    whole = {"train": toy.pixels(96), "val": toy.pixels(64, seed=1)}  # the rounding of some kernels depends on the batch's size
    run(short, schedule=LAST_STAGE, options=options, run_dir=tmp_path / "short", **whole)
    assert "is given computed once" in caplog.text
    run(long, schedule=LAST_STAGE, options=options, trainer=LONG_WAY, run_dir=tmp_path / "long", **whole)
    assert identical(short, long)
    assert not identical(short, before)
    assert not [part for part in short.modules() if "forward" in part.__dict__]


def test_the_frozen_beginning_sees_each_image_once_a_phase(toy: Any, run: Any) -> None:
    net = toy.net()
    below, above = images_through(net[0][0]), images_through(net[1][0])
    result = run(net, schedule=Schedule("s", (Phase(1, 3, 2e-3, augment=False),)))
    assert sum(size for size in below if size > 2) == 100 + 60  # one or two: stand-ins, and a look at the net's stages
    assert sum(above) >= 4 * (100 + 60)
    assert result.feature_seconds > 0


class Around(nn.Module):
    """Something leads around the part that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_NCHW = self.body(images_NCHW).relu()
        return self.fc((features_NCHW + self.last(features_NCHW)).mean((2, 3)))


def test_a_net_with_a_way_around_goes_the_long_way(run: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    short, long = made(Around), made(Around)
    run(short, schedule=LAST_STAGE, run_dir=tmp_path / "short")
    assert "does not depend on its input alone" in caplog.text
    run(long, schedule=LAST_STAGE, trainer=LONG_WAY, run_dir=tmp_path / "long")
    assert identical(short, long)


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (Phase(1, 1, 1e-3, augment=False), "from the second epoch on"),
        (Phase(-1, 2, 1e-3, augment=False), "all of it learns"),
    ],
)
def test_where_it_cannot_pay_the_reason_is_said(
    phase: Phase, words: str, toy: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run(toy.net(), schedule=Schedule("s", (phase,)))
    assert words in caplog.text
