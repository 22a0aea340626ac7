"""Faults that an export may have, planted one at a time in real architectures, with the module that is to blame.

A fault is planted in the graph, or in a copy of the module that the graph is then compared with: for parity the two are the
same, and neither needs another export.

N images, C channels, H height, W width, K labels.
"""

import copy
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from tests.checks.real import calibrated
from toolkit.backends import ExportFacts, write_onnx
from toolkit.bundle import Preprocessing
from toolkit.models import Deployed

SIZE_PX = 64
PREPROCESSING = Preprocessing((SIZE_PX, SIZE_PX))
NUM_CLASSES = 100


@dataclass(frozen=True)
class Places:
    """The modules of an architecture in which faults are planted."""

    weight: str
    norm: str
    swapped: str
    activation: str
    head: str


ARCHITECTURES: Mapping[str, Places] = {
    "torchvision/resnet18": Places(
        "net.layer3.0.conv2", "net.layer2.1.bn1", "net.layer4.0.conv1", "net.layer3.1.relu", "net.fc"
    ),
    "torchvision/mobilenet_v3_small": Places(
        "net.features.5.block.1.0",
        "net.features.7.block.0.1",
        "net.features.9.block.0.0",
        "net.features.10.block.0.2",
        "net.classifier.3",
    ),
    "torchvision/efficientnet_b0": Places(
        "net.features.4.1.block.1.0",
        "net.features.3.0.block.0.1",
        "net.features.5.1.block.0.0",
        "net.features.6.0.block.1.2",
        "net.classifier.1",
    ),
    "tests/vit": Places(
        "net.encoder.layers.encoder_layer_2.mlp.0",
        "net.encoder.layers.encoder_layer_0.ln_1",
        "net.encoder.layers.encoder_layer_3.mlp.3",
        "net.encoder.layers.encoder_layer_2.mlp.1",
        "net.heads.head",
    ),
    "tests/convnext": Places(
        "net.features.3.1.block.0",
        "net.features.5.0.block.2",
        "net.features.5.2.block.3",
        "net.features.7.1.block.4",
        "net.classifier.2",
    ),
}


@dataclass(frozen=True)
class Export:
    """A model, its clean graph, and where faults are planted in it."""

    key: str
    deployed: Deployed
    graph: Path
    facts: ExportFacts

    @property
    def places(self) -> Places:
        return ARCHITECTURES[self.key]


@dataclass(frozen=True)
class Planted:
    """What is compared after a fault was planted: a module with a graph, and the module to blame."""

    reference: Deployed
    graph: Path
    culprit: str


@functools.cache
def exported(key: str) -> Export:
    """One export of the architecture in this process, in a folder that goes with it."""
    folder = tempfile.TemporaryDirectory(prefix="toolkit-faults-")
    _folders.append(folder)
    deployed, path = calibrated(key, SIZE_PX, num_classes=NUM_CLASSES), Path(folder.name) / "model.onnx"
    labels = [str(label) for label in range(NUM_CLASSES)]
    return Export(key, deployed, path, write_onnx(deployed, path, preprocessing=PREPROCESSING, labels=labels))


_folders: list[tempfile.TemporaryDirectory] = []


def weight_scaled(export: Export, folder: Path) -> Planted:
    """The largest weight of a layer is a half larger in the graph."""
    scaled_in_graph(export.graph, export.deployed, export.places.weight, folder / "model.onnx")
    return Planted(export.deployed, folder / "model.onnx", export.places.weight)


def scaled_in_graph(graph: Path, deployed: Deployed, layer: str, path: Path) -> None:
    """Write `graph` to `path` with the largest weight of `layer` a half larger."""
    model = onnx.load(graph)
    tensor = _tensor_of(model, layer, deployed.get_submodule(layer))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[int(np.abs(values).argmax())] *= 1.5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def epsilon_changed(export: Export, _folder: Path) -> Planted:
    """A norm's epsilon is that of another framework."""

    def change(norm: nn.Module) -> None:
        norm.eps = 1e-5 if norm.eps in (1e-3, 1e-6) else 1e-3

    return _in_module(export, export.places.norm, change)


def channels_swapped(export: Export, _folder: Path) -> Planted:
    """Two output channels of a layer have changed places."""

    def change(layer: nn.Module) -> None:
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                tensor[[0, 1]] = tensor[[1, 0]].clone()

    return _in_module(export, export.places.swapped, change)


def activation_replaced(export: Export, _folder: Path) -> Planted:
    """An activation is its cheap approximation, or one like it."""
    near = {nn.ReLU: nn.LeakyReLU(0.01), nn.SiLU: nn.Hardswish(), nn.Hardswish: nn.SiLU(), nn.GELU: nn.GELU("tanh")}
    deployed = copy.deepcopy(export.deployed)
    name = export.places.activation
    deployed.set_submodule(name, near[type(deployed.get_submodule(name))])
    return Planted(deployed, export.graph, name)


def labels_permuted(export: Export, _folder: Path) -> Planted:
    """The classes are in another order, as when folders were listed in another order."""

    def change(head: nn.Module) -> None:
        for tensor in (head.weight, head.bias):
            tensor.copy_(tensor.roll(1, 0))

    return _in_module(export, export.places.head, change)


def normalisation_changed(export: Export, _folder: Path) -> Planted:
    """The mean and standard deviation of ImageNet where those of another recipe belong."""
    other = replace(PREPROCESSING, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Planted(Deployed(export.deployed.net, other), export.graph, "normalise")


FAULTS: tuple[Callable[[Export, Path], Planted], ...] = (
    weight_scaled,
    epsilon_changed,
    channels_swapped,
    activation_replaced,
    labels_permuted,
    normalisation_changed,
)


def _in_module(export: Export, name: str, change: Callable[[nn.Module], None]) -> Planted:
    deployed = copy.deepcopy(export.deployed)
    with torch.no_grad():
        change(deployed.get_submodule(name))
    return Planted(deployed, export.graph, name)


def _tensor_of(model: onnx.ModelProto, name: str, module: nn.Module) -> onnx.TensorProto:
    """The graph's tensor of a layer's weight: by its name, or, where it was transposed and renamed, by its values."""
    named = [tensor for tensor in model.graph.initializer if tensor.name == f"{name}.weight"]
    if named:
        return named[0]
    weight = module.weight.detach().numpy()
    sized = [tensor for tensor in model.graph.initializer if sorted(tensor.dims) == sorted(weight.shape)]
    (found,) = [tensor for tensor in sized if np.array_equal(numpy_helper.to_array(tensor), weight.T)]
    return found
