"""A small net with everything that exporting folds or forgets: BatchNorm with learned statistics, a shortcut, several labels.

N images, C channels, H height, W width, K labels.
"""

import functools
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from toolkit.backends import ExportFacts, write_onnx
from toolkit.bundle import Architecture, Bundle, Manifest, Preprocessing, Store, lineage
from toolkit.data import load_pixels
from toolkit.data.shapes import shapes
from toolkit.models import Deployed, pixel_contract, register

SIZE_PX = 24
LABELS = ("circle", "square", "triangle")
PREPROCESSING = Preprocessing((SIZE_PX, SIZE_PX))


class Small(nn.Module):
    """Two convolutions with BatchNorm around a shortcut, and a linear head."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.act, self.head = nn.SiLU(), nn.Linear(16, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_NCHW = self.act(self.bn1(self.conv1(images_NCHW)))
        features_NCHW = self.act(features_NCHW + self.bn2(self.conv2(features_NCHW)))
        return self.head(features_NCHW.mean((2, 3)))


register("tests/small", Small, PREPROCESSING)


@functools.cache
def images_NCHW() -> np.ndarray:  # noqa: N802
    """40 drawn images as float32 pixels 0..255."""
    return load_pixels(shapes(40, size_px=SIZE_PX, noise=20.0), PREPROCESSING).images_NCHW.numpy().astype(np.float32)


def small(seed: int = 0) -> Deployed:
    """The net behind its preprocessing, with random weights and the BatchNorm statistics of `images_NCHW`."""
    torch.manual_seed(seed)
    deployed = Deployed(Small(), PREPROCESSING)
    for module in deployed.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    deployed.train()
    with torch.no_grad():
        deployed(torch.from_numpy(images_NCHW()))
    return deployed.eval()


def written(folder: Path, deployed: nn.Module | None = None) -> tuple[Path, ExportFacts]:
    """The graph of `deployed` (None: the small net) in `folder`."""
    path = folder / "model.onnx"
    return path, write_onnx(
        deployed or small(), path, preprocessing=PREPROCESSING, labels=LABELS, metadata={"parent": "ab" * 32}
    )


def bundled(store: Store, deployed: Deployed | None = None) -> Bundle:
    """The small net as a bundle."""
    contract = pixel_contract(PREPROCESSING, len(LABELS))
    manifest = Manifest(Architecture("tests/small"), LABELS, PREPROCESSING, contract, lineage("adopt"))
    return store.add(manifest, weights=(deployed or small()).net.state_dict())


def altered(path: Path, name: str, change: float | np.ndarray) -> None:
    """Multiply the tensor `name` of the graph at `path` by `change`."""
    model = onnx.load(path)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * change).astype(np.float32), name))
    onnx.save(model, path)
