"""Small nets that hold every kind of coupling, and what pruning needs to look at them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d


class Mixed(nn.Module):
    """A stem, a residual depthwise block with a gate, a concatenation, and a flattened head; 32 px images, 5 classes."""

    def __init__(self, *, norm: type[nn.Module] = nn.BatchNorm2d, groups: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.stem_norm = norm(32)
        self.expand = nn.Conv2d(32, 64, 1)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=groups or 64, bias=False)
        self.depthwise_norm = norm(64)
        self.squeeze = nn.Conv2d(64, 16, 1)
        self.excite = nn.Conv2d(16, 64, 1)
        self.project = nn.Conv2d(64, 32, 1)
        self.left = nn.Conv2d(32, 24, 3, stride=4, padding=1)
        self.right = nn.Conv2d(32, 40, 3, stride=4, padding=1)
        self.hidden = nn.Linear(64 * 16, 48)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(48, 5)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(images_NCHW)))
        y = F.hardswish(self.depthwise_norm(self.depthwise(self.expand(x))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.project(y)
        x = F.relu(torch.cat([self.left(x), self.right(x)], dim=1))
        return self.head(self.drop(F.relu(self.hidden(x.flatten(1)))))


def settled(net: nn.Module) -> nn.Module:
    """`net` with weights and statistics that are far from trivial, so that wrong surgery shows."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return net


@pytest.fixture
def mixed() -> Callable[..., nn.Module]:
    """Makes the net with every coupling, from a fixed seed."""

    def make(**kwargs: object) -> nn.Module:
        torch.manual_seed(0)
        return settled(Mixed(**kwargs))  # pyright: ignore[reportArgumentType]

    return make


@pytest.fixture
def example_NCHW() -> Tensor:  # noqa: N802
    """One image of 32 px."""
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Four batches of eight images with classes 0..4."""
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(8, 3, 32, 32, generator=generator), torch.randint(0, 5, (8,), generator=generator)) for _ in range(4)]
