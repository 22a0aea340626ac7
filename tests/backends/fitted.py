"""Small nets of three families that have learnt their labels: what a lower precision does to their decisions means something.

N images, C channels, H height, W width, K labels, T tokens.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.bundle import Architecture, Bundle, Manifest, Preprocessing, Store, lineage
from toolkit.data import ImageSet, load_pixels
from toolkit.data.shapes import shapes
from toolkit.models import Deployed, pixel_contract, register

SIZE_PX = 24
PREPROCESSING = Preprocessing((SIZE_PX, SIZE_PX))
WIDTH = 16
EPOCHS, BATCHES = 14, 6


def _conv(before: int, after: int, *, stride: int = 1, groups: int = 1, size: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after))


class Residual(nn.Module):
    """Full convolutions around shortcuts, as in a ResNet."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem, self.one, self.two = _conv(3, WIDTH, stride=2), _conv(WIDTH, WIDTH), _conv(WIDTH, WIDTH, stride=2)
        self.short, self.head = _conv(WIDTH, WIDTH, stride=2, size=1), nn.Linear(2 * WIDTH, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x_NCHW = self.stem(images_NCHW).relu()
        x_NCHW = (x_NCHW + self.one(x_NCHW)).relu()
        x_NCHW = (self.short(x_NCHW) + self.two(x_NCHW)).relu()
        return self.head(torch.cat([x_NCHW.mean((2, 3)), x_NCHW.amax((2, 3))], 1))


class Depthwise(Residual):
    """Inverted bottlenecks with depthwise convolutions and bounded activations, as in a MobileNet."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        wide = 2 * WIDTH
        self.one = nn.Sequential(
            _conv(WIDTH, wide, size=1), nn.ReLU6(), _conv(wide, wide, groups=wide), nn.ReLU6(), _conv(wide, WIDTH, size=1)
        )
        self.two = nn.Sequential(_conv(WIDTH, WIDTH, stride=2, groups=WIDTH), nn.Hardswish(), _conv(WIDTH, WIDTH, size=1))


class Transformer(nn.Module):
    """Patches, attention and GELU behind LayerNorm, as in a ViT."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.place = nn.Parameter(torch.randn(1, (SIZE_PX // 4) ** 2, WIDTH) * 0.5)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.head = nn.Linear(2 * WIDTH, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x_NTC = self.patches(images_NCHW).flatten(2).transpose(1, 2) + self.place
        normed_NTC = self.norm1(x_NTC)
        x_NTC = x_NTC + self.attention(normed_NTC, normed_NTC, normed_NTC, need_weights=False)[0]
        x_NTC = self.norm3(x_NTC + self.mlp(self.norm2(x_NTC)))
        return self.head(torch.cat([x_NTC.mean(1), x_NTC.amax(1)], 1))


FAMILIES: dict[str, Callable[..., nn.Module]] = {"residual": Residual, "depthwise": Depthwise, "transformer": Transformer}
for family, build in FAMILIES.items():
    register(f"tests/{family}", build, PREPROCESSING)


@functools.cache
def drawn() -> ImageSet:
    """600 drawn images of three shapes: 360 for training, 90 for validation, 150 for testing."""
    return shapes(600, size_px=SIZE_PX, noise=8.0)


@functools.cache
def pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Float32 pixels images_NCHW of a split, and their classes targets_N."""
    loaded = load_pixels(drawn().split(split), PREPROCESSING)
    return loaded.images_NCHW.numpy().astype(np.float32), loaded.targets_N.numpy()


@functools.cache
def _trained(family: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    deployed = Deployed(FAMILIES[family](), PREPROCESSING).train()
    images_NCHW, targets_N = (torch.from_numpy(array) for array in pixels("train"))
    optimiser = torch.optim.AdamW(deployed.parameters(), 8e-3)
    for step in range(EPOCHS * BATCHES):
        chosen = torch.arange(step % BATCHES, len(targets_N), BATCHES)
        nn.functional.cross_entropy(deployed(images_NCHW[chosen]), targets_N[chosen]).backward()
        optimiser.step()
        optimiser.zero_grad()
    return deployed.state_dict()


def fitted(family: str) -> Deployed:
    """A net of the family, trained for some seconds."""
    deployed = Deployed(FAMILIES[family](), PREPROCESSING)
    deployed.load_state_dict(_trained(family))
    return deployed.eval()


def bundled(store: Store, family: str, deployed: Deployed | None = None) -> Bundle:
    """The fitted net as a bundle."""
    labels = drawn().labels
    contract = pixel_contract(PREPROCESSING, len(labels))
    manifest = Manifest(Architecture(f"tests/{family}"), labels, PREPROCESSING, contract, lineage("adopt"))
    return store.add(manifest, weights=(deployed or fitted(family)).net.state_dict())
