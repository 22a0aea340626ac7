"""Preprocessing inside the graph: uint8 images of any size in, the model's own pixels out, in front of the exported model.

What the caller still does is decode the file (upright, in the colour mode of the preprocessing); resize, crop and scaling are
the graph's. The nodes put in front are marked by their names, so that the model behind them can be had alone: the toolkit's
checks hold images that were rendered before, and rendering twice would be another preprocessing.

Legend: N images of one size, H, W that size, C channels.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from toolkit.backends.graph_files import external_tensors, read_graph
from toolkit.backends.resize_graph import Builder, resized_pixels
from toolkit.bundle import Preprocessing
from toolkit.errors import InputRefused

PREFIX = "preprocessing/"
PIXELS = f"{PREFIX}pixels"


def prepend_preprocessing(path: Path, preprocessing: Preprocessing) -> None:
    """Rewrite the graph at `path` (float32 pixels images_NCHW at the model's size) to take uint8 images (N, H, W, C).

    The input keeps its name. Raises `InputRefused` for a graph whose tensors lie in another file.
    """
    model = read_graph(path)
    if next(external_tensors(model), None) is not None:
        raise InputRefused(
            f"{path.name} keeps its tensors in another file (it is over 1.5 GB), and preprocessing can only be put in front "
            "of a graph in one file: export it with contract=tensor."
        )
    taken = model.graph.input[0]
    name, batch = taken.name, taken.type.tensor_type.shape.dim[0].dim_param or "batch"
    front = _front(name, preprocessing)
    _rename(model.graph, name, PIXELS)
    nodes = [*front.nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(front.constants)
    dims = [batch, "height", "width", preprocessing.num_channels]
    taken.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, dims))
    path.write_bytes(model.SerializeToString(deterministic=True))


def model_part(path: Path) -> bytes:
    """The graph at `path` without the preprocessing in front: float32 pixels at the model's size in."""
    model = read_graph(path)
    taken = model.graph.input[0]
    height, width = _size(model)
    batch = taken.type.tensor_type.shape.dim[0].dim_param or "batch"
    channels = taken.type.tensor_type.shape.dim[3].dim_value
    name = taken.name
    _keep(model, lambda node: not node.name.startswith(PREFIX))
    _rename(model.graph, PIXELS, name)
    taken.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, height, width]))
    return model.SerializeToString(deterministic=True)


def front_part(path: Path) -> bytes:
    """The preprocessing in front of the graph at `path` alone: out come float32 pixels (N, C, H, W) at the model's size."""
    model = read_graph(path)
    _keep(model, lambda node: node.name.startswith(PREFIX))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, None))
    return model.SerializeToString(deterministic=True)


def has_front(model: onnx.ModelProto) -> bool:
    """Whether preprocessing stands in front of the model."""
    return any(node.name.startswith(PREFIX) for node in model.graph.node)


def _front(images: str, preprocessing: Preprocessing) -> Builder:
    """The nodes from the input `images` to `PIXELS`."""
    b = Builder(PREFIX)
    shape = b.op("Shape", images)
    height, width = (b.op("Gather", shape, b.constant(axis, np.int64)) for axis in (1, 2))
    whole = _covering(b, height, width, preprocessing) if preprocessing.resize == "crop" else None
    targets = whole or [b.constant(side, np.int64) for side in preprocessing.size_px]
    pixels_NCHW = b.op("Cast", b.op("Transpose", images, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    resized_pixels(b, pixels_NCHW, sources=[height, width], targets=targets, preprocessing=preprocessing, name=PIXELS)
    return b


def _covering(b: Builder, height: str, width: str, preprocessing: Preprocessing) -> tuple[str, str]:
    """The size the whole image is resized to before the centre is cut out, as `render` computes it."""
    tall, wide = (int(side / preprocessing.crop_fraction + 1e-6) for side in preprocessing.size_px)
    tall_name, wide_name = b.constant(tall, np.int64), b.constant(wide, np.int64)
    by_height = b.op("GreaterOrEqual", b.op("Mul", tall_name, width), b.op("Mul", wide_name, height))
    grown_width = b.op("Max", wide_name, b.op("Div", b.op("Mul", tall_name, width), height))
    grown_height = b.op("Max", tall_name, b.op("Div", b.op("Mul", wide_name, height), width))
    return b.op("Where", by_height, tall_name, grown_height), b.op("Where", by_height, grown_width, wide_name)


def _size(model: onnx.ModelProto) -> tuple[int, int]:
    """The model's own height and width, which the graph's properties tell."""
    found = {entry.key: entry.value for entry in model.metadata_props}
    height, width = json.loads(found["preprocessing"])["size_px"]
    return height, width


def _keep(model: onnx.ModelProto, wanted: Callable[[onnx.NodeProto], bool]) -> None:
    """Leave only the nodes that are wanted, and the constants they read."""
    nodes = [node for node in model.graph.node if wanted(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read or not tensor.name.startswith(PREFIX)]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let every node of `graph` and its subgraphs read `new` where it read `old`."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, old, new)
