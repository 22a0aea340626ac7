"""Small real models with planted strengths and faults, each trained once a test process.

N images, C channels, H height, W width, K classes.
"""

import copy
import functools
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from toolkit.bundle import ONNX, Architecture, Bundle, Lineage, Manifest, Preprocessing, Store
from toolkit.data import ImageSet, Normalise, load_pixels
from toolkit.data.shapes import shapes
from toolkit.models import pixel_contract, register

PREPROCESSING = Preprocessing((32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def tiny(num_classes: int = 3, width: int = 8) -> nn.Module:
    """Three strided convolutions and a linear head."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes))


register("tests/tiny", tiny, PREPROCESSING)


@functools.cache
def images() -> ImageSet:
    """2,000 drawn shapes, 500 of them in the test split, about 250 on either background."""
    return shapes(2000, size_px=32, noise=40.0)


@functools.cache
def trained(*, num_epochs: int, seed: int = 0, width: int = 8, bad_slice: str = "", size_px: int = 32) -> nn.Module:
    """A net after `num_epochs` epochs; the labels of `bad_slice` are shifted by one while it learns."""
    torch.manual_seed(seed)
    preprocessing = Preprocessing((size_px, size_px), mean=PREPROCESSING.mean, std=PREPROCESSING.std)
    pixels = load_pixels(images().split("train"), preprocessing)
    wrong_N = torch.tensor([name == bad_slice for name in pixels.slices])
    targets_N = torch.where(wrong_N & (torch.rand(len(pixels)) < 0.6), (pixels.targets_N + 1) % 3, pixels.targets_N)
    net, normalise = tiny(width=width), Normalise(preprocessing)
    batches = [batch for _ in range(num_epochs) for batch in torch.randperm(len(pixels)).split(64)]
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, total_iters=len(batches))
    for batch in batches:
        loss = nn.functional.cross_entropy(net(normalise(pixels.images_NCHW[batch])), targets_N[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def with_head(net: nn.Module, *, order: tuple[int, ...] = (0, 1, 2), scale: float = 1.0) -> nn.Module:
    """A copy of `net` whose logits stand in another order and are multiplied by `scale`."""
    net = copy.deepcopy(net)
    head = net[-1]
    with torch.no_grad():
        head.weight.copy_(head.weight[list(order)] * scale)
        head.bias.copy_(head.bias[list(order)] * scale)
    return net


def write_graph(net: nn.Module, path: Path, *, size_px: int = 32) -> Path:
    """`net` behind its normalisation as ONNX, written node by node: milliseconds where the exporter takes seconds."""
    names = [f"n{i}" for i in range(len(net) + 2)]
    constants = {"mean": torch.tensor(127.5), "std": torch.tensor(127.5), **net.state_dict()}
    nodes = [helper.make_node("Sub", ["images", "mean"], ["shifted"]), helper.make_node("Div", ["shifted", "std"], [names[0]])]
    for i, layer in enumerate(net):
        inputs, outputs = [names[i]], [names[i + 1] if i + 1 < len(net) else "logits"]
        tensors = [f"{i}.{name}" for name in ("weight", "bias", "running_mean", "running_var") if f"{i}.{name}" in constants]
        kind, attributes = {
            nn.Conv2d: ("Conv", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
            nn.BatchNorm2d: ("BatchNormalization", {"epsilon": 1e-5}),
            nn.ReLU: ("Relu", {}),
            nn.AdaptiveAvgPool2d: ("GlobalAveragePool", {}),
            nn.Flatten: ("Flatten", {}),
            nn.Linear: ("Gemm", {"transB": 1}),
        }[type(layer)]
        nodes.append(helper.make_node(kind, inputs + tensors, outputs, **attributes))
    used = {name for node in nodes for name in node.input}
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size_px, size_px])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    initialisers = [numpy_helper.from_array(t.numpy(), name) for name, t in constants.items() if name in used]
    graph = helper.make_graph(nodes, "tiny", [images], [logits], initialisers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def stored(
    store: Store,
    net: nn.Module,
    *,
    labels: tuple[str, ...] | None = None,
    width: int = 8,
    size_px: int = 32,
    graph: Path | None = None,
) -> Bundle:
    """`net` as a bundle; with its graph when `graph` says where to write it."""
    labels = labels or images().labels
    preprocessing = Preprocessing((size_px, size_px), mean=PREPROCESSING.mean, std=PREPROCESSING.std)
    manifest = Manifest(
        Architecture("tests/tiny", {"num_classes": 3, "width": width}),
        labels,
        preprocessing,
        pixel_contract(preprocessing, len(labels)),
        Lineage("adopt"),
    )
    files = {} if graph is None else {ONNX: write_graph(net, graph, size_px=size_px)}
    return store.add(manifest, weights=net.state_dict(), files=files)
