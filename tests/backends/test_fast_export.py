"""The short way to a graph gives the same graph as the long way, and where it would not, the long way is taken."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.backends.small import LABELS, PREPROCESSING, SIZE_PX, Small, images_NCHW, small
from toolkit.backends import EagerRunner, ExportFacts, OnnxRunner, write_onnx
from toolkit.backends.describe import module_path
from toolkit.backends.fast_export import suits
from toolkit.backends.fold import fold_batchnorm
from toolkit.models import Deployed


def both_ways(folder: Path, deployed: nn.Module) -> tuple[ExportFacts, Path, Path]:
    paths = folder / "fast.onnx", folder / "long.onnx"
    facts = [write_onnx(deployed, path, preprocessing=PREPROCESSING, labels=LABELS, fast=path is paths[0]) for path in paths]
    assert facts[1].method == "dynamic"
    return facts[0], *paths


def test_both_ways_give_the_same_nodes_from_the_same_modules(tmp_path: Path) -> None:
    deployed = small()
    facts, fast, long = both_ways(tmp_path, deployed)
    assert facts.method == "folded"
    assert "trace" not in facts.seconds
    graphs = [onnx.load(path).graph for path in (fast, long)]
    described = [[(node.op_type, module_path(node)) for node in graph.node] for graph in graphs]
    assert described[0] == described[1]
    assert ("Conv", "net.bn2") in described[0]
    expected_NK = EagerRunner(deployed, dtype="float64")(images_NCHW())
    for batch in (1, 2, 7, 32):
        np.testing.assert_allclose(OnnxRunner(fast)(images_NCHW()[:batch]), expected_NK[:batch], rtol=1e-4, atol=1e-5)


class Flattening(nn.Module):
    """A head on flattened features, the way VGG does it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=8), nn.Linear(4 * 9, 3)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.head(self.conv(images_NCHW).flatten(1))


class Shuffled(Flattening):
    """Channels dealt out by a reshape with more dimensions, the way ShuffleNet does it."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_NCHW = self.conv(images_NCHW)
        n, c, h, w = features_NCHW.shape
        return self.head(features_NCHW.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1))


class WithToken(Flattening):
    """A token expanded to the batch, the way ViT does it."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_NP = self.conv(images_NCHW).flatten(1)
        token_NP = self.conv.bias[None, :1].expand(features_NP.shape[0], features_NP.shape[1])
        return self.head(torch.stack([features_NP, token_NP]).sum(0))


class BatchMixing(Flattening):
    """Each answer depends on how many images there are: a number that the short way would bake in."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.head(self.conv(images_NCHW).flatten(1)) * images_NCHW.shape[0]


@pytest.mark.parametrize("kind", [Flattening, Shuffled, WithToken, BatchMixing])
def test_the_answers_are_right_at_every_batch_whichever_way_was_taken(tmp_path: Path, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    deployed = Deployed(kind().eval(), PREPROCESSING)
    facts = write_onnx(deployed, tmp_path / "m.onnx", preprocessing=PREPROCESSING, labels=LABELS)
    assert facts.method == ("folded" if kind in (Flattening, Shuffled) else "dynamic")
    runner, reference = OnnxRunner(tmp_path / "m.onnx"), EagerRunner(deployed, dtype="float64")
    for batch in (1, 4, 11):
        images = images_NCHW()[:batch]
        np.testing.assert_allclose(runner(images), reference(images), rtol=1e-4, atol=1e-4)


def test_only_networks_of_convolutions_are_tried() -> None:
    assert suits(small())
    assert not suits(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)))
    assert not suits(nn.Sequential(nn.Conv2d(3, 3, 1), nn.MultiheadAttention(4, 2)))


def test_folding_keeps_the_function() -> None:
    images = torch.from_numpy(images_NCHW()).double()
    deployed = small().double()
    expected_NK = deployed(images)
    assert fold_batchnorm(deployed.net) == {"conv1": "bn1", "conv2": "bn2"}
    torch.testing.assert_close(deployed(images), expected_NK, rtol=1e-10, atol=1e-10)


class Shared(Small):
    """One convolution before two norms."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_NCHW = self.act(self.bn1(self.conv1(images_NCHW)))
        return self.head(self.bn2(self.conv2(self.bn1(self.conv2(features_NCHW)))).mean((2, 3)))


class UsedTwice(Small):
    """A convolution whose plain output is needed too."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        raw_NCHW = self.conv1(images_NCHW)
        return self.head((raw_NCHW + self.bn1(raw_NCHW)).mean((2, 3)))


class Branching(Small):
    """Control flow on values, which no symbolic run follows."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return super().forward(images_NCHW if images_NCHW.sum() > 0 else -images_NCHW)


@pytest.mark.parametrize("kind", [Shared, UsedTwice, Branching])
def test_what_cannot_be_folded_safely_stays(kind: type[nn.Module]) -> None:
    net = kind().eval()
    images = torch.rand(2, 3, SIZE_PX, SIZE_PX)
    expected_NK = net(images)
    assert fold_batchnorm(net) == {}
    assert torch.equal(net(images), expected_NK)


def test_a_norm_with_dropout_and_activation_inside_folds_too() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval().double()
    images = torch.rand(1, 3, 64, 64).double()
    with torch.no_grad():
        expected_NK = net(images)
        assert len(fold_batchnorm(net)) == 49
        torch.testing.assert_close(net(images), expected_NK, rtol=1e-9, atol=1e-9)
