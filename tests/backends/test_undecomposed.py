"""The second trace is left out where the graph comes out the same, and only there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.onnx._internal.exporter import _fx_passes

from toolkit.backends import EagerRunner, OnnxRunner, write_onnx
from toolkit.backends.describe import module_path
from toolkit.backends.undecomposed import decomposition_spared
from toolkit.bundle import Preprocessing
from toolkit.models import Deployed

SPEC = Preprocessing((32, 32))
LABELS = [str(label) for label in range(5)]
IMAGES_NCHW = np.random.default_rng(0).uniform(0, 255, (3, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each program that the exporter decomposes itself."""
    calls: list[None] = []
    original = _fx_passes.decompose_with_registry

    def counted(*arguments: object) -> object:
        calls.append(None)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_fx_passes, "decompose_with_registry", counted)
    return calls


def write(net: nn.Module, path: Path, *, fast: bool = True) -> Deployed:
    deployed = Deployed(net, SPEC).eval()
    write_onnx(deployed, path, preprocessing=SPEC, labels=LABELS, fast=fast)
    return deployed


def agrees(path: Path, deployed: Deployed) -> bool:
    expected_NK = EagerRunner(deployed, threads=1)(IMAGES_NCHW)
    return bool(np.allclose(OnnxRunner(path)(IMAGES_NCHW), expected_NK, rtol=1e-4, atol=1e-5 * np.abs(expected_NK).max()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1"])
def test_networks_of_ordinary_layers_are_traced_once(name: str, decomposed: list[None], tmp_path: Path) -> None:
    torch.manual_seed(0)
    deployed = write(getattr(torchvision.models, name)(num_classes=5), tmp_path / "model.onnx")
    assert decomposed == []
    assert agrees(tmp_path / "model.onnx", deployed)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert [module_path(node) for node in nodes if node.op_type == "Conv" and not module_path(node).startswith("net.")] == []


class ThroughView(nn.Module):
    """Changes a tensor in place through a view of it, and reads it afterwards."""

    def __init__(self, change: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.conv, self.fc, self.change = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), change

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_NCHW = self.conv(images_NCHW)
        self.change(features_NCHW)
        return self.fc(features_NCHW.mean((2, 3)))


def _by_view(features_NCHW: Tensor) -> None:
    features_NCHW.flatten(1).relu_()


def _seen_by_view(features_NCHW: Tensor) -> None:
    seen = features_NCHW.flatten(2)
    features_NCHW.relu_()
    features_NCHW.add_(seen.mean(2)[..., None, None])


def _in_turn(features_NCHW: Tensor) -> None:
    features_NCHW.relu_()
    features_NCHW.mul_(2).add_(features_NCHW)


@pytest.mark.parametrize(("change", "num_decomposed"), [(_by_view, 1), (_seen_by_view, 1), (_in_turn, 0)])
def test_changes_in_place_keep_their_meaning(
    change: Callable[[Tensor], None], num_decomposed: int, decomposed: list[None], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    deployed = write(ThroughView(change), tmp_path / "model.onnx")
    assert len(decomposed) >= num_decomposed
    assert num_decomposed or not decomposed
    assert agrees(tmp_path / "model.onnx", deployed)


def test_another_torch_goes_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_fx_passes, "decompose_with_registry")
    with decomposition_spared():
        assert not hasattr(_fx_passes, "decompose_with_registry")
